r"""Coulomb matrices of Gaussian charges, for structures small enough that these are stored.

The matrix element of two Gaussians of widths :math:`\gamma_i` and :math:`\gamma_j` is
:math:`\mathrm{erf}(r / \sqrt{2 v_{ij}}) / r`, with :math:`v_{ij} = \gamma_i^2 + \gamma_j^2` (two
Gaussians of the variances :math:`\gamma^2` act like one of the sum and a point). In periodic
structures the matrix is defined by

.. math::
    C_{ij} = \sum_{k \ne 0} \frac{4\pi}{\Omega k^2} e^{-v_{ij} k^2 / 2} \cos(k \cdot r_{ij}) .

Where :math:`v_{ij}` is smaller than the square of the smearing :math:`\sigma`, the sum is done with
:math:`w_{ij} = \max(v_{ij}, \sigma^2)` in its place, and the rest,
:math:`[\mathrm{erf}(r / \sqrt{2 v}) - \mathrm{erf}(r / \sqrt{2 w})] / r`, over the neighbor list.
The rest has the mean :math:`2\pi (w - v) / \Omega`, which is subtracted. Wide Gaussians thus never
reach beyond the neighbor list, and narrow ones need no finer mesh than point charges do.
"""

import math

import torch


def isolated_matrix(
    positions: torch.Tensor, mask: torch.Tensor, variances: torch.Tensor
) -> torch.Tensor:
    """
    Coulomb matrices of isolated structures.

    :param positions: shape [B, n, 3], Angstrom
    :param mask: false for filling, shape [B, n]
    :param variances: squares of the widths, shape [B, n], square Angstrom
    :return: shape [B, n, n], zero for filling, 1/Angstrom
    """
    rows = isolated_rows(positions, positions, variances, variances)
    both = mask.unsqueeze(1) & mask.unsqueeze(2)
    return torch.where(both, rows, torch.zeros_like(rows))


def isolated_rows(
    positions: torch.Tensor,
    others: torch.Tensor,
    variances: torch.Tensor,
    other_variances: torch.Tensor,
) -> torch.Tensor:
    """
    Interaction of some atoms with others; of an atom with itself where both are on one spot.

    :param positions: shape [B, m, 3], Angstrom
    :param others: shape [B, n, 3], Angstrom
    :param variances: squares of the widths, shape [B, m], square Angstrom
    :param other_variances: shape [B, n], square Angstrom
    :return: shape [B, m, n], 1/Angstrom
    """
    difference = positions.unsqueeze(2) - others.unsqueeze(1)
    squared = (difference * difference).sum(dim=-1)
    total = variances.unsqueeze(2) + other_variances.unsqueeze(1)
    same = squared == 0.0
    # any distance but zero, for derivatives that are finite
    r = torch.sqrt(torch.where(same, torch.ones_like(squared), squared))
    return torch.where(
        same, torch.sqrt(2.0 / (math.pi * total)), torch.erf(r / torch.sqrt(2.0 * total)) / r
    )


def short_range_weights(
    distances: torch.Tensor, variances: torch.Tensor, smearing: float
) -> torch.Tensor:
    """
    What a pair of Gaussians interacts more than Gaussians of the smearing.

    :param distances: shape [P], Angstrom
    :param variances: sums of the squared widths of both atoms, shape [P], square Angstrom
    :param smearing: width of the Gaussians of the sum over k, Angstrom
    :return: shape [P], zero where the pair is wider than the smearing, 1/Angstrom
    """
    wide = torch.clamp(variances, min=smearing**2)
    narrow_part = torch.erf(distances / torch.sqrt(2.0 * variances))
    wide_part = torch.erf(distances / torch.sqrt(2.0 * wide))
    return (narrow_part - wide_part) / distances


def self_weights(variances: torch.Tensor, smearing: float) -> torch.Tensor:
    """
    The limit of ``short_range_weights`` at distance zero.

    :param variances: squares of the widths, shape [N], square Angstrom
    :param smearing: width of the Gaussians of the sum over k, Angstrom
    :return: shape [N], 1/Angstrom
    """
    doubled = 2.0 * variances
    wide = torch.clamp(doubled, min=smearing**2)
    return math.sqrt(2.0 / math.pi) * (torch.rsqrt(doubled) - torch.rsqrt(wide))


def plane_wave_matrix(
    fractions: torch.Tensor,
    mask: torch.Tensor,
    integers: torch.Tensor,
    k_squared: torch.Tensor,
    prefactors: torch.Tensor,
    species: torch.Tensor,
    pair_variances: torch.Tensor,
    present: list[int],
) -> torch.Tensor:
    """
    The sum over explicit k-vectors, one of each pair k and -k.

    :param fractions: positions in units of the cell vectors, shape [B, n, 3]
    :param mask: false for filling, shape [B, n]
    :param integers: k-vectors in units of the reciprocal cell vectors, shape [B, K, 3]
    :param k_squared: their squared lengths, shape [B, K], 1/square Angstrom
    :param prefactors: 8 pi / (V k^2), zero for filling, shape [B, K]
    :param species: shape [B, n]
    :param pair_variances: w of each pair of species, shape [species, species], square Angstrom
    :param present: species to sum over
    :return: shape [B, n, n], 1/Angstrom
    """
    phases = 2.0 * math.pi * torch.bmm(fractions, integers.transpose(1, 2))
    half_k_squared = (-0.5 * k_squared).unsqueeze(1)
    columns = mask.to(phases.dtype).unsqueeze(2)
    size = fractions.size(1)
    matrix = torch.zeros(
        (fractions.size(0), size, size), dtype=fractions.dtype, device=fractions.device
    )
    for other in present:
        gaussians = torch.exp(pair_variances[species, other].unsqueeze(2) * half_k_squared)
        weights = gaussians * prefactors.unsqueeze(1) * columns
        of_other = columns * (species == other).to(phases.dtype).unsqueeze(2)
        for wave in [torch.cos(phases), torch.sin(phases)]:
            matrix = matrix + torch.bmm(wave * weights, (wave * of_other).transpose(1, 2))
    return matrix
