r"""Equivariant bases that turn invariant coefficients into tensors of any kind."""

import torch

from ..nn.clebsch_gordan import clebsch_gordan
from ..nn.constants import join_constants, split_constants
from ..nn.tensor_dense import DegreeLinear, TensorProduct


class SphericalBasis(torch.nn.Module):
    r"""Spherical tensors of one degree and parity made from the spherical features.

    Proper tensors (:math:`\sigma = 1`) are the features themselves, or the constant one for degree
    zero. Improper ones (:math:`\sigma = -1`) are products of two features whose degrees sum with
    the target's to an odd number; a pseudoscalar needs a triple product.

    :param degree: degree of the tensors
    :param improper: whether they are pseudotensors
    :param max_degree: largest degree L of the features
    :param num_channels: channels of the features
    """

    def __init__(self, degree: int, improper: bool, max_degree: int, num_channels: int) -> None:
        super().__init__()
        self.first = degree * degree
        self.last = (degree + 1) * (degree + 1)
        self.constant = degree == 0 and not improper
        self.num_tensors = 1 if self.constant else num_channels
        self.linear: torch.nn.Module | None = None
        self.product: torch.nn.Module | None = None
        self.triple_product: torch.nn.Module | None = None
        if improper:
            inner = max_degree if degree == 0 else degree
            degrees = (max_degree, max_degree, inner)
            self.linear = DegreeLinear(max_degree, num_channels, 3 * num_channels)
            self.product = TensorProduct(degrees, num_channels, improper=(False, False, True))
            if degree == 0:
                degrees = (max_degree, max_degree, 0)
                self.triple_product = TensorProduct(
                    degrees, num_channels, improper=(True, False, True)
                )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """
        :param features: spherical features ``[atoms, (L + 1)**2, num_channels]``
        :return: ``[atoms, 2 * degree + 1, num_tensors]``
        """
        if self.constant:
            return torch.ones_like(features[:, :1, :1])
        if self.linear is not None and self.product is not None:
            first, second, third = self.linear(features).chunk(3, dim=-1)
            features = self.product(first, second)
            if self.triple_product is not None:
                features = self.triple_product(features, third)
        return features[:, self.first : self.last]


class TensorBasis(torch.nn.Module):
    r"""Basis of tensors with one or two indices, each of a degree and parity.

    A tensor of two indices is the sum of all degrees that couple to it,
    :math:`T_{m_1 m_2} = \sum_{\lambda \mu} C^{l_1 l_2 \lambda}_{m_1 m_2 \mu} b_{\lambda\mu}`.

    :param degrees: degree of each index, none for a scalar
    :param parities: :math:`\sigma` of each index, 1 or -1
    :param max_degree: largest degree L of the spherical features
    :param num_channels: channels of the spherical features
    :param name: of the target, for the errors
    :raises ValueError: where the features can't make such tensors
    """

    def __init__(
        self,
        degrees: list[int],
        parities: list[int],
        max_degree: int,
        num_channels: int,
        name: str,
    ) -> None:
        super().__init__()
        improper = parities.count(-1) % 2 == 1
        if len(degrees) > 2:
            raise ValueError(f"target {name!r}: tensors of rank {len(degrees)} are not supported")
        if sum(degrees) > max_degree:
            raise ValueError(
                f"target {name!r}: needs spherical features up to degree {sum(degrees)}, but "
                f"max_degree is {max_degree}; set architecture.model.max_degree to at least "
                f"{sum(degrees)}"
            )
        self.rank = len(degrees)
        self.sizes = [2 * degree + 1 for degree in degrees]
        if len(degrees) == 2:
            coupled = list(range(abs(degrees[0] - degrees[1]), sum(degrees) + 1))
        else:
            coupled = [sum(degrees)]
        self.bases = torch.nn.ModuleList()
        couplings: list[torch.Tensor] = []
        for degree in coupled:
            odd = improper
            if len(degrees) == 2:
                odd = odd != ((sum(degrees) + degree) % 2 == 1)
                couplings.append(clebsch_gordan(degrees[0], degrees[1], degree).flatten(0, 1).T)
            if odd and (max_degree < 1 or num_channels < 3):
                raise ValueError(
                    f"target {name!r}: its part of degree {degree} changes sign under reflection "
                    "beyond its degree's own; such tensors are products of spherical features and "
                    "need max_degree >= 1 and num_spherical_features >= 3, got "
                    f"{max_degree} and {num_channels}"
                )
            self.bases.append(SphericalBasis(degree, odd, max_degree, num_channels))
        self.num_tensors = sum(basis.num_tensors for basis in self.bases)
        coupling = torch.cat(couplings) if couplings else torch.zeros(0)
        self.register_buffer("coupling", split_constants(coupling), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """
        :param features: spherical features ``[atoms, (L + 1)**2, num_channels]``
        :return: ``[atoms, components of all indices, num_tensors]``
        """
        tensors: list[torch.Tensor] = []
        start = 0
        for basis in self.bases:
            tensor = basis(features)
            if self.rank == 2:
                stop = start + tensor.shape[1]
                coupling = join_constants(self.coupling[:, start:stop], tensor.dtype)
                tensor = torch.einsum("nmc,mk->nkc", tensor, coupling)
                start = stop
            tensors.append(tensor)
        return torch.cat(tensors, dim=-1)
