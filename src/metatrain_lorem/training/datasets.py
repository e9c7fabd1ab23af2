"""Data sets: their shares for processes, and checks of their labels before training."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from metatensor.learn.data._namedtuple import namedtuple
from metatomic.torch import System
from metatrain.utils.data import TargetInfo
from torch.utils.data import Dataset, Subset


def structure_index(dataset: Dataset, i: int) -> int:
    """
    :param dataset: data set, possibly a subset of a subset
    :param i: index in it
    :return: index in the data set as read from its file
    """
    while isinstance(dataset, Subset):
        i = dataset.indices[i]
        dataset = dataset.dataset
    return int(i)


def split_indices(dataset: Dataset) -> list[list[int]]:
    """
    :param dataset: data set, possibly a subset of a subset
    :return: the indices chosen by each subset, outermost first
    """
    indices = []
    while isinstance(dataset, Subset):
        indices.append([int(i) for i in dataset.indices])
        dataset = dataset.dataset
    return indices


def share(datasets: list[Dataset], rank: int, size: int) -> list[Dataset]:
    """Every ``size``-th structure of each data set: disjoint shares that cover everything once.

    :param datasets: the same on all processes
    :param rank: number of this process
    :param size: number of processes
    :return: the non-empty shares
    """
    shares = [Subset(dataset, range(rank, len(dataset), size)) for dataset in datasets]
    return [part for part in shares if len(part) > 0]


def check_labels(
    datasets: list[Dataset],
    targets: dict[str, TargetInfo],
    split: str,
    device: torch.device,
    also: Callable[[dict[str, Any], int], None] | None = None,
) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """Count the labels and those that are missing (NaN); refuse what cannot be trained on.

    :param datasets: (this process' shares of) the data sets of one split
    :param targets: targets of the model
    :param split: ``"training"`` or ``"validation"``
    :param device: device of the result
    :param also: another check, called with the fields of each structure and its index in the file
    :return: per quantity, i.e. target or gradient, the numbers of missing and of all labels
        ``[2]``; and the number of atoms of each structure of each data set
    :raises ValueError: for an infinite label, and for a structure that :func:`check_structure`
        refuses
    """
    counts = {name: torch.zeros(2, dtype=torch.int64) for name in quantities(targets)}
    num_atoms: list[list[int]] = []
    for dataset in datasets:
        num_atoms.append([])
        for i in range(len(dataset)):
            fields = dataset[i]._asdict()
            num_atoms[-1].append(len(fields["system"]))
            index = structure_index(dataset, i)
            where = f"{index} of the {split} set"
            check_structure(fields["system"], f"Structure {where}")
            if also is not None:
                also(fields, index)
            for target in targets.keys() & fields.keys():
                for block in fields[target].blocks():
                    labels = {target: block.values}
                    for gradient, values in block.gradients():
                        labels[f"{target} {gradient} gradients"] = values.values
                    for name, values in labels.items():
                        if torch.isinf(values).any():
                            raise ValueError(
                                f"Target '{target}' has an infinite label ({name}) in structure "
                                f"{where}. Correct it, or set it to NaN to mark it as missing."
                            )
                        if name in counts:
                            counts[name][0] += torch.isnan(values).sum().cpu()
                            counts[name][1] += values.numel()
    return {name: count.to(device) for name, count in counts.items()}, num_atoms


def check_structure(system: System, name: str) -> None:
    """Refuse structures for which there are no neighbour lists, or no energy.

    :param system: the structure
    :param name: what to call it in errors
    :raises ValueError: for no atoms, coordinates that are not finite, and a cell whose periodic
        vectors are zero or parallel
    """
    if len(system) == 0:
        raise ValueError(f"{name} has no atoms. Remove it.")
    if not (torch.isfinite(system.positions).all() and torch.isfinite(system.cell).all()):
        raise ValueError(
            f"{name} has positions or cell vectors that are NaN or infinite. Correct or remove it."
        )
    periodic = system.cell[system.pbc]
    # the volume, area or length that they span
    spanned = torch.linalg.svdvals(periodic).prod()
    if not spanned > 1e-6 * torch.linalg.vector_norm(periodic, dim=1).prod():
        raise ValueError(
            f"{name} is periodic along cell vectors that are zero, parallel or in one plane: "
            f"{periodic.tolist()}. Correct its cell or its periodic directions."
        )


def warn_of_missing_forces(targets: dict[str, TargetInfo]) -> None:
    """metatrain's reader leaves out all forces if those of one structure are not found.

    :param targets: targets of the model
    """
    for name, info in targets.items():
        is_energy = info.quantity == "energy" or name.split("/")[0] == "energy"
        if not (is_energy and info.is_scalar and info.sample_kind == "system"):
            continue
        if "positions" not in info.gradients:
            logging.warning(
                f"Target '{name}' is trained without forces: none were asked for, or not all "
                "structures have them. If the data have forces, check the `forces` key of the "
                "target, and give NaN for structures without."
            )


def quantities(targets: dict[str, TargetInfo]) -> list[str]:
    """
    :param targets: targets of the model
    :return: names of all targets and of their gradients
    """
    names = []
    for name, info in targets.items():
        names.append(name)
        names.extend(f"{name} {gradient} gradients" for gradient in info.gradients)
    return names


def report_missing(counts: dict[str, torch.Tensor], split: str) -> None:
    """Log how many labels are missing.

    :param counts: numbers of missing and of all labels ``[2]`` per quantity, over all processes
    :param split: ``"training"`` or ``"validation"``
    :raises ValueError: if all labels of a training quantity are missing
    """
    parts = []
    for name, count in counts.items():
        missing, total = count.tolist()
        if total > 0 and missing == total and split == "training":
            raise ValueError(
                f"All {total} labels of '{name}' in the training set are missing (NaN). Check the "
                "data, or remove the target from the options file."
            )
        if missing > 0:
            parts.append(f"{missing} of {total} of {name}")
    if parts:
        logging.info(
            f"Missing labels (NaN) in the {split} set are left out of the loss: {', '.join(parts)}"
        )


class SomeFields(Dataset):
    """Some structures of a data set, with some of its fields.

    :param dataset: the data set
    :param indices: indices of the structures
    :param fields: names of the fields
    """

    def __init__(self, dataset: Dataset, indices: list[int], fields: tuple[str, ...]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.sample_class = namedtuple("Sample", list(fields))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        fields = self.dataset[self.indices[i]]._asdict()
        return self.sample_class(*(fields[name] for name in self.sample_class._fields))


def without_missing(datasets: list[Dataset], targets: dict[str, TargetInfo]) -> list[Dataset]:
    """Leave out the targets of a structure that have missing labels.

    metatrain's least-squares fit of the baseline would turn into NaN as a whole.

    :param datasets: data sets
    :param targets: targets of the model
    :return: data sets in each of which all structures have the same targets, without gaps
    """
    complete: list[Dataset] = []
    for dataset in datasets:
        groups: dict[tuple[str, ...], list[int]] = {}
        for i in range(len(dataset)):
            fields = dataset[i]._asdict()
            names = tuple(
                name
                for name, value in fields.items()
                if name not in targets or not any(b.values.isnan().any() for b in value.blocks())
            )
            groups.setdefault(names, []).append(i)
        complete += [SomeFields(dataset, indices, names) for names, indices in groups.items()]
    return complete
