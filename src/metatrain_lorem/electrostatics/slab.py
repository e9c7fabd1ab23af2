r"""The term that turns a stack of slabs into a single one.

Yeh and Berkowitz, J. Chem. Phys. 111, 3155 (1999), eq. 22; for charged slabs Ballenegger, Arnold,
Cerdà, J. Chem. Phys. 131, 094107 (2009), eq. 23. Two unit charges at the heights z in a cell of
volume V and height H interact by

.. math::
    -\frac{2\pi}{V} \left[(z_i - z_j)^2 + s_i + s_j\right] ,
    \quad s_i = \frac{H^2}{12} + \gamma_i^2

with :math:`\gamma` the widths of Gaussian charges, zero for points. With it and the background the
planar average of a charge is :math:`-2\pi |z| / A` without a constant, as in the two-dimensional
Ewald sum (Parry, Surf. Sci. 49, 433 (1975)): the potentials of charged slabs do not depend on H
either.
"""

import math

import torch


def slab_factors(heights: torch.Tensor, volumes: torch.Tensor) -> torch.Tensor:
    """
    :param heights: of the slabs' cells, zero for other structures, any shape, Å
    :param volumes: of the cells, the same shape, Å³
    :return: the factor in front of the bracket, zero for structures that are not slabs, 1/Å³
    """
    return -2.0 * math.pi / volumes * (heights > 0.0).to(volumes.dtype)


def slab_matrix(z: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """
    :param z: heights of the atoms ``[..., atoms]``, Å
    :param shift: s of the atoms ``[..., atoms]``, Å²
    :return: the bracket ``[..., atoms, atoms]``, Å²
    """
    squares = (z.unsqueeze(-1) - z.unsqueeze(-2)) ** 2
    return squares + shift.unsqueeze(-1) + shift.unsqueeze(-2)


def slab_moments(z: torch.Tensor, shift: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """
    What a sum over charges needs of each.

    :param z: heights of the atoms ``[atoms, 1]``, Å
    :param shift: s of the atoms ``[atoms, 1]``, Å²
    :param charges: ``[atoms, channels]``, e
    :return: charge, moment and second moment of each channel ``[atoms, 3 * channels]``
    """
    return torch.cat([charges, charges * z, charges * (z * z + shift)], dim=1)


def slab_bracket(z: torch.Tensor, shift: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """
    :param z: heights of the atoms ``[atoms, 1]``, Å
    :param shift: s of the atoms ``[atoms, 1]``, Å²
    :param moments: sums of :func:`slab_moments` over the structure of each atom, or over the only
        one, ``[atoms or 1, 3 * channels]``
    :return: the bracket times the charges ``[atoms, channels]``
    """
    charge, first, second = torch.chunk(moments, 3, dim=1)
    return charge * (z * z + shift) - 2.0 * z * first + second
