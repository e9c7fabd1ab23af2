r"""Sums over neighbours: radial mixing by species, scalar sums and the spherical density.

The mixing matrix of a pair depends on its two species only, so it is evaluated once per pair of
species and the linear maps that follow it are folded into it (they commute with the sum over
neighbours). Per pair only a contraction of the radial functions is left.
"""

import copy
from typing import NamedTuple

import torch

from ..indexing import chunk_sizes, chunks, cut, join
from .constants import join_constants, split_constants
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


def grouped_matmul(
    x: torch.Tensor, sizes: list[int], weights: torch.Tensor, padding: int = 0
) -> torch.Tensor:
    """Multiply each row by the matrix of its group.

    :param x: rows of the first group, of the second, ..., ``[rows, in]``
    :param sizes: rows of each group
    :param weights: ``[groups, in, out]``
    :param padding: rows of zeros after the others
    :return: ``[rows + padding, out]``
    """
    products: list[torch.Tensor] = []
    for rows, weight in zip(cut(x, sizes), weights.unbind(0)):  # noqa: B905
        products.append(rows @ weight)
    if padding > 0:
        shape = [padding, weights.shape[2]]
        products.append(torch.zeros(shape, dtype=x.dtype, device=x.device))
    return join(products)


class Edges(NamedTuple):
    """Pairs and what is expanded of them."""

    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    radial: torch.Tensor  # [pairs, num_radial] radial functions
    harmonics: torch.Tensor  # [pairs, (L + 1)**2] spherical harmonics


class RadialMixing(torch.nn.Module):
    """MLP from features of a pair's two atoms to the matrix that mixes its radial functions.

    The first layer's part for each atom is evaluated per atom, or per species.

    :param num_inputs: features per atom
    :param num_radial: number of radial functions
    :param num_features: number of scalar features
    """

    def __init__(self, num_inputs: int, num_radial: int, num_features: int) -> None:
        super().__init__()
        self.num_radial = num_radial
        self.mlp = MLP([2 * num_inputs, num_features, num_radial * num_features])

    def first_layer(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param x: features ``[atoms, num_inputs]``
        :return: what each adds to the hidden features as central atom and as neighbour, each
            ``[atoms, num_features]``
        """
        first = self.mlp[0]
        center_weight, neighbor_weight = first.weight.chunk(2, dim=1)
        center = torch.nn.functional.linear(x, center_weight, first.bias)
        return center, torch.nn.functional.linear(x, neighbor_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: features of the species ``[species, num_inputs]``
        :return: of each two species ``[species, species, num_radial, num_features]``
        """
        center, neighbor = self.first_layer(x)
        hidden = torch.nn.functional.silu(center.unsqueeze(1) + neighbor)
        return self.mlp[2](hidden).unflatten(2, [self.num_radial, -1])

    def edges(self, x: torch.Tensor, edges: Edges) -> torch.Tensor:
        """Radial functions of pairs times their matrices, which are never stored.

        :param x: features of the atoms ``[atoms, num_inputs]``
        :param edges: of the batch
        :return: ``[pairs, num_features]``
        """
        last = self.mlp[2]
        center, neighbor = self.first_layer(x)
        hidden = torch.nn.functional.silu(center[edges.centers] + neighbor[edges.neighbors])
        # the last layer and the sum over radial functions in one product
        weight = last.weight.view(self.num_radial, -1, hidden.shape[1]).transpose(1, 2)
        weight = weight.flatten(0, 1)
        mixed: list[torch.Tensor] = []
        sizes = chunks(hidden.shape[0], chunk_sizes(x.device)[1])
        for r, h in zip(cut(edges.radial, sizes), cut(hidden, sizes)):  # noqa: B905
            mixed.append((r.unsqueeze(2) * h.unsqueeze(1)).flatten(1) @ weight)
        return join(mixed) + edges.radial @ last.bias.view(self.num_radial, -1)


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
        none = torch.zeros(2, 0, 0, 0, 0)
        self.register_buffer("folded_scalars", none, persistent=False)
        self.register_buffer("folded_spherical", none, persistent=False)

    def fold_species(self, embeddings: torch.Tensor) -> None:
        """Keep the matrices of all species: for evaluation only, later changes of weights have no
        effect.

        :param embeddings: features of all species ``[species, num_species_features]``
        """
        double = copy.deepcopy(self).to(torch.float64)
        to_scalars, to_density = double.matrices(embeddings.detach().to(torch.float64))
        size = [len(embeddings), len(embeddings)]
        scalars = split_constants(to_scalars.detach().unflatten(1, [size[1], -1]))
        spherical = split_constants(to_density.detach().unflatten(0, size))
        self.folded_scalars = scalars.to(embeddings.dtype)
        self.folded_spherical = spherical.to(embeddings.dtype)

    def matrices_of(
        self, embeddings: torch.Tensor, present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`matrices` of some species, folded or not.

        :param embeddings: features of all species ``[species, num_species_features]``
        :param present: numbers of those that occur, in ascending order ``[species that occur]``
        :return: see :meth:`matrices`
        """
        every = len(present) == len(embeddings)
        if self.folded_scalars.shape[1] == 0:
            return self.matrices(embeddings if every else embeddings[present])
        to_scalars = join_constants(self.folded_scalars, embeddings.dtype)
        to_density = join_constants(self.folded_spherical, embeddings.dtype)
        if not every:
            to_scalars = to_scalars[present][:, present]
            to_density = to_density[present][:, present]
        return to_scalars.flatten(1, 2), to_density.flatten(0, 1)

    def matrices(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What mixes the radial functions of a pair of species.

        :param embeddings: features of the species ``[species, num_species_features]``
        :return: matrices to the scalar sums ``[species, species * num_radial, d]`` and to the
            coefficients of the density ``[species**2, num_radial, (L + 1) * s]``
        """
        mixing = self.mixing(embeddings)
        return self.scalar(mixing).flatten(1, 2), self.spherical(mixing).flatten(0, 1)

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
        :param harmonics: spherical harmonics of the pairs in all slots ``[(L + 1)**2, slots]``
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
        coefficients = grouped_matmul(radial, pairs.pair_sizes, to_density, padding=1)
        coefficients = coefficients.index_select(0, pairs.slots)
        slots: list[int] = []
        for size, length in zip(pairs.chunk_sizes, pairs.chunk_lengths):  # noqa: B905
            slots.append(size * length)
        densities: list[torch.Tensor] = []
        all_harmonics = cut(harmonics, slots, 1)
        for n, c in enumerate(cut(coefficients, slots)):
            shape = [pairs.chunk_sizes[n], pairs.chunk_lengths[n]]
            y = all_harmonics[n].unflatten(1, shape).transpose(0, 1)
            density = torch.bmm(y, c.view(shape + [c.shape[1]]))
            density = density.view(shape[0], -1, self.num_channels)
            densities.append(density.index_select(1, self.own_degrees))
        return sums, join(densities)
