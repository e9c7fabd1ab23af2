"""Potentials of charges in isolated, slab and periodic structures of one batch."""

import torch

from ..graph import Graph
from ..indexing import of_systems, sum_systems
from .boundaries import sort_structures
from .ewald import PlaneWaveSum
from .isolated import IsolatedSum
from .kernels import ErfcCoulomb, SmoothDispersion
from .mesh import MeshSum
from .parameters import SumParameters, ewald_parameters
from .slab import slab_bracket, slab_factors, slab_moments


class CoulombSum(torch.nn.Module):
    r"""Potentials :math:`V_i = \frac{1}{2} \sum_j q_j v(r_{ij})` of channels of charges.

    All pairs count, periodic images included, without exclusions. Isolated structures are summed
    directly, periodic ones and slabs by Ewald's method; large ones of these on a mesh.
    A channel with a net charge in a periodic structure gets a neutralising background; for slabs
    the constant is that of the two-dimensional Ewald sum, see :mod:`.slab`.

    :param cutoff: radius of the neighbour list in Å, where the real-space part ends
    :param accuracy: relative accuracy of the potentials
    :param exponent: of the interaction: 1 for 1/r, 6 for dispersion, see :mod:`.kernels`
    :param angstrom: one Å in the unit of length that is used in fact
    :raises ValueError: if a parameter is out of range
    """

    settings: SumParameters  # TorchScript needs the type

    def __init__(
        self, cutoff: float, accuracy: float, exponent: int = 1, angstrom: float = 1.0
    ) -> None:
        super().__init__()
        self.cutoff: float = cutoff
        self.accuracy: float = accuracy
        self.is_coulomb: bool = exponent == 1
        self.settings = ewald_parameters(cutoff, accuracy, angstrom)
        kernel = ErfcCoulomb if self.is_coulomb else SmoothDispersion
        self.potential = kernel(self.settings.smearing)
        self.isolated = IsolatedSum(self.potential)
        self.plane_waves = PlaneWaveSum(self.potential)
        self.mesh = MeshSum(self.potential, self.settings.spline_order)

    def describe(self, length_unit: str = "Å") -> str:
        """Parameters of the sum in words, to be logged.

        :param length_unit: of the cutoff, which all lengths follow
        """
        name = "Coulomb sum" if self.is_coulomb else "Dispersion sum"
        return (
            f"{name} of relative accuracy {self.accuracy:g}: real space to "
            f"{self.cutoff:g} {length_unit}, smearing {self.settings.smearing:.4f} {length_unit}, "
            f"k-vectors to {self.settings.k_cutoff:.4f} 1/{length_unit}; structures with more than "
            f"{self.settings.mesh_threshold} atoms times k-vectors on a mesh of spacing "
            f"{self.settings.mesh_spacing:.4f} {length_unit} with splines of order "
            f"{self.settings.spline_order}"
        )

    def forward(self, charges: torch.Tensor, graph: Graph) -> torch.Tensor:
        """
        :param charges: ``[atoms, channels]``, e
        :param graph: of the batch
        :return: potentials ``[atoms, channels]``, e/Å
        """
        isolated, small, large = sort_structures(graph.boundaries, self.settings)
        if len(small) + len(large) == 0:
            return self.isolated(charges, graph, isolated, self.settings.max_terms)
        periodic = charges
        if 0 in graph.boundaries.dimensions:
            periodic = charges * periodic_atoms(graph).unsqueeze(-1).to(charges.dtype)
        totals = sum_systems(periodic, graph.system_index, len(graph.boundaries.volumes))
        potentials = self.self_and_background(periodic, totals, graph)
        if len(isolated) > 0:
            potentials = potentials + self.isolated(
                charges, graph, isolated, self.settings.max_terms
            )
        if self.is_coulomb:
            potentials = self.add_real_space(potentials, charges, graph)
        if self.is_coulomb and 2 in graph.boundaries.dimensions:
            z, shift = slab_heights(graph)
            # only differences of z enter: a central origin avoids cancellation, and needs no
            # derivative
            sums = torch.cat([torch.ones_like(z), z], dim=1).detach()
            sums = sum_systems(sums, graph.system_index, len(graph.boundaries.volumes))
            z = z - of_systems(sums[:, 1:] / sums[:, :1], graph.system_index)
            moments = slab_moments(z, shift, charges)
            moments = sum_systems(moments, graph.system_index, len(graph.boundaries.volumes))
            potentials = potentials + self.slabs(z, shift, moments, graph)
        if len(small) > 0:
            potentials = self.plane_waves(potentials, charges, graph, small, self.settings)
        for s in large:
            atoms = torch.arange(
                graph.boundaries.first[s], graph.boundaries.first[s + 1], device=charges.device
            )
            potentials = potentials.index_add(0, atoms, self.mesh(charges, graph, s, self.settings))
        return potentials

    def add_real_space(
        self, potentials: torch.Tensor, charges: torch.Tensor, graph: Graph
    ) -> torch.Tensor:
        """What point charges interact more than Gaussians, over the pairs of the neighbour list.

        :param potentials: to add it to ``[atoms, channels]``, e/Å
        :param charges: ``[atoms, channels]``, e
        :param graph: of the batch
        :return: potentials ``[atoms, channels]``, the same for isolated structures, e/Å
        """
        weights = self.potential.sr_from_dist(graph.distances)
        if 0 in graph.boundaries.dimensions:
            weights = weights * periodic_atoms(graph)[graph.centers].to(weights.dtype)
        products = charges.index_select(0, graph.neighbors) * weights.unsqueeze(-1)
        return potentials.index_add(0, graph.centers, products)

    def self_and_background(
        self, charges: torch.Tensor, totals: torch.Tensor, graph: Graph
    ) -> torch.Tensor:
        """Less the potential of each Gaussian at its own centre, which the sum over k has, and of
        the background that neutralises the cell.

        :param charges: ``[atoms, channels]``, zero for isolated structures, e
        :param totals: their sums ``[systems, channels]``, e
        :param graph: of the batch
        :return: potentials ``[atoms, channels]``, zero for isolated structures, e/Å
        """
        density = totals / graph.boundaries.volumes.unsqueeze(-1)
        own, background = self.potential.own_potential(), 2.0 * self.potential.background()
        density = of_systems(density, graph.system_index)
        return torch.sub(-own * charges, density, alpha=background)

    def slabs(
        self, z: torch.Tensor, shift: torch.Tensor, moments: torch.Tensor, graph: Graph
    ) -> torch.Tensor:
        """What turns stacks of slabs into single ones, see :mod:`.slab`.

        :param z: heights of the atoms, see :func:`slab_heights`
        :param shift: of the atoms
        :param moments: sums over the atoms of each structure ``[systems, 3 * channels]``
        :param graph: of the batch
        :return: potentials ``[atoms, channels]``, zero for other structures, e/Å
        """
        boundaries, index = graph.boundaries, graph.system_index
        factors = self.potential.prefactor * slab_factors(boundaries.heights, boundaries.volumes)
        bracket = slab_bracket(z, shift, of_systems(moments, index))
        return bracket * factors[index].unsqueeze(-1)


def slab_heights(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param graph: of the batch
    :return: z of the atoms and s, see :mod:`.slab`, each ``[atoms, 1]``
    """
    boundaries, index = graph.boundaries, graph.system_index
    z = (graph.positions * boundaries.normals[index]).sum(dim=-1, keepdim=True)
    return z, (boundaries.heights**2 / 12.0)[index].unsqueeze(-1)


def periodic_atoms(graph: Graph) -> torch.Tensor:
    """
    :param graph: of the batch
    :return: whether each atom's structure is a slab or periodic ``[atoms]``
    """
    return graph.pbc.any(dim=1)[graph.system_index]
