from collections import Counter

import pytest
import torch
from torch.utils.data import Subset

from metatrain_lorem.training.batches import (
    BatchSize,
    TrainingBatches,
    ValidationBatches,
    join,
    rotated,
)
from metatrain_lorem.training.distributed import Processes
from metatrain_lorem.training.prepared import Preparation

CPU = torch.device("cpu")


def collate(samples):
    """Keep the energies, by which structures are known."""
    return [sample.energy.block().values.item() for sample in samples]


def training(datasets, size=1, rank=0, batch_size=4, max_atoms=None, seed=0):
    processes = Processes(CPU, rank, size)
    return TrainingBatches(datasets, collate, BatchSize(batch_size, max_atoms, 0), seed, processes)


@pytest.fixture
def dataset(small):
    return small.read(small.file)[0]


def energies(dataset, indices):
    return [dataset[i].energy.block().values.item() for i in indices]


def test_indices_are_those_of_the_file(dataset):
    subset = Subset(Subset(dataset, range(4, 24)), range(0, 20, 2))
    for indices, batch in training([subset]).epoch(0):
        assert batch == energies(dataset, indices)
        assert set(indices) <= set(range(4, 24, 2))


def test_each_epoch_has_each_structure_once_in_a_new_order(dataset):
    batches = training([dataset], batch_size=5)
    orders = [[i for indices, _ in batches.epoch(epoch) for i in indices] for epoch in (0, 1)]
    assert len(batches) == 5
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]


def test_epoch_does_not_depend_on_those_before_nor_on_random_states(dataset):
    datasets = [Subset(dataset, range(12)), Subset(dataset, range(12, 24))]
    batches = training(datasets)
    for epoch in range(3):
        expected = list(batches.epoch(epoch))
    torch.manual_seed(123)
    assert list(training(datasets).epoch(2)) == expected
    assert list(training(datasets, seed=1).epoch(2)) != expected


def test_processes_share_the_global_batch(dataset):
    """Also with two data sets, of which all processes take the same in each step."""
    datasets = [Subset(dataset, range(16)), Subset(dataset, range(16, 24))]
    whole = [set(indices) for indices, _ in training(datasets, batch_size=8).epoch(1)]
    parts = [list(training(datasets, 2, rank).epoch(1)) for rank in (0, 1)]
    together = [set(a) | set(b) for (a, _), (b, _) in zip(*parts, strict=True)]
    assert together == whole


@pytest.mark.parametrize("max_atoms", [None, 10])
def test_validation_takes_each_structure_once(dataset, max_atoms):
    seen = Counter()
    for rank in range(3):
        batches = ValidationBatches(
            [Subset(dataset, range(1, 12)), Subset(dataset, [20])],
            collate,
            BatchSize(4, max_atoms, 0),
            Processes(CPU, rank, 3),
        )
        for indices, batch in batches:
            assert batch == energies(dataset, indices)
            seen.update(indices)
    assert seen == Counter([*range(1, 12), 20])


def prepared(model, samples):
    prepare = Preparation(model)
    return join([prepare(sample) for sample in samples], ["energy"])


def test_labels_lose_baseline_and_scale(small, dataset):
    """What the model learns has no mean per element, and unit size."""
    _, info = small.read(small.file)
    model, trainer = small.new_model(info), small.new_trainer(num_epochs=0)
    small.fit(trainer, model, dataset, dataset, small.file.parent)
    systems, targets, _ = prepared(model, list(dataset))
    per_atom = targets["energy"].block().values[:, 0] / torch.tensor([len(s) for s in systems])
    assert per_atom.square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-6)
    hydrogens = torch.tensor([(s.types == 1).sum() for s in systems], dtype=torch.float64)
    assert abs((hydrogens * targets["energy"].block().values[:, 0]).sum().item()) < 1e-6


def test_augmentation_rotates_structures_neighbours_and_forces(small, dataset):
    """Each structure by a matrix of its own, and by another one the next time."""
    _, info = small.read(small.file)
    model = small.new_model(info)
    plain = prepared(model, [dataset[i] for i in (3, 7)])
    first, second = (next(rotated(iter([([3, 7], plain)]), info))[1] for _ in range(2))
    matrices = []
    for systems, targets, _ in (first, second):
        atoms = 0
        for before, after in zip(plain[0], systems, strict=True):
            matrix = torch.linalg.lstsq(before.positions, after.positions).solution
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64))
            matrices.append(matrix)
            (options,) = after.known_neighbor_lists()
            pairs, turned = (x.get_neighbor_list(options) for x in (before, after))
            assert pairs.samples == turned.samples and len(pairs.samples) > 0
            torch.testing.assert_close(turned.values[..., 0], pairs.values[..., 0] @ matrix)
            gradients, turned = (
                x["energy"].block().gradient("positions").values[atoms : atoms + len(before), :, 0]
                for x in (plain[1], targets)
            )
            torch.testing.assert_close(turned, gradients @ matrix)
            atoms += len(before)
        torch.testing.assert_close(
            targets["energy"].block().values, plain[1]["energy"].block().values
        )
    for i, matrix in enumerate(matrices):
        assert all((matrix - other).abs().max() > 1e-3 for other in matrices[:i])
