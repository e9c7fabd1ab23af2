r"""Sums over neighbours: radial mixing by species, scalar sums and the spherical density.

The mixing matrix of a pair depends on its two species only, so it is evaluated once per pair of
species and the linear maps that follow it are folded into it (they commute with the sum over
neighbours). Per pair only a contraction of the radial functions is left.
"""

import torch

from .mlp import MLP, linear
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


def grouped_matmul(x: torch.Tensor, group: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply each row by the matrix of its group.

    :param x: ``[rows, in]``
    :param group: group of each row, 0 ... groups - 1, ``[rows]``
    :param weights: ``[groups, in, out]``
    :return: ``[rows, out]``
    """
    order = torch.argsort(group, stable=True)
    sizes: list[int] = torch.bincount(group, minlength=weights.shape[0]).tolist()
    products: list[torch.Tensor] = []
    for rows, weight in zip(x[order].split(sizes), weights.unbind(0)):  # noqa: B905
        products.append(rows @ weight)
    return torch.cat(products)[torch.argsort(order)]


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
        self.coefficient_shape = [max_degree + 1, num_spherical_features]
        self.mixing = RadialMixing(num_species_features, num_radial, num_features)
        self.scalar = linear(num_features, num_features, bias=False)
        self.spherical = linear(num_features, (max_degree + 1) * num_spherical_features, bias=False)
        self.register_buffer("degrees", degrees_of_components(max_degree), persistent=False)

    def forward(
        self,
        embeddings: torch.Tensor,
        species: torch.Tensor,
        radial: torch.Tensor,
        harmonics: torch.Tensor,
        centers: torch.Tensor,
        neighbors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param embeddings: features of the species ``[num_species, num_species_features]``
        :param species: species of the atoms, 0 ... num_species - 1, ``[atoms]``
        :param radial: radial functions ``[pairs, num_radial]``
        :param harmonics: spherical harmonics ``[pairs, (L + 1)**2]``
        :param centers: central atoms ``[pairs]``
        :param neighbors: neighbours ``[pairs]``
        :return: scalar sums ``[atoms, d]`` and density ``[atoms, (L + 1)**2, s]``
        """
        # of a model for many elements only those that occur are worth their pairs' matrices
        present, species = torch.unique(species, return_inverse=True)
        embeddings = embeddings[present]
        num_species = embeddings.shape[0]
        num_atoms = species.shape[0]
        first = torch.arange(num_species, device=species.device).repeat_interleave(num_species)
        second = torch.arange(num_species, device=species.device).repeat(num_species)
        mixing = self.mixing(embeddings[first], embeddings[second])

        # scalar sums: radial functions are summed per species of neighbour, then mixed
        bins = centers * num_species + species[neighbors]
        radial_sums = sum_over_neighbors(radial, bins, num_atoms * num_species)
        radial_sums = radial_sums.view(num_atoms, num_species * radial.shape[1])
        to_scalars = self.scalar(mixing).view(num_species, radial_sums.shape[1], -1)
        sums = grouped_matmul(radial_sums, species, to_scalars)

        pair_species = species[centers] * num_species + species[neighbors]
        coefficients = grouped_matmul(radial, pair_species, self.spherical(mixing))
        coefficients = coefficients.unflatten(-1, self.coefficient_shape)
        edges = coefficients[:, self.degrees] * harmonics.unsqueeze(-1)
        return sums, sum_over_neighbors(edges, centers, num_atoms)
