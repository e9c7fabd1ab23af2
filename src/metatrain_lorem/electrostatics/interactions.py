"""What the interaction of the charges of a batch depends on."""

from typing import NamedTuple

import torch

from .geometry import BatchGeometry


class Interactions(NamedTuple):
    """Atoms, their hardness and widths, and how the Coulomb sums are done.

    ``positions`` [N, 3] and ``system_index`` [N] of the atoms, ``first``: first atom of each
    structure. ``species`` [N]; ``hardness`` [species] in 1/length and ``variances`` [species], the
    squared widths. ``centers``, ``neighbors`` [P]: the neighbor list; ``pair_weights`` [P]: what
    its pairs interact more than Gaussians of the ``smearing``, unless ``uses_pairs`` is false
    because all are wider. ``one_width``: none is wider. ``k_cutoff``, ``mesh_spacing``,
    ``spline_order``: see ``parameters``; ``max_terms``: matrix elements or phase factors evaluated
    at once; ``angstrom``: one Angstrom in the unit of length.
    """

    geometry: BatchGeometry
    first: list[int]
    positions: torch.Tensor
    system_index: torch.Tensor
    species: torch.Tensor
    hardness: torch.Tensor
    variances: torch.Tensor
    centers: torch.Tensor
    neighbors: torch.Tensor
    pair_weights: torch.Tensor
    uses_pairs: bool
    one_width: bool
    smearing: float
    k_cutoff: float
    mesh_spacing: float
    spline_order: int
    max_terms: int
    angstrom: float
