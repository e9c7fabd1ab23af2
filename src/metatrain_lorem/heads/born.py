r"""Born charges as lorem-jax's ``LoremBEC`` predicts them, for weights that come from there."""

import torch

from ..documentation import ModelHypers, has_long_range_features
from ..nn.clebsch_gordan import clebsch_gordan
from ..nn.constants import join_constants, split_constants
from ..nn.mlp import lecun_normal_
from ..nn.spherical import CARTESIAN
from ..nn.tensor_dense import DegreeLinear


class BiasedDegreeLinear(torch.nn.Module):
    """A linear map of channels per degree, with a constant for degree zero.

    :param max_degree: largest degree L
    :param num_in: channels in
    :param num_out: channels out
    """

    def __init__(self, max_degree: int, num_in: int, num_out: int) -> None:
        super().__init__()
        self.linear = DegreeLinear(max_degree, num_in, num_out)
        self.bias = torch.nn.Parameter(torch.zeros(num_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``[atoms, (L + 1)**2, num_in]``
        :return: ``[atoms, (L + 1)**2, num_out]``
        """
        y = self.linear(x)
        return torch.cat([y[:, :1] + self.bias, y[:, 1:]], dim=1)


class MatrixPredictor(torch.nn.Module):
    r"""Spherical features to one 3 x 3 matrix per atom.

    Three maps of channels with gates between them, :math:`x_{lm} \mapsto x_{lm}
    \,\mathrm{sigmoid}(x_{00})`; then a product of two features to even parity,

    .. math:: y_{l_3 m_3} = \sum_{l_1 + l_2 \,\mathrm{even}} w_{l_1 l_2 l_3}
        \sum_{m_1 m_2} C^{l_1 l_2 l_3}_{m_1 m_2 m_3} a_{l_1 m_1} b_{l_2 m_2} ,

    whose degrees 0, 1 and 2 are the isotropic, antisymmetric and symmetric parts of the matrix.

    :param max_degree: largest degree L of the features
    :param num_in: channels of the features
    :param num_hidden: channels between the maps
    """

    def __init__(self, max_degree: int, num_in: int, num_hidden: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            BiasedDegreeLinear(max_degree, n, num_hidden) for n in (num_in, num_hidden, num_hidden)
        )
        self.factors = BiasedDegreeLinear(max_degree, num_hidden, 2)
        size = (max_degree + 1) ** 2
        paths: list[tuple[int, int, int]] = []
        tables: list[torch.Tensor] = []
        for l1 in range(max_degree + 1):
            for l2 in range(l1 % 2, max_degree + 1, 2):
                for l3 in range(abs(l1 - l2), min(l1 + l2, 2) + 1):
                    # to the matrix, whose indices are coupled like two vectors
                    coupled = clebsch_gordan(l1, l2, l3) @ clebsch_gordan(1, 1, l3).flatten(0, 1).T
                    table = torch.zeros(size, size, 9, dtype=torch.float64)
                    table[l1**2 : (l1 + 1) ** 2, l2**2 : (l2 + 1) ** 2] = coupled
                    table = table.view(size, size, 3, 3)[:, :, CARTESIAN][:, :, :, CARTESIAN]
                    tables.append(table.reshape(size * size, 9))
                    paths.append((l1, l2, l3))
        self.paths = paths
        self.weight = torch.nn.Parameter(torch.empty(len(paths)))
        lecun_normal_(self.weight, len(paths) // 3)
        self.register_buffer("tables", split_constants(torch.stack(tables)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``[atoms, (L + 1)**2, num_in]``
        :return: ``[atoms, 3, 3]``
        """
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < 2:
                x = x * torch.sigmoid(x[:, :1])
        first, second = self.factors(x).unbind(dim=2)
        products = (first.unsqueeze(2) * second.unsqueeze(1)).flatten(1)
        table = torch.einsum("p,pkc->kc", self.weight, join_constants(self.tables, x.dtype))
        return torch.matmul(products, table).view(-1, 3, 3)


class MatrixHead(torch.nn.Module):
    r"""Sum of one predictor per stage: the density, each step of message passing of scalars, which
    leaves the spherical features as they are, and the field of the long-range block.

    :param hypers: of the model
    :raises ValueError: with message passing of spherical features
    """

    def __init__(self, hypers: ModelHypers) -> None:
        super().__init__()
        steps = int(hypers["num_message_passing"])
        if steps > 0 and hypers["equivariant_message_passing"]:
            raise ValueError(
                "Born charges as lorem-jax predicts them (norms: lorem-jax) are not available with "
                "message passing of spherical features: set equivariant_message_passing: false, or "
                "norms: smooth"
            )
        self.predictors = torch.nn.ModuleList(
            MatrixPredictor(
                int(hypers["max_degree"]),
                int(hypers["num_spherical_features"]),
                int(hypers["num_features"]),
            )
            for _ in range(1 + steps + has_long_range_features(hypers))
        )

    def forward(self, spherical: torch.Tensor, field: torch.Tensor | None) -> torch.Tensor:
        """
        :param spherical: spherical features ``[atoms, (L + 1)**2, s]``
        :param field: of the long-range block, of the same shape
        :return: ``[atoms, 3, 3]``
        """
        matrices = torch.zeros_like(spherical[:, :1, :1])
        last = len(self.predictors) - 1
        for i, predictor in enumerate(self.predictors):
            if i == last and field is not None:
                matrices = matrices + predictor(field)
            else:
                matrices = matrices + predictor(spherical)
        return matrices
