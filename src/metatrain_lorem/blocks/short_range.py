r"""The short-range part of LOREM: from pairs within the cutoff to atomic features."""

import torch

from ..documentation import ModelHypers
from ..graph import Graph
from ..indexing import cut, join
from ..nn.density import Edges, SpeciesDensity
from ..nn.message_passing import MessagePassing
from ..nn.mlp import Update, linear
from ..nn.radial import RadialBasis
from ..nn.spherical import SphericalHarmonics, SphericalNorms
from ..nn.tensor_dense import TensorDense

MOST_FOLDED = 16
"""Species up to which an exported model holds what mixes the radial functions of each two, 24 kB;
with more of them, it is evaluated for those that occur."""


class ShortRange(torch.nn.Module):
    """Steps 1 to 5 and 7 of LOREM (arXiv 2507.19382): one concatenated graph, no structures.

    :param hypers: of the model
    :param num_species: number of species that the model knows
    """

    def __init__(self, hypers: ModelHypers, num_species: int) -> None:
        super().__init__()
        d, s = int(hypers["num_features"]), int(hypers["num_spherical_features"])
        num_species_features = int(hypers["num_species_features"])
        max_degree, num_radial = int(hypers["max_degree"]), int(hypers["num_radial"])
        self.num_features = d
        self.initialize_node_features: bool = hypers["initialize_node_features"]

        self.embedding = torch.nn.Embedding(num_species, num_species_features)
        torch.nn.init.normal_(self.embedding.weight, std=num_species_features**-0.5)
        self.radial = RadialBasis(
            float(hypers["cutoff"]), num_radial, hypers["radial_basis"], hypers["cutoff_function"]
        )
        self.register_buffer("folded_initial", torch.zeros(0, d), persistent=False)
        self.harmonics = SphericalHarmonics(max_degree)
        if self.initialize_node_features:
            self.initial: torch.nn.Module = linear(num_species_features, d)
        else:
            self.initial = torch.nn.Identity()
        self.density = SpeciesDensity(num_species_features, num_radial, d, max_degree, s)
        self.neighbor_update = Update(d, d)
        self.density_product = TensorDense(max_degree, s, max_degree, s)
        self.norms = SphericalNorms(max_degree, hypers["norms"], s)
        self.norm_update = Update((max_degree + 1) * s, d)
        self.message_passing = torch.nn.ModuleList(
            MessagePassing(hypers) for _ in range(int(hypers["num_message_passing"]))
        )

    def fold(self) -> None:
        """Evaluate what depends on species only, unless there are many: for evaluation only."""
        if self.embedding.num_embeddings <= MOST_FOLDED:
            self.density.fold_species(self.embedding.weight)
            if self.initialize_node_features:
                self.folded_initial = self.initial(self.embedding.weight).detach()

    def forward(
        self, graph: Graph, conditioning: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """
        :param graph: of the batch
        :param conditioning: to be added to the scalar features at their start ``[atoms, d]``
        :return: scalar features after each stage (density, then each message-passing step), each
            ``[atoms, d]``; spherical features ``[atoms, (L + 1)**2, s]``
        """
        if len(self.folded_initial) > 0:
            x = self.folded_initial.index_select(0, graph.species)
        elif self.initialize_node_features:
            x = self.initial(self.embedding(graph.species))
        else:
            size = [graph.species.shape[0], self.num_features]
            x = torch.zeros(size, dtype=graph.vectors.dtype, device=graph.vectors.device)
        if conditioning is not None:
            x = x + conditioning
        matrices = self.density.matrices_of(self.embedding.weight, graph.present)

        num_atoms = [block.num_atoms for block in graph.blocks]
        num_pairs = [block.num_pairs for block in graph.blocks]
        x_blocks = cut(x, num_atoms)
        vectors, distances = cut(graph.vectors, num_pairs), cut(graph.distances, num_pairs)
        xs: list[torch.Tensor] = []
        rhos: list[torch.Tensor] = []
        radials: list[torch.Tensor] = []
        all_harmonics: list[torch.Tensor] = []
        for n, block in enumerate(graph.blocks):
            radial = self.radial(distances[n])
            # padding is any pair
            slots = block.slots.clamp(max=block.num_pairs - 1)
            directions = (vectors[n] / distances[n].unsqueeze(-1)).T
            if len(self.message_passing) > 0:
                harmonics = self.harmonics.components(directions)
                radials.append(radial)
                all_harmonics.append(harmonics)
                harmonics = harmonics.index_select(1, slots)
            else:
                harmonics = self.harmonics.components(directions.index_select(1, slots))
            sums, rho = self.density(matrices, radial, harmonics, block)
            rho = self.density_product(rho)
            rhos.append(rho)
            updated = self.neighbor_update(x_blocks[n], sums)
            xs.append(self.norm_update(updated, self.norms(rho)))
        x, rho = join(xs), join(rhos)

        stages = [x]
        if len(self.message_passing) > 0:
            edges = Edges(
                centers=graph.centers,
                neighbors=graph.neighbors,
                radial=torch.cat(radials),
                harmonics=torch.cat(all_harmonics, dim=1).T,
            )
            for step in self.message_passing:
                x, rho = step(x, rho, edges)
                stages.append(x)
        return stages, rho
