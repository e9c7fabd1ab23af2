"""Counting, prefix sums and chunks, which several parts of the model share."""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

recomputed = partial(checkpoint, use_reentrant=False)
"""``recomputed(function, *arguments)`` evaluates the function once more in the backward pass
instead of storing what lies between. Eager mode only: TorchScript has no means for that."""


def chunk_sizes(device: torch.device) -> tuple[int, int]:
    """
    :param device: of the arrays
    :return: atoms of a block, whose pairs are stored in one array: such arrays stay below the
        32 MB beyond which the C library asks for new memory each time; and atoms of a chunk, of
        which a block has a whole number: what is computed for one stays in a processor's cache
    """
    if device.type == "cpu":
        return 2048, 256
    return 131072, 16384


def chunks(size: int, chunk: int) -> list[int]:
    """
    :param size: number of rows
    :param chunk: of as many as possible of the parts
    :return: numbers of rows of the parts, which sum to ``size``
    """
    return [min(chunk, size - start) for start in range(0, max(size, 1), chunk)]


def cut(x: torch.Tensor, sizes: list[int], dim: int = 0) -> list[torch.Tensor]:
    """``x.split(sizes, dim)``, of which autograd does not hear where there is one part only.

    :param x: ``[..., rows, ...]``
    :param sizes: rows of each part
    :param dim: the dimension of the rows
    :return: the parts
    """
    return [x] if len(sizes) == 1 else list(x.split(sizes, dim))


def join(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """``torch.cat(parts, dim)`` without a copy where there is one part only.

    :param parts: each ``[..., rows, ...]``
    :param dim: the dimension of the rows
    :return: ``[..., all rows, ...]``
    """
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def sum_systems(values: torch.Tensor, system_index: torch.Tensor, num_systems: int) -> torch.Tensor:
    """
    :param values: of the atoms ``[atoms, ...]``
    :param system_index: structure of each atom ``[atoms]``
    :param num_systems: number of structures
    :return: sums over the atoms of each structure ``[systems, ...]``
    """
    if num_systems == 1:
        return values.sum(dim=0, keepdim=True)
    shape = [num_systems] + list(values.shape[1:])
    zeros = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return zeros.index_add(0, system_index, values)


def of_systems(values: torch.Tensor, system_index: torch.Tensor) -> torch.Tensor:
    """
    :param values: of the structures ``[systems, ...]``
    :param system_index: structure of each atom ``[atoms]``
    :return: of the structure of each atom ``[atoms, ...]``, or ``[1, ...]`` where there is one only
    """
    return values if values.shape[0] == 1 else values.index_select(0, system_index)


def occurrences(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """How often each number occurs; unlike ``torch.bincount`` without stopping a GPU.

    :param numbers: integers, 0 ... size - 1, ``[n]``
    :param size: number of different ones
    :return: ``[size]``
    """
    zeros = torch.zeros(size, dtype=numbers.dtype, device=numbers.device)
    return zeros.index_add(0, numbers, torch.ones_like(numbers))


def starts(counts: torch.Tensor) -> torch.Tensor:
    """
    :param counts: members of each group ``[groups]``
    :return: how many come before each group ``[groups]``
    """
    return counts.cumsum(0) - counts


def host_starts(counts: list[int]) -> list[int]:
    """
    :param counts: members of each group
    :return: how many come before each group and, at the end, all of them
    """
    first: list[int] = [0]
    for count in counts:
        first.append(first[-1] + count)
    return first
