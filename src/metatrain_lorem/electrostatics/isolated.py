"""Coulomb potentials of structures without periodic boundaries: the plain sum over all pairs."""

import torch
from torch.utils.checkpoint import checkpoint

from .padding import group_by_size, padded_index


def row_potentials(
    charges: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    start: int,
    stop: int,
) -> torch.Tensor:
    """
    Potentials of the atoms ``start`` to ``stop`` of each structure.

    :param charges: shape [B, n, C], e
    :param positions: shape [B, n, 3], Angstrom
    :param mask: false for filling, shape [B, n]
    :param start: first atom
    :param stop: atom after the last
    :return: sum of q_j / r_ij, shape [B, stop - start, C], e/Angstrom
    """
    difference = positions[:, start:stop].unsqueeze(2) - positions.unsqueeze(1)
    squared = (difference * difference).sum(dim=-1)
    atom = torch.arange(positions.size(1), device=positions.device)
    same = (atom[start:stop].unsqueeze(1) == atom.unsqueeze(0)).unsqueeze(0)
    # an infinite distance gives an exact zero, in every derivative too
    excluded = same | ~(mask.unsqueeze(1) & mask[:, start:stop].unsqueeze(2))
    return torch.bmm(torch.rsqrt(squared.masked_fill(excluded, float("inf"))), charges)


def isolated_potentials(
    charges: torch.Tensor,
    positions: torch.Tensor,
    structures: list[int],
    first: list[int],
    counts: list[int],
    max_pairs: int,
) -> torch.Tensor:
    """
    Potentials of isolated structures, similar sizes together.

    Work that exceeds ``max_pairs`` pairs is done in portions. In eager mode these are recomputed in
    the backward pass instead of being stored; TorchScript has no means for that and stores four
    numbers per pair.

    :param charges: all atoms of the batch, shape [N, C], e
    :param positions: shape [N, 3], Angstrom
    :param structures: numbers of the isolated structures, none of them empty
    :param first: first atom of every structure of the batch
    :param counts: number of atoms of every structure of the batch
    :param max_pairs: number of pairs evaluated at once
    :return: sum of q_j / r_ij, shape [N, C], zero for atoms of other structures, e/Angstrom
    """
    potentials = torch.zeros_like(charges)
    total = sum([counts[s] * counts[s] for s in structures])
    recompute = total > max_pairs
    for group in group_by_size(structures, [[count] for count in counts]):
        longest = max([counts[s] for s in group])
        together = max(1, max_pairs // (longest * longest))
        rows = max(1, min(longest, max_pairs // longest))
        for begin in range(0, len(group), together):
            members = group[begin : begin + together]
            index, mask = padded_index(
                [first[s] for s in members], [counts[s] for s in members], positions.device
            )
            q = charges[index]
            r = positions[index]
            for start in range(0, index.size(1), rows):
                stop = min(start + rows, index.size(1))
                v = portion(q, r, mask, start, stop, recompute)
                potentials = potentials.index_add(
                    0, index[:, start:stop].flatten(), v.flatten(0, 1)
                )
    return potentials


def portion(
    charges: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    start: int,
    stop: int,
    recompute: bool,
) -> torch.Tensor:
    """
    ``row_potentials``, without storing its intermediate results where that is possible.

    :param recompute: evaluate once more in the backward pass instead of storing
    :return: see ``row_potentials``
    """
    if torch.jit.is_scripting() or not recompute:
        return row_potentials(charges, positions, mask, start, stop)
    else:
        return checkpoint(
            row_potentials, charges, positions, mask, start, stop, use_reentrant=False
        )
