r"""Sums over neighbours: radial mixing by species, scalar sums and the spherical density.

The mixing matrix of a pair depends on its two species only, so it is evaluated once per pair of
species and the linear maps that follow it are folded into it (they commute with the sum over
neighbours). Per pair only a contraction of the radial functions is left.
"""

from typing import NamedTuple

import torch

from ..indexing import chunk_sizes
from .mlp import MLP, linear
from .neighbors import PairBlock
from .spherical import degrees_of_components


def sum_over_neighbors(values: torch.Tensor, centers: torch.Tensor, num_atoms: int) -> torch.Tensor:
    """Sum what pairs hold into their central atoms.

    :param values: ``[pairs, ...]``
    :param centers: central atom of every pair ``[pairs]``
    :param num_atoms: number of atoms
    :return: ``[num_atoms, ...]``
    """
    shape = [num_atoms] + list(values.shape[1:])
    return torch.zeros(shape, dtype=values.dtype, device=values.device).index_add(
        0, centers, values
    )


def grouped_matmul(x: torch.Tensor, sizes: list[int], weights: torch.Tensor) -> torch.Tensor:
    """Multiply each row by the matrix of its group.

    :param x: rows of the first group, of the second, ..., ``[rows, in]``
    :param sizes: rows of each group
    :param weights: ``[groups, in, out]``
    :return: ``[rows, out]``
    """
    products: list[torch.Tensor] = []
    for rows, weight in zip(x.split(sizes), weights.unbind(0)):  # noqa: B905
        products.append(rows @ weight)
    return torch.cat(products)


class Edges(NamedTuple):
    """Pairs and what is expanded of them."""

    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    radial: torch.Tensor  # [pairs, num_radial] radial functions
    harmonics: torch.Tensor  # [pairs, (L + 1)**2] spherical harmonics


class RadialMixing(torch.nn.Module):
    """MLP from features of a pair's two atoms to the matrix that mixes its radial functions.

    :param num_inputs: features per atom
    :param num_radial: number of radial functions
    :param num_features: number of scalar features
    """

    def __init__(self, num_inputs: int, num_radial: int, num_features: int) -> None:
        super().__init__()
        self.num_radial = num_radial
        self.mlp = MLP([2 * num_inputs, num_features, num_radial * num_features])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """
        :param x: features of the central atoms ``[pairs, num_inputs]``
        :param y: features of the neighbours ``[pairs, num_inputs]``
        :return: ``[pairs, num_radial, num_features]``
        """
        mixing = self.mlp(torch.cat([x, y], dim=-1))
        return mixing.view(x.shape[0], self.num_radial, mixing.shape[1] // self.num_radial)

    def edges(self, x: torch.Tensor, edges: Edges) -> torch.Tensor:
        """Radial functions of pairs times their matrices, which are never stored.

        :param x: features of the atoms ``[atoms, num_inputs]``
        :param edges: of the batch
        :return: ``[pairs, num_features]``
        """
        first, last = self.mlp[0], self.mlp[2]
        center_weight, neighbor_weight = first.weight.chunk(2, dim=1)
        hidden = torch.nn.functional.linear(x, center_weight, first.bias)[edges.centers]
        hidden = hidden + torch.nn.functional.linear(x, neighbor_weight)[edges.neighbors]
        hidden = torch.nn.functional.silu(hidden)
        # the last layer and the sum over radial functions in one product
        weight = last.weight.view(self.num_radial, -1, hidden.shape[1]).transpose(1, 2)
        weight = weight.flatten(0, 1)
        mixed: list[torch.Tensor] = []
        chunk = chunk_sizes(x.device)[1]
        for r, h in zip(edges.radial.split(chunk), hidden.split(chunk)):  # noqa: B905
            mixed.append((r.unsqueeze(2) * h.unsqueeze(1)).flatten(1) @ weight)
        return torch.cat(mixed) + edges.radial @ last.bias.view(self.num_radial, -1)


class SpeciesDensity(torch.nn.Module):
    r"""Scalar sums and spherical density of the neighbours, steps 2 to 4 of LOREM
    (arXiv 2507.19382), before the tensor product.

    :param num_species_features: features per species
    :param num_radial: number of radial functions
    :param num_features: scalar features d
    :param max_degree: largest degree L
    :param num_spherical_features: spherical features s
    """

    def __init__(
        self,
        num_species_features: int,
        num_radial: int,
        num_features: int,
        max_degree: int,
        num_spherical_features: int,
    ) -> None:
        super().__init__()
        self.num_channels = num_spherical_features
        self.mixing = RadialMixing(num_species_features, num_radial, num_features)
        self.scalar = linear(num_features, num_features, bias=False)
        self.spherical = linear(num_features, (max_degree + 1) * num_spherical_features, bias=False)
        # in a table of all components times all degrees, the degree that each component has
        degrees = degrees_of_components(max_degree)
        components = torch.arange((max_degree + 1) ** 2)
        self.register_buffer("own_degrees", components * (max_degree + 1) + degrees, False)

    def matrices(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What mixes the radial functions of a pair of species.

        :param embeddings: features of the species ``[species, num_species_features]``
        :return: matrices to the scalar sums ``[species, species * num_radial, d]`` and to the
            coefficients of the density ``[species**2, num_radial, (L + 1) * s]``
        """
        num_species = embeddings.shape[0]
        first = torch.arange(num_species, device=embeddings.device).repeat_interleave(num_species)
        second = torch.arange(num_species, device=embeddings.device).repeat(num_species)
        mixing = self.mixing(embeddings[first], embeddings[second])
        to_scalars = self.scalar(mixing).unflatten(0, [num_species, num_species]).flatten(1, 2)
        return to_scalars, self.spherical(mixing)

    def forward(
        self,
        matrices: tuple[torch.Tensor, torch.Tensor],
        radial: torch.Tensor,
        harmonics: torch.Tensor,
        pairs: PairBlock,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param matrices: from :meth:`matrices`, for the species that occur in the batch
        :param radial: radial functions of the block's pairs ``[pairs, num_radial]``
        :param harmonics: their spherical harmonics ``[pairs, (L + 1)**2]``
        :param pairs: the block
        :return: scalar sums ``[atoms, d]`` and density ``[atoms, (L + 1)**2, s]``
        """
        to_scalars, to_density = matrices
        num_species = to_scalars.shape[0]

        # scalar sums: radial functions are summed per species of neighbour, then mixed
        radial_sums = sum_over_neighbors(radial, pairs.bins, pairs.num_atoms * num_species)
        radial_sums = radial_sums.view(pairs.num_atoms, num_species * radial.shape[1])
        sums = grouped_matmul(radial_sums, pairs.species_sizes, to_scalars)[pairs.ranks]

        # density: a product of matrices for each atom. It couples components to the coefficients
        # of all degrees, of which most are dropped: faster than the outer products of all pairs,
        # which would have to be stored
        coefficients = grouped_matmul(radial, pairs.pair_sizes, to_density)
        coefficients = torch.nn.functional.pad(coefficients, [0, 0, 0, 1])
        coefficients = coefficients.index_select(0, pairs.slots)
        harmonics = harmonics.index_select(0, pairs.slots.clamp(max=pairs.num_pairs - 1))
        slots: list[int] = []
        for size, length in zip(pairs.chunk_sizes, pairs.chunk_lengths):  # noqa: B905
            slots.append(size * length)
        densities: list[torch.Tensor] = []
        chunks = zip(coefficients.split(slots), harmonics.split(slots))  # noqa: B905
        for n, (c, y) in enumerate(chunks):
            shape = [pairs.chunk_sizes[n], pairs.chunk_lengths[n]]
            c = c.view(shape + [coefficients.shape[1]])
            y = y.view(shape + [harmonics.shape[1]])
            density = torch.bmm(y.transpose(1, 2), c).view(shape[0], -1, self.num_channels)
            densities.append(density.index_select(1, self.own_degrees))
        return sums, torch.cat(densities)
