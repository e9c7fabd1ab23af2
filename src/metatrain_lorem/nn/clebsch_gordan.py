r"""Clebsch-Gordan coefficients for real spherical harmonics in the order m = -l ... l."""

import cmath
import functools
from math import factorial, sqrt

import torch


@functools.cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> torch.Tensor:
    r"""Coefficients that couple real spherical tensors of degrees l1 and l2 to degree l3.

    .. math:: z_{m_3} = \sum_{m_1 m_2} C_{m_1 m_2 m_3} x_{m_1} y_{m_2}

    For l1 + l2 + l3 even the result keeps the parity :math:`(-1)^{l_3}`, for odd sums it is a
    pseudotensor. Built from Racah's formula (Varshalovich, 8.2.1, eq. 3) for complex harmonics;
    the change to real ones leaves a common phase, fixed as e3x does (arXiv 2401.07595).

    :param l1: degree of the first factor
    :param l2: degree of the second factor
    :param l3: degree of the product
    :return: float64 ``[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]``, squares sum to 2 l3 + 1
    :raises ValueError: where the degrees break the triangle rule
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {l1} and {l2} do not couple to {l3}")
    coefficients = torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.complex128)
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            if abs(m1 + m2) <= l3:
                value = _complex_coefficient(l1, m1, l2, m2, l3)
                coefficients[l1 + m1, l2 + m2, l3 + m1 + m2] = value
    coefficients = torch.einsum(
        "abc,xa,yb,zc->xyz",
        coefficients,
        _complex_to_real(l1).conj(),
        _complex_to_real(l2).conj(),
        _complex_to_real(l3),
    )
    # makes all of them real, and the product of harmonics of one direction a positive multiple of
    # the harmonic of degree l3
    return (coefficients * (-1j) ** (l1 + l2 - l3)).real.contiguous()


def _complex_coefficient(l1: int, m1: int, l2: int, m2: int, l3: int) -> float:
    m3 = m1 + m2
    prefactor = sqrt(
        (2 * l3 + 1)
        * factorial(l3 + l1 - l2)
        * factorial(l3 - l1 + l2)
        * factorial(l1 + l2 - l3)
        / factorial(l1 + l2 + l3 + 1)
    ) * sqrt(
        factorial(l3 + m3)
        * factorial(l3 - m3)
        * factorial(l1 - m1)
        * factorial(l1 + m1)
        * factorial(l2 - m2)
        * factorial(l2 + m2)
    )
    total = 0.0
    for k in range(max(0, l2 - l3 - m1, l1 - l3 + m2), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
        total += (-1) ** k / (
            factorial(k)
            * factorial(l1 + l2 - l3 - k)
            * factorial(l1 - m1 - k)
            * factorial(l2 + m2 - k)
            * factorial(l3 - l2 + m1 + k)
            * factorial(l3 - l1 - m2 + k)
        )
    return prefactor * total


def _complex_to_real(degree: int) -> torch.Tensor:
    """Rows: real harmonics (no Condon-Shortley phase); columns: complex ones (with it)."""
    size = 2 * degree + 1
    change = torch.zeros(size, size, dtype=torch.complex128)
    change[degree, degree] = 1.0
    half = 1.0 / cmath.sqrt(2.0)
    for m in range(1, degree + 1):
        sign = (-1) ** m
        change[degree + m, degree + m] = sign * half
        change[degree + m, degree - m] = half
        change[degree - m, degree + m] = -1j * sign * half
        change[degree - m, degree - m] = 1j * half
    return change
