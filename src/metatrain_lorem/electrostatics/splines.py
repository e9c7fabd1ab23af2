"""B-splines of any order between atoms and mesh, and the influence function that fits them."""

import math

import torch


def spline_polynomials(order: int) -> tuple[list[list[int]], float]:
    """
    The cardinal B-spline of an order, piece by piece.

    Recursion of de Boor, as in Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 4.1, for the
    coefficients of polynomials in y = x - 1/2, which keep their digits where powers of x cancel.

    :param order: order of the spline, which is of degree order - 1
    :return: coefficients of y^0, y^1, ... of the spline at x + 0, 1, ..., order - 1, for x from 0
        to 1, ``[order][order]``, as integers (lists of floats are tensors of single precision in
        TorchScript); what to divide them by
    """
    pieces: list[list[int]] = [[1]]
    divisor = 1.0
    for k in range(2, order + 1):
        longer: list[list[int]] = []
        for piece in range(k):
            coefficients = [0 for _ in range(k)]
            for power in range(k - 1):
                if piece < k - 1:
                    coefficients[power] += (2 * piece + 1) * pieces[piece][power]
                    coefficients[power + 1] += 2 * pieces[piece][power]
                if piece > 0:
                    coefficients[power] += (2 * (k - piece) - 1) * pieces[piece - 1][power]
                    coefficients[power + 1] -= 2 * pieces[piece - 1][power]
            longer.append(coefficients)
        pieces = longer
        divisor = divisor * 2.0 * (k - 1)
    return pieces, divisor


def spline_weights(offsets: torch.Tensor, order: int) -> torch.Tensor:
    """
    Values of the cardinal B-spline of an order at ``offsets`` + 0, 1, ..., order - 1.

    :param offsets: between 0 and 1, any shape
    :param order: order of the spline, which is of degree order - 1
    :return: one more axis of length ``order``; the values add up to 1
    """
    integers, divisor = spline_polynomials(order)
    coefficients = torch.tensor(integers, device=offsets.device).to(offsets.dtype) / divisor
    y = (offsets - 0.5).unsqueeze(-1)
    powers = [torch.ones_like(y)]
    for _ in range(1, order):
        powers.append(powers[-1] * y)
    return torch.cat(powers, dim=-1) @ coefficients.transpose(0, 1)


def spline_samples(order: int) -> tuple[list[int], float]:
    """
    Values of the cardinal B-spline of an order at the integers from 0 to order - 1.

    :param order: order of the spline
    :return: integers, and what to divide them by
    """
    samples = [1]
    divisor = 1.0
    for k in range(2, order + 1):
        longer: list[int] = []
        for x in range(k):
            left = samples[x] if x < k - 1 else 0
            right = samples[x - 1] if x > 0 else 0
            longer.append(x * left + (k - x) * right)
        samples = longer
        divisor = divisor * (k - 1)
    return samples, divisor


def axis_influence(integers: torch.Tensor, size: int, order: int) -> torch.Tensor:
    """
    Factor of one axis in the influence function that is optimal in the least-squares sense.

    Of the sum over aliases in Hockney and Eastwood's eq. 8-22 only the wave vector itself is kept
    in the numerator, as the Gaussian makes the other terms negligible. The sum in the denominator
    is the Fourier series of the spline of twice the order, sampled at integers.

    :param integers: wave numbers, ``[waves]``
    :param size: number of mesh points along the axis
    :param order: order of the splines
    :return: U^2 / (sum of U^2 over aliases)^2, ``[waves]``
    """
    # the high powers would lose a digit in single precision; these numbers are few
    fractions = integers.to(torch.float64) / size
    values, divisor = spline_samples(2 * order)
    samples = torch.tensor(values, device=integers.device).to(torch.float64) / divisor
    shift = torch.arange(2 * order, dtype=torch.float64, device=integers.device)
    aliases = torch.cos(2.0 * math.pi * fractions.unsqueeze(1) * (shift - order)) @ samples
    influence = torch.sinc(fractions) ** (2 * order) / (aliases * aliases)
    return influence.to(integers.dtype)
