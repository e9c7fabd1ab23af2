"""Coulomb potentials of charges in isolated, slab and periodic structures of one batch."""

import torch

from .ewald import (
    ewald_potentials,
    real_space_potentials,
    self_and_background,
    slab_potentials,
)
from .geometry import batch_geometry, first_atoms, sort_structures
from .isolated import isolated_potentials
from .mesh import mesh_potentials
from .parameters import SPLINE_ORDER, ewald_parameters

MESH_THRESHOLD = 300_000
"""Atoms times k-vectors above which a structure is done on a mesh. Measured: on one CPU core with
10 columns, with derivatives, both take the same time at 0.2 million (about 90 atoms of a dense
solid or liquid), at 0.6 million the mesh takes half the time; explicit k-vectors serve a whole
batch in one go, though."""

MESH_POINTS = 1_000_000
"""Mesh points from which on the threshold grows in proportion."""

MAX_TERMS = 2**22
"""Pairs of atoms, or phase factors, evaluated at once."""


class CoulombPotential(torch.nn.Module):
    """
    Potentials :math:`V_i = 1/2 sum_j q_j / r_ij` of any number of columns of charges.

    All pairs count, periodic images included, without exclusions. Isolated structures are summed
    directly, periodic ones and slabs by Ewald's method; large ones of these on a mesh.
    A column with a net charge in a periodic structure gets a neutralising background; for slabs the
    constant is that of the two-dimensional Ewald sum, see ``slab_potentials``.

    Attributes that tests may set: ``smearing`` (Angstrom), ``k_cutoff`` (1/Angstrom),
    ``mesh_spacing`` (Angstrom), ``mesh_threshold`` (atoms times k-vectors), ``max_terms``,
    ``slab_height`` (Angstrom, 0 to derive it from the structure).

    :param cutoff: radius of the neighbor list in Angstrom, where the real-space part ends
    :param accuracy: relative accuracy of the potentials
    :raises ValueError: if a parameter is out of range
    """

    def __init__(self, cutoff: float, accuracy: float):
        super().__init__()
        parameters = ewald_parameters(cutoff, accuracy)
        self.cutoff: float = cutoff
        self.accuracy: float = accuracy
        self.smearing: float = parameters.smearing
        self.k_cutoff: float = parameters.k_cutoff
        self.mesh_spacing: float = parameters.mesh_spacing
        self.spline_order: int = SPLINE_ORDER
        self.mesh_threshold: int = MESH_THRESHOLD
        self.mesh_points: int = MESH_POINTS
        self.max_terms: int = MAX_TERMS
        self.slab_height: float = 0.0

    def describe(self, length_unit: str = "A") -> str:
        """Parameters of the sum in words, to be logged.

        :param length_unit: of the cutoff, which all lengths follow
        """
        return (
            f"Coulomb sum of relative accuracy {self.accuracy:g}: real space to "
            f"{self.cutoff:g} {length_unit}, smearing {self.smearing:.4f} {length_unit}, k-vectors "
            f"to {self.k_cutoff:.4f} 1/{length_unit}; structures with more than "
            f"{self.mesh_threshold} atoms times k-vectors on a mesh of spacing "
            f"{self.mesh_spacing:.4f} {length_unit} with splines of order {self.spline_order}"
        )

    def forward(
        self,
        charges: torch.Tensor,
        positions: torch.Tensor,
        cells: torch.Tensor,
        pbc: torch.Tensor,
        system_index: torch.Tensor,
        centers: torch.Tensor,
        neighbors: torch.Tensor,
        distances: torch.Tensor,
    ) -> torch.Tensor:
        """
        Evaluate the potentials.

        :param charges: one column per channel, shape [N, C], e
        :param positions: shape [N, 3], Angstrom
        :param cells: cell vectors in rows, shape [S, 3, 3], Angstrom; rows of non-periodic
            directions are ignored
        :param pbc: periodic directions, bool, shape [S, 3]
        :param system_index: structure of each atom, non-decreasing, shape [N]
        :param centers: first atoms of the pairs of the full neighbor list, shape [P]
        :param neighbors: second atoms of the pairs, shape [P]
        :param distances: shape [P], Angstrom
        :return: shape [N, C], e/Angstrom
        :raises ValueError: for one periodic direction and for singular cells, with the number of
            the structure
        """
        geometry = batch_geometry(positions, cells, pbc, system_index, self.slab_height)
        counts = geometry.counts
        first = first_atoms(counts)
        isolated, small, large = sort_structures(
            geometry, self.k_cutoff, self.mesh_spacing, self.mesh_threshold, self.mesh_points
        )
        has_slabs = 2 in geometry.dimensions

        potentials = torch.zeros_like(charges)
        if len(isolated) > 0:
            potentials = potentials + isolated_potentials(
                charges, positions, isolated, first, counts, self.max_terms
            )
        if len(small) + len(large) == 0:
            return 0.5 * potentials

        included = pbc.any(dim=1)[system_index].to(charges.dtype)
        volumes = torch.det(geometry.cells).abs()
        potentials = potentials + real_space_potentials(
            charges, centers, neighbors, distances, included, self.smearing
        )
        potentials = potentials - self_and_background(
            charges, volumes, included, system_index, self.smearing
        )
        if has_slabs:
            potentials = potentials + slab_potentials(
                charges, positions, geometry.normals, geometry.heights, volumes, system_index
            )
        if len(small) > 0:
            potentials = potentials + ewald_potentials(
                charges,
                positions,
                geometry.cells,
                small,
                first,
                counts,
                geometry.lengths,
                self.smearing,
                self.k_cutoff,
                self.max_terms,
            )
        for s in large:
            begin, end = first[s], first[s + 1]
            of_structure = mesh_potentials(
                charges[begin:end],
                positions[begin:end],
                geometry.cells[s],
                geometry.lengths[s],
                self.smearing,
                self.mesh_spacing,
                self.spline_order,
            )
            atoms = torch.arange(begin, end, device=positions.device)
            potentials = potentials.index_add(0, atoms, of_structure)
        return 0.5 * potentials
