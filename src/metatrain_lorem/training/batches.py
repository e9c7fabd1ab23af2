"""From data sets to batches, in an order that follows from the seed and the epoch alone."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from metatrain.utils.abc import ModelInterface
from metatrain.utils.additive import get_remove_additive_transform
from metatrain.utils.augmentation import O3Augmenter
from metatrain.utils.data import CollateFn, build_train_dataloaders, build_val_dataloaders
from metatrain.utils.data.atomic_basis_helpers import get_prepare_atomic_basis_targets_transform
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists_transform,
)
from metatrain.utils.scaler import get_remove_scale_transform
from metatrain.utils.system_data import get_system_data_transform
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .datasets import share, structure_index
from .distributed import Processes
from .total_charges import TOTAL_CHARGE, fill_missing


def build_collate(model: ModelInterface, augment: bool) -> CollateFn:
    """Function that joins structures to a batch and prepares their labels for the loss.

    :param model: model with fitted baseline and scales
    :param augment: whether to apply random rotations and inversions
    :return: the function; it may run in worker processes, hence on the CPU
    """
    targets, extra_data = model.dataset_info.targets, model.dataset_info.extra_data
    densify, _ = get_prepare_atomic_basis_targets_transform(targets, extra_data)
    steps: list[Callable] = [densify]
    if augment:
        augmenter = O3Augmenter(target_info_dict=targets, extra_data_info_dict=extra_data)
        steps.append(augmenter.apply_random_augmentations)
    steps.append(get_system_with_neighbor_lists_transform(get_requested_neighbor_lists(model)))
    inputs = list(model.requested_inputs())
    if TOTAL_CHARGE in inputs:
        steps.append(fill_missing)
    if inputs:
        steps.append(get_system_data_transform(inputs))

    additive_models = copy.deepcopy(model.additive_models).to("cpu", torch.float64)
    additive_models[0].weights_to(device="cpu", dtype=torch.float64)
    scaler = copy.deepcopy(model.scaler).to("cpu", torch.float64)
    scaler.scales_to(device="cpu", dtype=torch.float64)
    steps.append(get_remove_additive_transform(additive_models, targets))
    steps.append(get_remove_scale_transform(scaler))
    return CollateFn(target_keys=list(targets), callables=steps)


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
        collate: CollateFn,
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

    def epoch(self, epoch: int) -> Iterator[tuple[list[int], Any]]:
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
        collate: CollateFn,
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

    def __iter__(self) -> Iterator[tuple[list[int], Any]]:
        for dataset, dataloader in zip(self.datasets, self.dataloaders, strict=True):
            yield from _with_indices(dataset, dataloader)


def _with_indices(dataset: Dataset, dataloader: DataLoader) -> Iterator[tuple[list[int], Any]]:
    """Batches together with the indices of their structures."""
    for indices, batch in zip(dataloader.batch_sampler, dataloader, strict=True):
        yield [structure_index(dataset, i) for i in indices], batch


def _seed_all(*entropy: int) -> None:
    """Seed the generators of torch (all devices), numpy and Python."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
