r"""Partial charges and their electrostatic energy, in place of the long-range block."""

import math

import torch

from ..documentation import ModelHypers
from ..electrostatics.coulomb_sum import CoulombSum
from ..graph import Graph
from ..indexing import of_systems, sum_systems
from ..nn.mlp import MLP
from ..safe import exact_sums
from .charge_equilibration import COULOMB_CONSTANT, Charges, field_potentials

START = 0.1
"""Charges at first, relative to what a network makes of features, so that their energies do not
bury those of the data."""

FLOW = 0.5
"""Root of what flows between neighbours at first, g in the root of Å: about what water molecules
need for their polarisability. Data without far ions say little of it."""


class PartialCharges(torch.nn.Module):
    r"""Charges of local features that act on each other beyond the cutoff :math:`r_c`.

    .. math::

        V_i &= \sum_{j \neq i} q_j \frac{1 - f(r_{ij})}{r_{ij}}, \qquad f(r < r_c) =
            \frac{1}{2} \left(1 + \cos \frac{\pi r}{r_c}\right), \quad f(r \ge r_c) = 0, \\
        U_i &= V_i + \phi_i , \qquad c_{ij} =
            g_i g_j f(r_{ij}) \exp \frac{-r_{ij}^2}{\rho_i^2 + \rho_j^2} , \\
        E &= K \left(\sum_i q_i \left(\frac{V_i}{2} + \phi_i\right)
            - \frac{1}{2} \sum_i \sum_{j \in N(i)} c_{ij} (U_i - U_j)^2 \right) , \\
        Q_i &= \frac{1}{K} \frac{\partial E}{\partial \phi_i}
            = q_i - 2 \sum_{j \in N(i)} c_{ij} (U_i - U_j)

    with Coulomb's constant K. The first term is that of latent Ewald summation (arXiv 2408.15165),
    but for f: closer atoms interact by the local energy, which would have to undo what is large
    there whenever charges move in training. The second one is polarisation to second order: charge
    that potentials move between atoms whose Gaussians overlap (c in Å), and that can't leave a
    molecule. All images count in both sums. An external potential :math:`\phi` is that of a field.

    Charges q, and so those with what has moved, Q, sum to the total charge: what is missing is
    given to the atoms by learned weights.

    :param hypers: of the model
    :param angstrom: one Å in the unit of length of the data
    """

    def __init__(self, hypers: ModelHypers, angstrom: float = 1.0) -> None:
        super().__init__()
        d, cutoff = int(hypers["num_features"]), float(hypers["cutoff"])
        self.network = MLP([d, 2 * d, 4])
        with torch.no_grad():
            self.network[2].weight.mul_(START)
        accuracy = float(hypers["long_range"]["accuracy"])
        self.coulomb = CoulombSum(cutoff, accuracy, angstrom=angstrom)
        self.angstrom: float = angstrom
        self.constant: float = COULOMB_CONSTANT * angstrom
        self.flow: float = FLOW * angstrom**0.5
        self.wave_number: float = math.pi / cutoff

    def describe(self, length_unit: str) -> str:
        """Parameters of the sum in words, to be logged.

        :param length_unit: of the data
        """
        text: str = self.coulomb.describe(length_unit)
        return text

    def charges(
        self, x: torch.Tensor, graph: Graph
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        :param x: scalar features ``[atoms, d]``
        :param graph: of the batch, with total charges
        :return: partial charges q ``[atoms]``, e; what lets charge move to neighbours and from
            them, g ``[atoms]``, the root of a length; how far, ρ ``[atoms]``
        """
        q, weights, moves, reach = self.network(x).unbind(dim=1)
        weights = torch.exp(weights)
        index, num_systems = graph.system_index, graph.total_charge.shape[0]
        sums = sum_systems(torch.stack([q, weights], dim=1), index, num_systems)
        missing = (graph.total_charge - sums[:, 0]) / sums[:, 1]
        q = q + weights * of_systems(missing, index)
        return q, self.flow * torch.exp(moves), self.angstrom * torch.exp(reach)

    def forward(self, x: torch.Tensor, graph: Graph) -> Charges:
        """
        :param x: scalar features ``[atoms, d]``
        :param graph: of the batch, with total charges
        :return: the charges Q and their energy
        :raises ValueError: for periodic structures in a field
        """
        q, moves, reach = self.charges(x, graph)
        centers, neighbors = graph.centers, graph.neighbors
        near = 0.5 + 0.5 * torch.cos(self.wave_number * graph.distances)
        # the sum is that of half the potential
        potentials = 2.0 * self.coulomb(q.unsqueeze(1), graph).squeeze(1)
        of_neighbors = q.index_select(0, neighbors) * near / graph.distances
        potentials = potentials.index_add(0, centers, -of_neighbors)
        energies = 0.5 * self.constant * q * potentials

        # zero without a field, but what responds can be differentiated by it
        external = torch.zeros_like(q).requires_grad_(graph.positions.requires_grad)
        field = graph.field
        if field is not None:
            given, means = field_potentials(field, graph)
            # whose mean acts on the total charge alone, and may be large
            external = external + ((given - means) / (self.angstrom * self.constant)).to(q.dtype)
            energies = energies + q * (given / self.angstrom).to(q.dtype)
        acting = potentials + external
        drops = acting.index_select(0, centers) - acting.index_select(0, neighbors)
        reach = reach**2
        overlaps = reach.index_select(0, centers) + reach.index_select(0, neighbors)
        overlaps = near * torch.exp(-(graph.distances**2) / overlaps)
        moves = moves.index_select(0, centers) * moves.index_select(0, neighbors) * overlaps
        flows = moves * drops
        energies = energies.index_add(0, centers, -0.5 * self.constant * flows * drops)
        charges = q.index_add(0, centers, -2.0 * flows)
        return Charges(
            charges=exact_sums(charges, graph.total_charge, graph.system_index),
            energies=energies,
            potentials=external,
        )
