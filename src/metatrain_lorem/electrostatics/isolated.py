"""Potentials of structures without periodic boundaries: the plain sum over all pairs."""

import torch

from ..graph import Graph
from ..indexing import join, recomputed
from ..safe import distances_between_others
from .padding import add_atoms, atoms_of, gather_atoms, group_by_size


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
        recompute = sum([counts[s] * counts[s] for s in structures]) > max_terms
        potentials = torch.zeros_like(charges)
        for group in group_by_size(structures, [[count] for count in counts]):
            longest = max([counts[s] for s in group])
            together = max(1, max_terms // (longest * longest))
            rows = max(1, min(longest, max_terms // longest))
            for begin in range(0, len(group), together):
                members = group[begin : begin + together]
                atoms = atoms_of(members, graph.boundaries, charges.device)
                q, r = gather_atoms(charges, atoms), gather_atoms(graph.positions, atoms)
                v: list[torch.Tensor] = []
                for start in range(0, q.size(1), rows):
                    stop = min(start + rows, q.size(1))
                    if torch.jit.is_scripting() or not recompute:
                        v.append(self.rows(q, r, atoms.mask, start, stop))
                    else:
                        v.append(recomputed(self.rows, q, r, atoms.mask, start, stop))
                if len(counts) == 1:
                    return join(v, 1).squeeze(0)
                potentials = add_atoms(potentials, atoms, join(v, 1))
        return potentials

    def rows(
        self,
        charges: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """
        :param charges: ``[structures, atoms, channels]``, e
        :param positions: ``[structures, atoms, 3]``, Å
        :param mask: false for padding ``[structures, atoms]``, None without
        :param start: first of some atoms
        :param stop: the one after the last
        :return: their potentials ``[structures, rows, channels]``
        """
        own, num_atoms = positions, positions.size(1)
        excluded = torch.eye(stop - start, dtype=torch.bool, device=positions.device)
        if stop - start < num_atoms:
            own = positions[:, start:stop]
            excluded = torch.nn.functional.pad(excluded, [start, num_atoms - stop])
        if mask is not None:
            excluded = excluded | ~(mask.unsqueeze(1) & mask[:, start:stop].unsqueeze(2))
        difference = own.unsqueeze(2) - positions.unsqueeze(1)
        squared = (difference * difference).sum(dim=-1)
        distances = distances_between_others(squared, excluded)
        return torch.bmm(self.potential.from_dist(distances), charges)
