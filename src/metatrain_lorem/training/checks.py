"""One pass over all structures and labels before the first step."""

import logging
from typing import Any

import torch
from ase.data import chemical_symbols
from metatomic.torch import System
from metatrain.utils.abc import ModelInterface
from metatrain.utils.data import TargetInfo
from torch.utils.data import Dataset

from ..heads.response import check_derived
from .datasets import share, structure_index
from .digits import LARGEST_LABEL, Digits
from .distributed import Processes
from .files import Run, take_run
from .label_spread import LabelSpread
from .memory import Size
from .total_charges import TOTAL_CHARGE, TotalChargeCheck
from .unscaled import (
    check_born_charges,
    check_dipole,
    warn_of_unused_dipoles,
)


def check_data(
    model: ModelInterface,
    train_datasets: list[Dataset],
    val_datasets: list[Dataset],
    processes: Processes,
) -> tuple[list[list[Size]], bool, list[Digits], LabelSpread]:
    """Refuse structures and labels that cannot be used, before anything is trained.

    :param model: the model
    :param train_datasets: training sets
    :param val_datasets: validation sets
    :param processes: each looks at its share
    :return: sizes of the structures in this process' shares of the training sets, whether
        training labels are missing, what single precision may take from both sets, and how far
        training labels without scale spread
    :raises ValueError: naming set, structure and quantity; also for the test sets, if ``mtt train``
        has read any
    """
    readout = model.readout
    check_derived(readout.polarization_outputs(), readout.derived, model.dataset_info)
    run = take_run(train_datasets)
    splits = {"training": train_datasets, "validation": val_datasets}
    if run is not None:
        splits["test"] = run.test_sets(train_datasets)
        warn_of_ignored_charges(run, model)
    elements, all_sizes, missing = Elements(model), [], False
    spread = LabelSpread(model)
    all_digits = []
    for split, datasets in splits.items():
        training = split == "training"
        labels = LabelCheck(model.dataset_info.targets, split)
        total_charges = TotalChargeCheck.of(model, split)
        digits = Digits(model, split)
        for part in share(datasets, processes.rank, processes.size):
            name = set_name(part, split, run)
            sizes = []
            for i in range(len(part)):
                fields, index = part[i]._asdict(), structure_index(part, i)
                system, structure = fields["system"], f"Structure {index} of {name}"
                check_structure(system, structure)
                has_labels = labels.add(fields, structure)
                total_charges.add(fields, index)
                if training:
                    spread.add(fields)
                digits.add(fields, f"s{structure[1:]}")
                if model.readout.charge_dipole is not None:
                    check_dipole(fields, structure)
                check_born_charges(fields, structure, model.total_charge)
                if not training:
                    elements.check(system, structure)
                elif has_labels:
                    elements.add(system)
                sizes.append(Size.of(system))
            if training:
                all_sizes.append(sizes)
        missing_here = labels.finish(processes)
        lowest, highest = total_charges.finish(processes)
        if split != "test":
            all_digits.append(digits)
        if training:
            missing = missing_here
            elements.join(processes)
            if lowest <= highest:
                known = model.total_charge_range
                known[0], known[1] = min(lowest, float(known[0])), max(highest, float(known[1]))
    elements.warn()
    if not any(len(dataset) > 0 for dataset in val_datasets):
        logging.info("The validation set is empty: the last model counts as the best")
    warn_of_unused_dipoles(model)
    warn_of_missing_forces(model.dataset_info.targets)
    warn_of_missing_units(model.dataset_info.targets, train_datasets, run)
    return all_sizes, missing, all_digits, spread


def set_name(dataset: Dataset, split: str, run: Run | None) -> str:
    """
    :param dataset: data set, possibly a subset
    :param split: ``"training"``, ``"validation"`` or ``"test"``
    :param run: of ``mtt train``, if it is one
    :return: what errors call it; sets count from 0, as in metatrain's log
    """
    section = None if run is None else run.section_of(dataset)
    if section is None:
        return f"the {split} set"
    number = "" if section.number is None else f" {section.number}"
    return f"the {split} set{number} ({section.path})"


class Elements:
    """Elements that are trained, and others in validation and test sets.

    :param model: the model
    """

    def __init__(self, model: ModelInterface) -> None:
        self.types = set(model.atomic_types)
        # a model that was trained before knows its elements, unless they or a target are new
        self.known = self.types - set(model.new_types)
        if model.scaler.new_outputs:
            self.known = set()

    def add(self, system: System) -> None:
        """
        :param system: a training structure with labels
        """
        self.known.update(system.types.tolist())

    def join(self, processes: Processes) -> None:
        """
        :param processes: each has added the structures of its share
        """
        self.known = set().union(*processes.gather(self.known))

    def check(self, system: System, structure: str) -> None:
        """
        :param system: a structure of a validation or test set
        :param structure: what to call it in errors
        :raises ValueError: for an element that is not trained
        """
        unknown = sorted(set(system.types.tolist()) - self.known)
        if unknown:
            raise ValueError(
                f"{structure} has {symbols(unknown)}, which no training structure with labels has: "
                "the model cannot learn it. Move such structures to the training set, or leave "
                "them out."
            )

    def warn(self) -> None:
        """Log elements of the model that no structure has, as ``atomic_types`` may name some."""
        untrained = sorted(self.types - self.known)
        if untrained:
            logging.warning(
                f"No training structure with labels has {symbols(untrained)}, which the model is "
                "made for: do not use it for them"
            )


def symbols(types: list[int]) -> str:
    """
    :param types: atomic numbers
    :return: chemical symbols, in words
    """
    return ", ".join(
        chemical_symbols[t] if 0 < t < len(chemical_symbols) else f"atomic type {t}" for t in types
    )


class LabelCheck:
    """Counts the labels of a split and those that are missing (NaN).

    :param targets: targets of the model
    :param split: ``"training"``, ``"validation"`` or ``"test"``
    """

    def __init__(self, targets: dict[str, TargetInfo], split: str) -> None:
        self.targets = targets
        self.split = split
        self.counts = {name: torch.zeros(2, dtype=torch.int64) for name in quantities(targets)}

    def add(self, fields: dict[str, Any], structure: str) -> bool:
        """
        :param fields: structure, labels and extra data
        :param structure: what to call it in errors
        :return: whether it has any label
        :raises ValueError: for an infinite label
        """
        has_labels = False
        for target in self.targets.keys() & fields.keys():
            for block in fields[target].blocks():
                labels = {target: block.values}
                for gradient, values in block.gradients():
                    labels[f"{target} {gradient} gradients"] = values.values
                for name, values in labels.items():
                    if torch.isinf(values).any():
                        raise ValueError(
                            f"Target '{target}' has an infinite label ({name}) in s{structure[1:]}."
                            " Correct it, or set it to NaN to mark it as missing."
                        )
                    if (values.abs() > LARGEST_LABEL).any():
                        largest = float(values.nan_to_num().abs().max())
                        raise ValueError(
                            f"Target '{target}' has a label of size {largest:g} ({name}) in "
                            f"s{structure[1:]}, whose square single precision cannot hold. Correct "
                            "it, or set it to NaN to mark it as missing."
                        )
                    num_missing = int(torch.isnan(values).sum())
                    has_labels = has_labels or num_missing < values.numel()
                    if name in self.counts:
                        self.counts[name] += torch.tensor([num_missing, values.numel()])
        return has_labels

    def finish(self, processes: Processes) -> bool:
        """Log how many labels are missing.

        :param processes: each has added the structures of its share
        :return: whether any label is missing
        :raises ValueError: if all labels of a training quantity are
        """
        parts = []
        for name, count in self.counts.items():
            missing, total = processes.sum(count.to(processes.device)).tolist()
            if total > 0 and missing == total and self.split == "training":
                raise ValueError(
                    f"All {total} labels of '{name}' in the training set are missing (NaN). Check "
                    "the data, or remove the target from the options file."
                )
            if missing > 0:
                parts.append(f"{missing} of {total} of {name}")
        if parts:
            logging.info(
                f"Missing labels (NaN) in the {self.split} set are left out of the loss: "
                f"{', '.join(parts)}"
            )
        return len(parts) > 0


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


def warn_of_missing_units(
    targets: dict[str, TargetInfo], train_datasets: list[Dataset], run: Run | None
) -> None:
    """Engines cannot convert what has no unit.

    :param targets: targets of the model
    :param train_datasets: training sets
    :param run: of ``mtt train``, if it is one
    """
    for name, info in targets.items():
        if info.unit:
            continue
        sets = [
            set_name(dataset, "training", run)
            for dataset in train_datasets
            if len(dataset) > 0 and name in dataset[0]._fields
        ]
        where = f"target '{name}'" + (f" of {sets[0]}" if sets else "")
        if name.split("/")[0] == "energy":  # what engines look for
            logging.warning(
                f"No `unit` is given for {where}: engines get its numbers as they are, whatever "
                "their unit, and ASE takes them for eV. Write `unit: eV`, or what the data have, "
                "under the target."
            )
        else:
            logging.info(f"No `unit` is given for {where}: its predictions will have none")


def warn_of_ignored_charges(run: Run, model: ModelInterface) -> None:
    """Say where files hold total charges that the options do not ask for.

    :param run: of ``mtt train``
    :param model: the model
    """
    for section in run.sections:
        if not section.charges:
            continue
        index, charge = next(iter(section.charges.items()))
        if TOTAL_CHARGE in model.requested_inputs() or model.readout.has_charges:
            effect = f"the model takes {model.total_charge:g} e for all"
        else:
            effect = "the model does not know of it"
        logging.warning(
            f"{len(section.charges)} of {len(section.dataset)} structures of {section} have a "
            f"total charge (structure {index}: {charge:g} e) that the options do not ask for: "
            f"{effect}. Add `extra_data: {TOTAL_CHARGE}`, see the documentation of total charges, "
            "or correct the file."
        )
