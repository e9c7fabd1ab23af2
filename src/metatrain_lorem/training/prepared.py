"""Structures with their neighbour lists and labels ready for the loss: made once, then kept."""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from metatensor.learn.data._namedtuple import namedtuple
from metatensor.torch import TensorBlock
from metatomic.torch import System
from metatrain.utils.abc import ModelInterface
from metatrain.utils.additive import get_remove_additive_transform
from metatrain.utils.data.atomic_basis_helpers import get_prepare_atomic_basis_targets_transform
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists_transform,
)
from metatrain.utils.scaler import get_remove_scale_transform
from metatrain.utils.system_data import get_system_data_transform
from torch.utils.data import Dataset, Subset

from .distributed import Processes
from .memory import available_memory
from .total_charges import TOTAL_CHARGE, fill_missing

FRACTION = 0.25
"""Of the free memory of the machine that may be taken to keep structures."""
UNKNOWN = 1_000_000_000
"""Bytes that may be taken where the free memory is unknown."""
OVERHEAD = 10_000
"""Bytes that a structure takes beside its numbers, measured."""


class Preparation:
    """All of a structure and its labels that is the same in every epoch.

    The neighbour list is attached, the total charge too where the model asks for it; labels lose
    baseline and scale. Of the extra data the masks of labels are left. All stay in double
    precision, in which they are rotated, too.

    :param model: model with fitted baselines and scales, copied as they are now
    """

    def __init__(self, model: ModelInterface) -> None:
        self.targets = targets = model.dataset_info.targets
        densify, _ = get_prepare_atomic_basis_targets_transform(
            targets, model.dataset_info.extra_data
        )
        lists = get_requested_neighbor_lists(model)
        self.steps: list[Callable] = [densify, get_system_with_neighbor_lists_transform(lists)]
        inputs = list(model.requested_inputs())
        if TOTAL_CHARGE in inputs:
            self.steps.append(fill_missing)
        if inputs:
            self.steps.append(get_system_data_transform(inputs))

        additive_models = copy.deepcopy(model.additive_models).to("cpu", torch.float64)
        additive_models[0].weights_to(device="cpu", dtype=torch.float64)
        scaler = copy.deepcopy(model.scaler).to("cpu", torch.float64)
        scaler.scales_to(device="cpu", dtype=torch.float64)
        self.steps.append(get_remove_additive_transform(additive_models, targets))
        self.steps.append(get_remove_scale_transform(scaler))

    def __call__(self, sample: Any) -> Any:
        """
        :param sample: structure, labels and extra data of a data set, unchanged
        :return: the same kind of named tuple, on the CPU
        """
        fields = sample._asdict()
        # a copy of the structure, to which the steps add
        systems = [fields["system"].to(dtype=fields["system"].positions.dtype)]
        targets = {name: x for name, x in fields.items() if name in self.targets}
        extra = {name: fields[name] for name in fields.keys() - {"system", *targets}}
        for step in self.steps:
            systems, targets, extra = step(systems, targets, extra)
        masks = {name: extra[name] for name in sorted(extra) if name.endswith("_mask")}
        names = ("system", *targets, *masks)
        return _sample_class(names)(*systems, *targets.values(), *masks.values())


@functools.cache
def _sample_class(names: tuple[str, ...]) -> type:
    return namedtuple("Sample", list(names))


@dataclass
class Memory:
    """Memory for prepared structures.

    :param limit: bytes
    :param used: bytes
    """

    limit: int
    used: int = 0

    @classmethod
    def of(cls, processes: Processes) -> "Memory":
        """
        :param processes: those on one machine share a quarter of its free memory
        """
        free = available_memory(torch.device("cpu"), processes.per_machine)
        return cls(UNKNOWN if free is None else int(FRACTION * free))

    def take(self, size: int) -> bool:
        """
        :param size: bytes
        :return: whether they are left, and taken now
        """
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


class PreparedStructures(Subset):
    """A data set whose structures are prepared when they are first asked for, and kept as long as
    they fit. The others are prepared anew each time, to the same bits.

    :param dataset: the data set; read again only for what is not kept
    :param prepare: see :class:`Preparation`
    :param memory: shared by several data sets
    """

    def __init__(self, dataset: Dataset, prepare: Preparation, memory: Memory) -> None:
        super().__init__(dataset, range(len(dataset)))
        self.prepare = prepare
        self.memory = memory
        self.kept: dict[int, Any] = {}

    def __getitem__(self, i: int) -> Any:
        if i in self.kept:
            return self.kept[i]
        sample = self.prepare(self.dataset[i])
        if self.memory.take(size_in_bytes(sample)):
            self.kept[i] = sample
        return sample

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


def size_in_bytes(sample: Any) -> int:
    """
    :param sample: prepared structure
    :return: memory that it takes
    """
    return OVERHEAD + sum(tensor.nbytes for tensor in _tensors(sample))


def _tensors(sample: Any) -> Iterator[torch.Tensor]:
    fields = sample._asdict()
    system: System = fields.pop("system")
    yield from (system.positions, system.types, system.cell, system.pbc)
    blocks: list[TensorBlock] = [
        system.get_neighbor_list(options) for options in system.known_neighbor_lists()
    ]
    for values in fields.values():
        blocks += values.blocks()
    for block in blocks:
        for part in (block, *(gradient for _, gradient in block.gradients())):
            yield from (part.values, part.samples.values)
