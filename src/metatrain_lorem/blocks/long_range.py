r"""The long-range block of LOREM: equivariant charges, their potentials, back into the features."""

import torch

from ..documentation import ModelHypers
from ..electrostatics.coulomb_sum import CoulombSum
from ..graph import Graph
from ..indexing import chunk_sizes, chunks, cut, join
from ..nn.mlp import MLP, Update
from ..nn.spherical import SphericalNorms
from ..nn.tensor_dense import DegreeLinear, TensorDense, TensorProduct


class LongRange(torch.nn.Module):
    r"""Step 8 of LOREM (arXiv 2507.19382).

    Every component of the spherical charges :math:`q_{j,lm}`, and one scalar charge more, is
    treated as a charge whose Coulomb potential
    :math:`V_{i,lm} = \frac{1}{2} \sum_j q_{j,lm} / r_{ij}` is a component of an equivariant field.
    With the exponent 6, a scalar more acts through :math:`1/r^6`, as dispersion does.

    :param hypers: of the model
    :param angstrom: one Å in the unit of length of the data
    """

    def __init__(self, hypers: ModelHypers, angstrom: float = 1.0) -> None:
        super().__init__()
        d, s = int(hypers["num_features"]), int(hypers["num_spherical_features"])
        max_degree = int(hypers["max_degree"])
        max_degree_charges = int(hypers["long_range"]["max_degree"])
        cutoff, accuracy = float(hypers["cutoff"]), float(hypers["long_range"]["accuracy"])
        self.scalar_charge = MLP([d, 2 * d, 1])
        self.spherical_charges = TensorDense(max_degree, s, max_degree_charges, 1)
        self.coulomb = CoulombSum(cutoff, accuracy, angstrom=angstrom)
        self.potential_linear = DegreeLinear(max_degree_charges, 1, s)
        self.product = TensorProduct((max_degree_charges, max_degree, max_degree), s)
        self.norms = SphericalNorms(max_degree, hypers["norms"], s)
        self.dispersion: torch.nn.Module | None = None
        scalars = 1
        if 6 in hypers["long_range"]["exponents"]:
            self.dispersion_coefficient = MLP([d, 2 * d, 1])
            self.dispersion = CoulombSum(cutoff, accuracy, 6, angstrom)
            scalars = 2
        else:
            self.dispersion_coefficient = torch.nn.Identity()
        self.update = Update(scalars + (max_degree + 1) * s, d)

    def describe(self, length_unit: str) -> str:
        """Parameters of the sums in words, to be logged.

        :param length_unit: of the data
        """
        text: str = self.coulomb.describe(length_unit)
        if self.dispersion is not None:
            text += f"; dispersion levels off below {4 * self.dispersion.settings.smearing:.2f} "
            text += length_unit
        return text

    def charges(self, x: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        """
        :param x: scalar features ``[atoms, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :return: the scalar charge, then the spherical ones, ``[atoms, 1 + (L_charges + 1)**2]``
        """
        sizes = chunks(x.shape[0], chunk_sizes(x.device)[0])
        charges: list[torch.Tensor] = []
        for x_block, rho_block in zip(cut(x, sizes), cut(rho, sizes)):  # noqa: B905
            spherical = self.spherical_charges(rho_block).squeeze(-1)
            charges.append(torch.cat([self.scalar_charge(x_block), spherical], dim=1))
        return join(charges)

    def forward(
        self, x: torch.Tensor, rho: torch.Tensor, graph: Graph
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param x: scalar features ``[atoms, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :param graph: of the batch
        :return: new scalar features ``[atoms, d]``; the field coupled to the spherical features
            ``[atoms, (L + 1)**2, s]``
        """
        potentials = [self.coulomb(self.charges(x, rho), graph)]
        if self.dispersion is not None:
            potentials.append(self.dispersion(self.dispersion_coefficient(x), graph))
        return self.couple(x, rho, potentials)

    def couple(
        self, x: torch.Tensor, rho: torch.Tensor, potentials: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param x: scalar features ``[atoms, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :param potentials: of :meth:`charges`, and of dispersion if there is one
        :return: as :meth:`forward`
        """
        scalars, components = potentials[0].split([1, potentials[0].shape[1] - 1], dim=1)
        if self.dispersion is not None:
            # in units of the interaction at distance zero, a number that networks can take
            dispersion = potentials[1] / self.dispersion.potential.self_contribution()
            scalars = torch.cat([scalars, dispersion], dim=1)
        sizes = chunks(x.shape[0], chunk_sizes(x.device)[0])
        x_blocks, rho_blocks, scalar_blocks = cut(x, sizes), cut(rho, sizes), cut(scalars, sizes)
        updated: list[torch.Tensor] = []
        fields: list[torch.Tensor] = []
        for n, potential in enumerate(cut(components, sizes)):
            field = self.potential_linear(potential.unsqueeze(-1))
            field = self.product(field, rho_blocks[n])
            fields.append(field)
            invariants = torch.cat([scalar_blocks[n]] + self.norms.parts(field), dim=1)
            updated.append(self.update(x_blocks[n], invariants))
        return join(updated), join(fields)
