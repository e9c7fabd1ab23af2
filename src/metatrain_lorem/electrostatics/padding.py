"""Groups of structures of similar size, padded to one rectangular array."""

from typing import NamedTuple

import torch

from .boundaries import Boundaries


class PaddedAtoms(NamedTuple):
    """The atoms of some structures of a batch as one array; nothing if that is all of the batch."""

    index: torch.Tensor | None  # [structures, most atoms]
    mask: torch.Tensor | None  # the same shape, false for padding


def group_by_size(structures: list[int], sizes: list[list[int]]) -> list[list[int]]:
    """
    Group structures whose sizes agree within a factor of two, so that padding wastes little.

    :param structures: numbers of the structures to be grouped
    :param sizes: for every structure of the batch the sizes that shall be similar in a group
    :return: groups of structure numbers, at most a few however many structures there are
    """
    groups: dict[str, list[int]] = {}
    for structure in structures:
        key = ""
        for size in sizes[structure]:
            power = 0
            while 2**power < size:
                power += 1
            key = key + str(power) + " "
        if key in groups:
            groups[key].append(structure)
        else:
            groups[key] = [structure]
    return list(groups.values())


def padded_index(
    first: list[int], counts: list[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Indices of contiguous ranges as one array, padded with the first index of each range.

    :param first: first index of each range
    :param counts: number of indices in each range, at least 1
    :param device: where the result shall live
    :return: indices ``[ranges, largest count]``, and a mask that is false on the padding
    """
    start = torch.tensor(first, device=device).unsqueeze(1)
    count = torch.tensor(counts, device=device).unsqueeze(1)
    offset = torch.arange(max(counts), device=device).unsqueeze(0)
    mask = offset < count
    return start + offset * mask, mask


def padded_atoms(
    structures: list[int], boundaries: Boundaries, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param structures: numbers of some structures, none of them empty
    :param boundaries: of the batch
    :param device: where the result shall live
    :return: their atoms, padded, ``[structures, most atoms]``, and a mask that is false on the
        padding
    """
    first = [boundaries.first[s] for s in structures]
    return padded_index(first, [boundaries.counts[s] for s in structures], device)


def atoms_of(structures: list[int], boundaries: Boundaries, device: torch.device) -> PaddedAtoms:
    """:func:`padded_atoms`, or nothing for a batch of one structure.

    :param structures: numbers of some structures, none of them empty
    :param boundaries: of the batch
    :param device: where the result shall live
    :return: their atoms
    """
    if len(boundaries.counts) == 1:
        return PaddedAtoms(index=None, mask=None)
    index, mask = padded_atoms(structures, boundaries, device)
    return PaddedAtoms(index=index, mask=mask)


def gather_atoms(values: torch.Tensor, atoms: PaddedAtoms) -> torch.Tensor:
    """
    :param values: of all atoms of the batch ``[atoms, ...]``
    :param atoms: of some structures
    :return: their values, of padding those of any atom ``[structures, most atoms, ...]``
    """
    index = atoms.index
    return values.unsqueeze(0) if index is None else values[index]


def add_atoms(sums: torch.Tensor, atoms: PaddedAtoms, values: torch.Tensor) -> torch.Tensor:
    """
    :param sums: of all atoms of the batch ``[atoms, ...]``
    :param atoms: of some structures
    :param values: what to add to theirs, zero for padding ``[structures, most atoms, ...]``
    :return: the new sums
    """
    index = atoms.index
    if index is None:
        return sums + values.squeeze(0)
    return sums.index_add(0, index.flatten(), values.flatten(0, 1))
