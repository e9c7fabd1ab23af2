r"""The short-range part of LOREM: from pairs within the cutoff to atomic features."""

import torch

from .density import SpeciesDensity
from .message_passing import MessagePassing
from .mlp import Update, linear
from .neighbors import SortedPairs
from .radial import RadialBasis
from .spherical import SphericalHarmonics, SphericalNorms
from .tensor_dense import TensorDense


class ShortRange(torch.nn.Module):
    """Steps 1 to 5 and 7 of LOREM (arXiv 2507.19382): one concatenated graph, no structures.

    :param atomic_types: atomic numbers of the species the model knows
    :param cutoff: cutoff radius in Å
    :param cutoff_function: see :class:`RadialBasis`
    :param radial_basis: see :class:`RadialBasis`
    :param num_radial: number of radial functions
    :param num_features: scalar features d
    :param num_species_features: features per species
    :param num_spherical_features: spherical features s
    :param max_degree: largest degree L
    :param num_message_passing: number of message-passing steps
    :param equivariant_message_passing: whether these pass spherical features too
    :param initialize_node_features: whether scalar features start from the species, or from zero
    """

    def __init__(
        self,
        atomic_types: list[int],
        cutoff: float,
        cutoff_function: str,
        radial_basis: str,
        num_radial: int,
        num_features: int,
        num_species_features: int,
        num_spherical_features: int,
        max_degree: int,
        num_message_passing: int,
        equivariant_message_passing: bool,
        initialize_node_features: bool,
    ) -> None:
        super().__init__()
        d, s = num_features, num_spherical_features
        self.num_features = d
        self.initialize_node_features = initialize_node_features

        self.embedding = torch.nn.Embedding(len(atomic_types), num_species_features)
        torch.nn.init.normal_(self.embedding.weight, std=num_species_features**-0.5)
        self.radial = RadialBasis(cutoff, num_radial, radial_basis, cutoff_function)
        self.harmonics = SphericalHarmonics(max_degree)
        if initialize_node_features:
            self.initial: torch.nn.Module = linear(num_species_features, d)
        else:
            self.initial = torch.nn.Identity()
        self.density = SpeciesDensity(num_species_features, num_radial, d, max_degree, s)
        self.neighbor_update = Update(d, d)
        self.density_product = TensorDense(max_degree, s, max_degree, s)
        self.norms = SphericalNorms(max_degree)
        self.norm_update = Update((max_degree + 1) * s, d)
        self.message_passing = torch.nn.ModuleList(
            MessagePassing(num_radial, d, max_degree, s, equivariant_message_passing)
            for _ in range(num_message_passing)
        )

    def forward(
        self,
        species: torch.Tensor,
        vectors: torch.Tensor,
        distances: torch.Tensor,
        pairs: SortedPairs,
        conditioning: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """
        :param species: index of each atom's type in ``atomic_types``, ``[atoms]``
        :param vectors: of the sorted pairs, from central atom to neighbour in Å ``[pairs, 3]``
        :param distances: their lengths ``[pairs]``, none zero
        :param pairs: the sorted pairs
        :param conditioning: to be added to the scalar features at their start ``[atoms, d]``
        :return: scalar features after each stage (density, then each message-passing step), each
            ``[atoms, d]``; spherical features ``[atoms, (L + 1)**2, s]``
        """
        if self.initialize_node_features:
            x = self.initial(self.embedding(species))
        else:
            size = [species.shape[0], self.num_features]
            x = torch.zeros(size, dtype=vectors.dtype, device=vectors.device)
        if conditioning is not None:
            x = x + conditioning
        matrices = self.density.matrices(self.embedding.weight[pairs.present])

        num_atoms = [block.num_atoms for block in pairs.blocks]
        num_pairs = [block.num_pairs for block in pairs.blocks]
        of_atoms = x.split(num_atoms)
        of_vectors, of_distances = vectors.split(num_pairs), distances.split(num_pairs)
        xs: list[torch.Tensor] = []
        rhos: list[torch.Tensor] = []
        radials: list[torch.Tensor] = []
        all_harmonics: list[torch.Tensor] = []
        for n, block in enumerate(pairs.blocks):
            radial = self.radial(of_distances[n])
            harmonics = self.harmonics(of_vectors[n] / of_distances[n].unsqueeze(-1))
            sums, rho = self.density(matrices, radial, harmonics, block)
            rho = self.density_product(rho)
            rhos.append(rho)
            updated = self.neighbor_update(of_atoms[n], sums)
            xs.append(self.norm_update(updated, self.norms(rho)))
            if len(self.message_passing) > 0:
                radials.append(radial)
                all_harmonics.append(harmonics)
        x, rho = torch.cat(xs), torch.cat(rhos)

        stages = [x]
        if len(self.message_passing) > 0:
            radial, harmonics = torch.cat(radials), torch.cat(all_harmonics)
            for step in self.message_passing:
                x, rho = step(x, rho, radial, harmonics, pairs.centers, pairs.neighbors)
                stages.append(x)
        return stages, rho
