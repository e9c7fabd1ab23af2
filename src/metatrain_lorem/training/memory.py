"""Estimate of the memory that a training step needs, before the first step."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from metatomic.torch import System
from torch.utils.data import Dataset

from .batches import Batch, join
from .datasets import share, structure_index
from .epoch import Evaluator, naming_structures

ADVICE = (
    "Reduce `batch_size` or `max_atoms_per_batch` (training), or `cutoff`, `num_features`, "
    "`num_spherical_features` or `max_degree` (model). A molecule needs no periodic box."
)


class Size(NamedTuple):
    """What the memory of a structure depends on."""

    atoms: int
    volume: float  # of the cell of its sum over k in cubed units of length, zero if isolated

    @classmethod
    def of(cls, system: System) -> "Size":
        """
        :param system: the structure
        """
        vectors = system.cell[system.pbc]
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        spanned = float(torch.linalg.svdvals(vectors).prod())
        if len(vectors) < 2:
            return cls(len(system), 0.0)
        # slabs get a cell of four times the longest vector
        return cls(len(system), spanned * (4.0 * float(lengths.max()) if len(vectors) == 2 else 1))


def estimate_memory(
    evaluator: Evaluator,
    train_datasets: list[Dataset],
    sizes: list[list[Size]],
    batch_size: int,
    max_atoms: int | None,
) -> None:
    """Log the memory of a training step, from what autograd keeps for the structure of most atoms
    (as many as fill a batch) and for that of the largest cell.

    :param evaluator: model and loss
    :param train_datasets: training sets, prepared
    :param sizes: of the structures in this process' shares of them
    :param batch_size: structures per batch
    :param max_atoms: atoms per batch, instead of ``batch_size``
    :raises RuntimeError: if the estimate exceeds the free memory
    """
    model, processes = evaluator.model, evaluator.processes
    shares = share(train_datasets, processes.rank, processes.size)
    most = max_atoms
    if most is None:
        most = max(sum(sorted(size.atoms for size in part)[-batch_size:]) for part in sizes)
    usable = [
        (size, dataset, i)
        for dataset, part in enumerate(sizes)
        for i, size in enumerate(part)
        if size.atoms <= most
    ]
    if not usable:
        return
    # parameters, gradients and two moments
    fixed = 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = available_memory(processes.device, processes.per_machine)
    targets = list(model.dataset_info.targets)
    largest = max(usable)
    widest = max(usable, key=lambda structure: structure[0].volume)
    needed = 0.0
    for (size, dataset, i), scale in [(largest, most / largest[0].atoms), (widest, 1.0)]:
        index, system = structure_index(shares[dataset], i), shares[dataset][i].system
        batch = join([shares[dataset][i]], targets)

        def run(batch: Batch = batch, index: int = index) -> None:
            with naming_structures([index], "training"):
                predicted = evaluator.predict(batch, is_training=True)
            evaluator.loss.values_and_counts(*predicted[1:])

        limit = float("inf") if free is None else (free - fixed) / scale
        try:
            needed = max(needed, scale * saved_bytes(run, limit))
        except MemoryError as error:
            cell = "" if size.volume == 0 else f" in the cell {system.cell.tolist()}"
            raise RuntimeError(
                f"A training step needs more than the {readable(free)} of memory that are free on "
                f"{processes.device}, with structures like number {index} of the training set "
                f"({size.atoms} atoms{cell}). {ADVICE}"
            ) from error
        if widest is largest and scale >= 1.0:
            break
    # the backward pass adds temporaries, some ten per cent to a half of this
    logging.info(
        f"The largest training batch needs at least {readable(needed + fixed)} of memory "
        f"on {processes.device}" + ("" if free is None else f", where {readable(free)} are free")
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


def available_memory(device: torch.device, sharing: int) -> int | None:
    """
    :param device: CPU or CUDA device
    :param sharing: number of processes that share the memory of the CPU
    :return: free memory in bytes, for one of these processes; None if unknown
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
    return free // sharing


def readable(size: float) -> str:
    """
    :param size: bytes
    :return: the same with a unit
    """
    return f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB"
