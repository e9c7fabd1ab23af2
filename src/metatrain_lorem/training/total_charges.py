"""Total charges of structures: defaults in batches, and checks of the data before training."""

import logging
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System
from metatrain.utils.abc import ModelInterface
from metatrain.utils.data import TargetInfo

from ..heads.charges import ATOMIC_CHARGE
from .distributed import Processes

TOTAL_CHARGE = "charge"
"""Name of the extra data and of the model's input."""
TOLERANCE = 0.01
"""Largest difference in e between the sum of a structure's atomic charges and its total charge.

More than what the digits of a file and the integration grids of charge partitions leave; less than
what a wrong total charge makes.
"""

OUTLIER = 10.0
"""A total charge is named if it is further from the median of its split than this number times
(1 e + the median of such distances): that of ions in data of neutral molecules is not, those of
mistakes mostly are."""

TensorMaps = dict[str, TensorMap]


def check_layout(info: TargetInfo) -> None:
    """
    :param info: description of the total charges among the extra data
    :raises ValueError: unless they are one number per structure
    """
    if info.sample_kind != "system" or not info.is_scalar or info.layout.block().shape[1] != 1:
        raise ValueError(
            f"extra_data: {TOTAL_CHARGE} is the total charge, one number per structure (type: "
            "scalar, sample_kind: system, num_subtargets: 1). Reference charges of atoms are the "
            f"target {ATOMIC_CHARGE}."
        )


def fill_missing(
    systems: list[System], targets: TensorMaps, extra_data: TensorMaps
) -> tuple[list[System], TensorMaps, TensorMaps]:
    """Step of a collate function: total charges that are NaN or absent become 0.

    metatrain's own step, which hands them to the model, passes over these.

    :param systems: structures of a batch
    :param targets: their labels
    :param extra_data: what else the data set has; unchanged
    :return: the same, with a total charge of each structure
    """
    if TOTAL_CHARGE in extra_data:
        block = extra_data[TOTAL_CHARGE].block()
        values, samples = torch.nan_to_num(block.values, nan=0.0), block.samples
    else:
        values = torch.zeros(len(systems), 1, dtype=systems[0].positions.dtype)
        samples = Labels.range("system", len(systems))
    block = TensorBlock(values, samples, [], Labels.range(TOTAL_CHARGE, 1))
    return systems, targets, {**extra_data, TOTAL_CHARGE: TensorMap(Labels.single(), [block])}


def warn_of_outliers(charges: list[tuple[float, int]], split: str) -> None:
    """Say which total charges are far from all others, as wrong ones in files may be.

    :param charges: total charges, with the indices of their structures in the data file
    :param split: ``"training"``, ``"validation"`` or ``"test"``
    """
    if not charges:
        return
    median = statistics.median(charge for charge, _ in charges)
    deviation = statistics.median(abs(charge - median) for charge, _ in charges)
    limit = OUTLIER * (1.0 + deviation)
    outliers = [(charge, index) for charge, index in charges if abs(charge - median) > limit]
    if outliers:
        charge, index = max(outliers, key=lambda outlier: abs(outlier[0] - median))
        logging.warning(
            f"{len(outliers)} total charges in the {split} set are more than {limit:g} e from the "
            f"median, {median:g} e; the furthest is {charge:g} e, of structure {index} (index in "
            "the data file). Correct or remove them if they are wrong."
        )


@dataclass
class TotalChargeCheck:
    """Look at the total charges of one split, structure by structure.

    :param split: ``"training"``, ``"validation"`` or ``"test"``
    :param default: total charge of a structure without, ``None`` for models that know none
    :param reads_data: whether the model takes total charges from the data
    :param has_labels: whether charges of atoms are a target
    """

    split: str
    default: float | None
    reads_data: bool
    has_labels: bool
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(["all", "missing", "labelled", "different"], 0)
    )
    lowest: float = math.inf
    highest: float = -math.inf
    given: list[tuple[float, int]] = field(default_factory=list)
    """total charges in the data, with the indices in the data file"""
    worst: tuple[float, int, float, float] = (0.0, -1, 0.0, 0.0)
    """difference, index in the data file, sum of the atomic charges, total charge"""

    @classmethod
    def of(cls, model: ModelInterface, split: str) -> "TotalChargeCheck":
        """
        :param model: the model
        :param split: ``"training"``, ``"validation"`` or ``"test"``
        :return: the check that suits it
        :raises ValueError: see :func:`check_layout`
        """
        reads_data = TOTAL_CHARGE in model.requested_inputs()
        if reads_data:
            check_layout(model.dataset_info.extra_data[TOTAL_CHARGE])
        default = None
        if reads_data:
            default = 0.0
        elif model.readout.has_charges:
            default = model.total_charge
        info = model.dataset_info.targets.get(ATOMIC_CHARGE)
        has_labels = info is not None and info.is_scalar and info.sample_kind == "atom"
        return cls(split, default, reads_data, has_labels)

    def add(self, fields: dict[str, Any], index: int) -> None:
        """
        :param fields: structure, labels and extra data
        :param index: of the structure in the data file
        :raises ValueError: for an infinite total charge
        """
        if self.default is None:
            return
        total = math.nan if self.reads_data else self.default
        if self.reads_data and TOTAL_CHARGE in fields:
            total = float(fields[TOTAL_CHARGE].block().values)
        if math.isinf(total):
            raise ValueError(
                f"Structure {index} of the {self.split} set has an infinite total charge. Correct "
                "it, or set it to NaN to mark it as missing (it then counts as 0)."
            )
        self.counts["all"] += 1
        if math.isnan(total):
            self.counts["missing"] += 1
            total = self.default
        elif self.reads_data:
            self.given.append((total, index))
        self.lowest, self.highest = min(self.lowest, total), max(self.highest, total)

        if not (self.has_labels and ATOMIC_CHARGE in fields):
            return
        charge = float(fields[ATOMIC_CHARGE].block().values.double().sum())
        if math.isnan(charge):
            return
        self.counts["labelled"] += 1
        difference = abs(charge - total)
        self.counts["different"] += difference > TOLERANCE
        self.worst = max(self.worst, (difference, index, charge, total))

    def finish(self, processes: Processes) -> tuple[float, float]:
        """Log what was found.

        :param processes: each has looked at its share
        :return: smallest and largest total charge, infinite and minus infinite if there are none
        """
        checks = processes.gather(self)
        counts = {name: sum(check.counts[name] for check in checks) for name in self.counts}
        if counts["missing"] > 0:
            # all of them: most likely `extra_data` was forgotten
            level = logging.WARNING if counts["missing"] == counts["all"] else logging.INFO
            logging.log(
                level,
                f"Total charge: {counts['missing']} of {counts['all']} structures in the "
                f"{self.split} set have none (missing or NaN) and count as 0",
            )
        warn_of_outliers([x for check in checks for x in check.given], self.split)
        if counts["different"] > 0:
            _, index, charge, total = max(check.worst for check in checks)
            logging.warning(
                f"The labels of '{ATOMIC_CHARGE}' do not sum to the total charge within "
                f"{TOLERANCE} e in {counts['different']} of {counts['labelled']} structures of the "
                f"{self.split} set. The worst is structure {index} (index in the data file): sum "
                f"{charge:.4f} e, total charge {total:g} e."
            )
        return min(check.lowest for check in checks), max(check.highest for check in checks)
