"""Estimate of the memory that a training step needs, before the first step."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

ADVICE = (
    "Reduce `batch_size` or `max_atoms_per_batch` (training), or `cutoff`, `num_features`, "
    "`num_spherical_features` or `max_degree` (model)."
)


def check_memory(run: Callable[[], None], scale: float, fixed: int, device: torch.device) -> None:
    """Log the memory of a training step, from what autograd keeps for the largest structure.

    :param run: forward pass and loss of the largest structure
    :param scale: atoms of the largest batch, divided by those of the largest structure
    :param fixed: bytes of parameters, their gradients and moments
    :param device: device of the model
    :raises RuntimeError: if the estimate exceeds the free memory
    """
    free = available_memory(device)
    limit = float("inf") if free is None else (free - fixed) / scale
    try:
        saved = saved_bytes(run, limit)
    except MemoryError as error:
        raise RuntimeError(
            f"A training step needs more than the {_readable(free)} of memory that are free on "
            f"{device}. {ADVICE}"
        ) from error
    # the backward pass adds temporaries, some ten per cent to a half of this
    logging.info(
        f"The largest training batch needs at least {_readable(scale * saved + fixed)} of memory "
        f"on {device}" + ("" if free is None else f", where {_readable(free)} are free")
    )


def saved_bytes(run: Callable[[], None], limit: float = float("inf")) -> int:
    """
    :param run: function that builds a graph for a backward pass
    :param limit: bytes at which to give up, before the machine does
    :return: bytes of all tensors that autograd saves for the backward pass
    :raises MemoryError: if there are more than ``limit``
    """
    sizes: dict[int, int] = {}
    total = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        # several operations may save the same memory
        if storage.data_ptr() not in sizes:
            sizes[storage.data_ptr()] = storage.nbytes()
            total += storage.nbytes()
        if total > limit:
            raise MemoryError
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return total


def available_memory(device: torch.device) -> int | None:
    """
    :param device: CPU or CUDA device
    :return: free memory in bytes, for one of the processes on this machine; None if unknown
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    # a container's limit, where there is one; its page cache can be given up
    limit, usage = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat")
    if limit.exists() and limit.read_text().strip() != "max":
        used = dict(line.split() for line in usage.read_text().splitlines())
        free = min(free, int(limit.read_text()) - int(used["anon"]))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _readable(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB"
