r"""Coulomb matrices of Gaussian charges, for structures small enough that these are stored.

The matrix element of two Gaussians of widths :math:`\gamma_i` and :math:`\gamma_j` is
:math:`\mathrm{erf}(r / \sqrt{2 v_{ij}}) / r`, with :math:`v_{ij} = \gamma_i^2 + \gamma_j^2` (two
Gaussians of the variances :math:`\gamma^2` act like one of the sum and a point). In periodic
structures the matrix is defined by

.. math::
    C_{ij} = \sum_{k \ne 0} \frac{4\pi}{\Omega k^2} e^{-v_{ij} k^2 / 2} \cos(k \cdot r_{ij}) .

Where :math:`v_{ij}` is smaller than the square of the smearing :math:`\sigma`, the sum is done with
:math:`w_{ij} = \max(v_{ij}, \sigma^2)` in its place, and the rest,
:math:`[\mathrm{erf}(r / \sqrt{2 v}) - \mathrm{erf}(r / \sqrt{2 w})] / r`, over the neighbour list.
The rest has the mean :math:`2\pi (w - v) / \Omega`, which is subtracted. Wide Gaussians thus never
reach beyond the neighbour list, and narrow ones need no finer mesh than point charges do.
"""

import math
from typing import NamedTuple

import torch

from ...graph import Graph
from ...safe import gaussian_interaction
from ..parameters import SumParameters


class Interactions(NamedTuple):
    """What the energy of the charges of a batch depends on besides the charges."""

    graph: Graph
    hardness: torch.Tensor  # [atoms] 1/length
    species_hardness: torch.Tensor  # [species] about that of their atoms: to precondition
    variances: torch.Tensor  # [species] squared widths of the Gaussians, length²
    pair_weights: torch.Tensor  # [pairs] what pairs interact more than Gaussians of the smearing
    uses_pairs: bool  # false where all Gaussians are wider than the smearing
    one_width: bool  # none is wider
    parameters: SumParameters
    angstrom: float  # one Å in the unit of length


def isolated_matrix(
    positions: torch.Tensor, mask: torch.Tensor, variances: torch.Tensor
) -> torch.Tensor:
    """
    Coulomb matrices of isolated structures.

    :param positions: ``[structures, atoms, 3]``, Å
    :param mask: false for padding ``[structures, atoms]``
    :param variances: squares of the widths ``[structures, atoms]``, Å²
    :return: ``[structures, atoms, atoms]``, zero for padding, 1/Å
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

    :param positions: ``[structures, rows, 3]``, Å
    :param others: ``[structures, atoms, 3]``, Å
    :param variances: squares of the widths ``[structures, rows]``, Å²
    :param other_variances: ``[structures, atoms]``, Å²
    :return: ``[structures, rows, atoms]``, 1/Å
    """
    difference = positions.unsqueeze(2) - others.unsqueeze(1)
    squared = (difference * difference).sum(dim=-1)
    return gaussian_interaction(squared, variances.unsqueeze(2) + other_variances.unsqueeze(1))


def short_range_weights(
    distances: torch.Tensor, variances: torch.Tensor, smearing: float
) -> torch.Tensor:
    """
    What a pair of Gaussians interacts more than Gaussians of the smearing.

    :param distances: ``[pairs]``, Å
    :param variances: sums of the squared widths of both atoms ``[pairs]``, Å²
    :param smearing: width of the Gaussians of the sum over k, Å
    :return: ``[pairs]``, zero where the pair is wider than the smearing, 1/Å
    """
    wide = torch.clamp(variances, min=smearing**2)
    narrow_part = torch.erf(distances / torch.sqrt(2.0 * variances))
    wide_part = torch.erf(distances / torch.sqrt(2.0 * wide))
    return (narrow_part - wide_part) / distances


def pair_variances(variances: torch.Tensor, smearing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param variances: squares of the widths of the species ``[species]``, Å²
    :param smearing: width of the Gaussians of the sum over k, Å
    :return: w of the pairs of species, and w - v, whose mean potential is to be subtracted, each
        ``[species, species]``, Å²
    """
    sums = variances.unsqueeze(0) + variances.unsqueeze(1)
    wide = torch.clamp(sums, min=smearing**2)
    return wide, wide - sums


def self_weights(variances: torch.Tensor, smearing: float) -> torch.Tensor:
    """
    The limit of ``short_range_weights`` at distance zero.

    :param variances: squares of the widths ``[atoms]``, Å²
    :param smearing: width of the Gaussians of the sum over k, Å
    :return: ``[atoms]``, 1/Å
    """
    doubled = 2.0 * variances
    wide = torch.clamp(doubled, min=smearing**2)
    return math.sqrt(2.0 / math.pi) * (torch.rsqrt(doubled) - torch.rsqrt(wide))
