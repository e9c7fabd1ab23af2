"""Potentials of structures without periodic boundaries: the plain sum over all pairs."""

import torch

from ..graph import Graph
from ..indexing import recomputed
from ..safe import distances_between_others
from .padding import group_by_size, padded_atoms


class IsolatedSum(torch.nn.Module):
    """Potentials of isolated structures, similar sizes together.

    Work that exceeds a number of pairs is done in chunks of rows. In eager mode these are
    recomputed in the backward pass instead of being stored; TorchScript stores a few numbers per
    pair.

    :param potential: interaction, of torch-pme
    """

    def __init__(self, potential: torch.nn.Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(
        self, charges: torch.Tensor, graph: Graph, structures: list[int], max_terms: int
    ) -> torch.Tensor:
        """
        :param charges: ``[atoms, channels]``, e
        :param graph: of the batch
        :param structures: numbers of the isolated structures, none of them empty
        :param max_terms: number of pairs evaluated at once
        :return: potentials ``[atoms, channels]``, zero for atoms of other structures
        """
        counts = graph.boundaries.counts
        potentials = torch.zeros_like(charges)
        recompute = sum([counts[s] * counts[s] for s in structures]) > max_terms
        for group in group_by_size(structures, [[count] for count in counts]):
            longest = max([counts[s] for s in group])
            together = max(1, max_terms // (longest * longest))
            rows = max(1, min(longest, max_terms // longest))
            for begin in range(0, len(group), together):
                members = group[begin : begin + together]
                index, mask = padded_atoms(members, graph.boundaries, charges.device)
                q, r = charges[index], graph.positions[index]
                for start in range(0, index.size(1), rows):
                    chunk = torch.arange(
                        start, min(start + rows, index.size(1)), device=charges.device
                    )
                    if torch.jit.is_scripting() or not recompute:
                        v = self.rows(q, r, mask, chunk)
                    else:
                        v = recomputed(self.rows, q, r, mask, chunk)
                    atoms = index.index_select(1, chunk).flatten()
                    potentials = potentials.index_add(0, atoms, v.flatten(0, 1))
        return potentials

    def rows(
        self,
        charges: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        chunk: torch.Tensor,
    ) -> torch.Tensor:
        """
        :param charges: ``[structures, atoms, channels]``, e
        :param positions: ``[structures, atoms, 3]``, Å
        :param mask: false for padding ``[structures, atoms]``
        :param chunk: some atoms ``[rows]``
        :return: their potentials ``[structures, rows, channels]``
        """
        others = positions.unsqueeze(1)
        difference = positions.index_select(1, chunk).unsqueeze(2) - others
        squared = (difference * difference).sum(dim=-1)
        atom = torch.arange(positions.size(1), device=positions.device)
        same = (chunk.unsqueeze(1) == atom.unsqueeze(0)).unsqueeze(0)
        excluded = same | ~(mask.unsqueeze(1) & mask.index_select(1, chunk).unsqueeze(2))
        distances = distances_between_others(squared, excluded)
        return torch.bmm(self.potential.from_dist(distances), charges)
