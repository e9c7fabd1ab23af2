"""Pairs and edges for the tests of the neural building blocks."""

import sys
from dataclasses import dataclass

import torch

from metatrain_lorem import indexing
from metatrain_lorem.nn.density import Edges
from metatrain_lorem.nn.neighbors import PairBlock, Pairs, count_pairs, pair_blocks, sort_pairs

CHUNK_SIZES = indexing.chunk_sizes


def blocks_of_four(device: torch.device) -> tuple[int, int]:
    """For TorchScript, which takes no numbers from outside of a function."""
    return 4, 2


def small_chunks(monkeypatch, block, chunk):
    """Blocks and chunks of few atoms, wherever the model asks for their size."""
    small = blocks_of_four if (block, chunk) == (4, 2) else lambda device: (block, chunk)
    for module in list(sys.modules.values()):
        if getattr(module, "chunk_sizes", None) is CHUNK_SIZES:
            monkeypatch.setattr(module, "chunk_sizes", small)


@dataclass
class SortedPairs:
    """The pairs of a batch in blocks."""

    order: torch.Tensor
    present: torch.Tensor
    blocks: list[PairBlock]


@dataclass
class Graph:
    species: torch.Tensor
    centers: torch.Tensor
    neighbors: torch.Tensor
    radial: torch.Tensor
    harmonics: torch.Tensor

    def sorted(self, num_species: int = 3) -> SortedPairs:
        """The pairs in blocks of atoms."""
        together = torch.stack([self.centers, self.neighbors], dim=1)
        order, keys = sort_pairs(self.species, together, num_species)
        pairs = Pairs(
            centers=self.centers[order],
            neighbors=self.neighbors[order],
            keys=keys,
            species=self.species,
            all_species=self.species,
            num_species=num_species,
        )
        numbers, places = count_pairs(pairs)
        present, blocks = pair_blocks(pairs, numbers.tolist(), places)
        return SortedPairs(order, torch.tensor(present), blocks)

    def edges(self) -> Edges:
        """The pairs as they are."""
        return Edges(
            centers=self.centers,
            neighbors=self.neighbors,
            radial=self.radial,
            harmonics=self.harmonics,
        )
