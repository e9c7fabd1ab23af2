"""What the best value of a run was found with, by which a restart knows it again."""

import zlib
from typing import Any

import torch
from metatrain.utils.data import TargetInfo
from torch.utils.data import Dataset

from .datasets import share
from .distributed import Processes
from .hypers import TrainerHypers


def basis_of_comparison(
    hypers: TrainerHypers,
    targets: dict[str, TargetInfo],
    train_datasets: list[Dataset],
    val_datasets: list[Dataset],
    processes: Processes,
) -> dict[str, Any]:
    """
    :param hypers: of the trainer
    :param targets: of the model
    :param train_datasets: training sets, the same on all processes
    :param val_datasets: validation sets, the same on all processes
    :param processes: each looks at its share of the data
    :return: by name, what has to be equal for best values to be comparable
    """
    basis = {
        "training set": _fingerprint(train_datasets, processes),
        "validation set": _fingerprint(val_datasets, processes),
        "targets": {name: sorted(targets[name].gradients) for name in sorted(targets)},
        "best_model_metric": hypers["best_model_metric"],
        "per_structure_targets": hypers["per_structure_targets"],
    }
    if hypers["best_model_metric"] == "loss":
        basis["loss"] = hypers["loss"]
    return basis


def _fingerprint(datasets: list[Dataset], processes: Processes) -> int:
    """A number that depends on all structures and labels, not on their order."""
    total = torch.zeros(1, dtype=torch.int64)
    for dataset in share(datasets, processes.rank, processes.size):
        for i in range(len(dataset)):
            total += _checksum(dataset[i]._asdict())
    return int(processes.sum(total.to(processes.device)))


def _checksum(fields: dict[str, Any]) -> int:
    """Of one structure, its labels and extra data."""
    system = fields["system"]
    tensors = [system.types, system.positions, system.cell, system.pbc]
    for name in sorted(fields.keys() - {"system"}):
        for block in fields[name].blocks():
            tensors.append(block.values)
            tensors += [gradient.values for _, gradient in block.gradients()]
    checksum = 0
    for tensor in tensors:
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), checksum)
    return checksum
