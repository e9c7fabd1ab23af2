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


def cut(x: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """``x.split(sizes)``, of which autograd does not hear where there is one part only.

    :param x: ``[rows, ...]``
    :param sizes: rows of each part
    :return: the parts
    """
    return [x] if len(sizes) == 1 else list(x.split(sizes))


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """``torch.cat(parts)`` without a copy where there is one part only.

    :param parts: each ``[rows, ...]``
    :return: ``[all rows, ...]``
    """
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
