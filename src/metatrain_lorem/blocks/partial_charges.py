r"""Partial charges and their electrostatic energy, in place of the long-range block."""

import math

import torch

from ..documentation import ModelHypers
from ..electrostatics.coulomb_sum import CoulombSum
from ..graph import Graph
from ..indexing import of_systems, sum_systems
from ..nn.mlp import MLP
from .charge_equilibration import COULOMB_CONSTANT

START = 0.1
"""Charges at first, relative to what a network makes of features, so that their energies do not
bury those of the data; and the root of what moves between neighbours, Å."""


class PartialCharges(torch.nn.Module):
    r"""Charges of local features that act on each other beyond the cutoff :math:`r_c`.

    .. math::

        V_i &= \sum_{j \neq i} q_j \frac{1 - f(r_{ij})}{r_{ij}}, \qquad f(r < r_c) =
            \frac{1}{2} \left(1 + \cos \frac{\pi r}{r_c}\right), \quad f(r \ge r_c) = 0, \\
        E &= K \left(\frac{1}{2} \sum_i q_i V_i
            - \frac{1}{2} \sum_i \sum_{j \in N(i)} g_i g_j f(r_{ij}) (V_i - V_j)^2 \right)

    with Coulomb's constant K. The first term is that of latent Ewald summation (arXiv 2408.15165),
    but for f: closer atoms interact by the local energy, which would have to undo what is large
    there whenever charges move in training. The second one is polarisation to second order: charge
    that potentials move between neighbours within the cutoff (:math:`g_i g_j f` in Å), and that
    can't leave a molecule. All images count in both sums.

    Charges sum to the total charge: what is missing is given to the atoms by learned weights.

    :param hypers: of the model
    :param angstrom: one Å in the unit of length of the data
    """

    def __init__(self, hypers: ModelHypers, angstrom: float = 1.0) -> None:
        super().__init__()
        d, cutoff = int(hypers["num_features"]), float(hypers["cutoff"])
        self.network = MLP([d, 2 * d, 3])
        with torch.no_grad():
            self.network[2].weight.mul_(START)
        accuracy = float(hypers["long_range"]["accuracy"])
        self.coulomb = CoulombSum(cutoff, accuracy, angstrom=angstrom)
        self.constant: float = COULOMB_CONSTANT * angstrom
        self.start: float = START * angstrom**0.5
        self.wave_number: float = math.pi / cutoff

    def describe(self, length_unit: str) -> str:
        """Parameters of the sum in words, to be logged.

        :param length_unit: of the data
        """
        text: str = self.coulomb.describe(length_unit)
        return text

    def charges(self, x: torch.Tensor, graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param x: scalar features ``[atoms, d]``
        :param graph: of the batch, with total charges
        :return: partial charges ``[atoms]``, e; what lets charge move to neighbours and from them
            ``[atoms]``, the root of a length
        """
        q, weights, moves = self.network(x).unbind(dim=1)
        weights = torch.exp(weights)
        index, num_systems = graph.system_index, graph.total_charge.shape[0]
        sums = sum_systems(torch.stack([q, weights], dim=1), index, num_systems)
        missing = (graph.total_charge - sums[:, 0]) / sums[:, 1]
        return q + weights * of_systems(missing, index), self.start * torch.exp(moves)

    def forward(self, x: torch.Tensor, graph: Graph) -> torch.Tensor:
        """
        :param x: scalar features ``[atoms, d]``
        :param graph: of the batch, with total charges
        :return: energies of the charges ``[atoms]``, eV
        """
        q, moves = self.charges(x, graph)
        centers, neighbors = graph.centers, graph.neighbors
        near = 0.5 + 0.5 * torch.cos(self.wave_number * graph.distances)
        # the sum is that of half the potential
        potentials = 2.0 * self.coulomb(q.unsqueeze(1), graph).squeeze(1)
        of_neighbors = q.index_select(0, neighbors) * near / graph.distances
        potentials = potentials.index_add(0, centers, -of_neighbors)
        drops = potentials.index_select(0, centers) - potentials.index_select(0, neighbors)
        moves = moves.index_select(0, centers) * moves.index_select(0, neighbors) * near
        energies = (0.5 * q * potentials).index_add(0, centers, -0.5 * moves * drops**2)
        return self.constant * energies
