"""From data sets to batches, in an order that follows from the seed and the epoch alone."""

import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from metatensor.learn.data import group_and_join
from metatensor.torch import TensorMap
from metatomic.torch import System
from metatrain.utils.augmentation import O3Augmenter
from metatrain.utils.data import (
    CollateFn,
    DatasetInfo,
    build_train_dataloaders,
    build_val_dataloaders,
    unpack_batch,
)
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .datasets import share, structure_index
from .distributed import Processes

Batch = tuple[list[System], dict[str, TensorMap], dict[str, TensorMap]]
"""Structures, labels, masks of labels."""
Batches = Iterator[tuple[list[int], Batch]]
"""Batches and the indices of their structures, as in the data file."""


def build_collate(targets: Iterable[str], num_workers: int) -> Callable[[list[Any]], Any]:
    """
    :param targets: names of the targets
    :param num_workers: number of processes that prepare batches
    :return: function that joins prepared structures to a batch, which only bytes can leave a worker
        process as
    """
    if num_workers > 0:
        return CollateFn(list(targets))
    return functools.partial(join, targets=list(targets))


def join(samples: list[Any], targets: list[str]) -> Batch:
    """
    :param samples: prepared structures
    :param targets: names of the targets
    :return: the structures, their labels and masks of labels
    """
    fields = group_and_join(samples, join_kwargs={"different_keys": "union"})._asdict()
    systems = list(fields.pop("system"))
    labels = {name: x for name, x in fields.items() if name in targets}
    return systems, labels, {name: x for name, x in fields.items() if name not in targets}


def rotated(batches: Batches, info: DatasetInfo) -> Batches:
    """Random rotations and inversions, drawn in this process whatever prepares the batches.

    :param batches: batches with the indices of their structures
    :param info: of the model
    :return: the same with structures, neighbour lists and labels turned
    """
    augmenter = O3Augmenter(info.targets, info.extra_data)
    for indices, batch in batches:
        yield indices, augmenter.apply_random_augmentations(*batch)


class BatchSize(NamedTuple):
    """What goes into a batch of one process."""

    structures: int
    max_atoms: int | None  # instead of a number of structures
    num_workers: int  # processes that prepare batches


class TrainingBatches:
    """Batches of the training sets, shuffled anew in each epoch.

    Batch k of an epoch is the same set of structures for one process with n times the structures
    per batch as for n processes.

    :param datasets: training sets; a batch never mixes them
    :param collate: see :func:`build_collate`
    :param size: of a batch, per process
    :param seed: seed of the run, the same for all processes
    :param processes: processes to share the batches
    :raises ValueError: if a training set has fewer structures than a batch
    """

    def __init__(
        self,
        datasets: list[Dataset],
        collate: Callable[[list[Any]], Any],
        size: BatchSize,
        seed: int,
        processes: Processes,
    ) -> None:
        self.datasets = datasets
        self.seed = seed
        self.rank = processes.rank
        samplers = [
            DistributedSampler(
                dataset,
                num_replicas=processes.size,
                rank=processes.rank,
                seed=seed,
                drop_last=True,
            )
            for dataset in datasets
        ]
        self.dataloaders, self.samplers = build_train_dataloaders(
            datasets, samplers, collate, size.structures, size.max_atoms, 0, size.num_workers
        )

    def __len__(self) -> int:
        return sum(len(dataloader) for dataloader in self.dataloaders)

    def epoch(self, epoch: int) -> Batches:
        """
        :param epoch: number of the epoch; it also seeds all random numbers of this process
        :return: pairs of the structures' indices (as in the data file) and the batch
        """
        # Nothing random survives from the epoch before, so a restart needs no random states
        order = np.random.default_rng([self.seed, epoch]).permutation(
            np.repeat(np.arange(len(self.dataloaders)), [len(d) for d in self.dataloaders])
        )
        _seed_all(self.seed, epoch, self.rank)
        for sampler in self.samplers:
            sampler.set_epoch(epoch)
        iterators = [
            _with_indices(dataset, dataloader)
            for dataset, dataloader in zip(self.datasets, self.dataloaders, strict=True)
        ]
        for i in order:
            yield next(iterators[i])


class ValidationBatches:
    """Batches of the validation sets: each structure once, by one of the processes.

    :param datasets: validation sets
    :param collate: see :func:`build_collate`
    :param size: of a batch, per process
    :param processes: processes to share the structures
    """

    def __init__(
        self,
        datasets: list[Dataset],
        collate: Callable[[list[Any]], Any],
        size: BatchSize,
        processes: Processes,
    ) -> None:
        self.datasets = share(datasets, processes.rank, processes.size)
        self.dataloaders = build_val_dataloaders(
            self.datasets,
            [None] * len(self.datasets),
            collate,
            size.structures,
            size.max_atoms,
            size.num_workers,
        )

    def __iter__(self) -> Batches:
        for dataset, dataloader in zip(self.datasets, self.dataloaders, strict=True):
            yield from _with_indices(dataset, dataloader)


def _with_indices(dataset: Dataset, dataloader: DataLoader) -> Batches:
    """Batches together with the indices of their structures."""
    for indices, batch in zip(dataloader.batch_sampler, dataloader, strict=True):
        if dataloader.num_workers > 0:
            batch = unpack_batch(batch)
        yield [structure_index(dataset, i) for i in indices], batch


def _seed_all(*entropy: int) -> None:
    """Seed the generators of torch (all devices), numpy and Python."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
