r"""The long-range block of LOREM: equivariant charges, their potentials, back into the features."""

import torch

from ..nn.mlp import MLP, Update
from ..nn.neighbors import block_and_portion
from ..nn.spherical import SphericalNorms
from ..nn.tensor_dense import DegreeLinear, TensorDense, TensorProduct
from .coulomb import CoulombPotential


class LongRange(torch.nn.Module):
    r"""Step 8 of LOREM (arXiv 2507.19382).

    Every component of the spherical charges :math:`q_{j,lm}`, and one scalar charge more, is
    treated as a charge whose Coulomb potential
    :math:`V_{i,lm} = \frac12 \sum_j q_{j,lm} / r_{ij}` is a component of an equivariant field.

    :param num_features: scalar features d
    :param num_spherical_features: spherical features s
    :param max_degree: largest degree L of the features
    :param max_degree_charges: largest degree of the charges, at most L
    :param cutoff: cutoff radius of the neighbour list in Å
    :param accuracy: relative accuracy of the Coulomb sum
    """

    def __init__(
        self,
        num_features: int,
        num_spherical_features: int,
        max_degree: int,
        max_degree_charges: int,
        cutoff: float,
        accuracy: float,
    ) -> None:
        super().__init__()
        d, s = num_features, num_spherical_features
        self.scalar_charge = MLP([d, 2 * d, 1])
        self.spherical_charges = TensorDense(max_degree, s, max_degree_charges, 1)
        self.coulomb = CoulombPotential(cutoff, accuracy)
        self.potential_linear = DegreeLinear(max_degree_charges, 1, s)
        self.product = TensorProduct((max_degree_charges, max_degree, max_degree), s)
        self.norms = SphericalNorms(max_degree)
        self.update = Update(1 + (max_degree + 1) * s, d)

    def charges(self, x: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        """
        :param x: scalar features ``[atoms, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :return: the scalar charge, then the spherical ones, ``[atoms, 1 + (L_charges + 1)**2]``
        """
        block = block_and_portion(x.device)[0]
        charges: list[torch.Tensor] = []
        for x_block, rho_block in zip(x.split(block), rho.split(block)):  # noqa: B905
            spherical = self.spherical_charges(rho_block).squeeze(-1)
            charges.append(torch.cat([self.scalar_charge(x_block), spherical], dim=1))
        return torch.cat(charges)

    def forward(
        self,
        x: torch.Tensor,
        rho: torch.Tensor,
        positions: torch.Tensor,
        cells: torch.Tensor,
        pbc: torch.Tensor,
        system_index: torch.Tensor,
        centers: torch.Tensor,
        neighbors: torch.Tensor,
        distances: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param x: scalar features ``[atoms, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :param positions: in Å ``[atoms, 3]``
        :param cells: cell vectors in Å, in rows, ``[systems, 3, 3]``
        :param pbc: periodicity along each cell vector ``[systems, 3]``
        :param system_index: system of each atom, not decreasing, ``[atoms]``
        :param centers: central atoms of the pairs ``[pairs]``
        :param neighbors: their neighbours ``[pairs]``
        :param distances: their distances in Å ``[pairs]``
        :return: new scalar features ``[atoms, d]``; the field coupled to the spherical features
            ``[atoms, (L + 1)**2, s]``
        """
        potentials = self.coulomb(
            self.charges(x, rho),
            positions,
            cells,
            pbc,
            system_index,
            centers,
            neighbors,
            distances,
        )
        block = block_and_portion(x.device)[0]
        x_blocks, rho_blocks = x.split(block), rho.split(block)
        updated: list[torch.Tensor] = []
        fields: list[torch.Tensor] = []
        for n, of_block in enumerate(potentials.split(block)):
            field = self.potential_linear(of_block[:, 1:].unsqueeze(-1))
            field = self.product(field, rho_blocks[n])
            fields.append(field)
            invariants = torch.cat([of_block[:, :1], self.norms(field)], dim=1)
            updated.append(self.update(x_blocks[n], invariants))
        return torch.cat(updated), torch.cat(fields)
