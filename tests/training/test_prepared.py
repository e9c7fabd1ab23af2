"""Structures and labels that are prepared once, and what prepares those that do not fit."""

import math
import time

import ase.io
import pytest
import torch
from metatrain.utils.data import DiskDataset
from metatrain.utils.data.writers import DiskDatasetWriter
from torch.utils.data import Dataset, Subset

from metatrain_lorem.training import epoch, prepared, workers
from metatrain_lorem.training.distributed import Processes
from metatrain_lorem.training.prepared import (
    Memory,
    Preparation,
    PreparedStructures,
    size_in_bytes,
)
from metatrain_lorem.training.workers import choose_workers


class Counted(Dataset):
    """A data set that counts how often each structure is read."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.reads = len(dataset) * [0]

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        self.reads[i] += 1
        return self.dataset[i]


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """Losses and weights of three epochs with structures that lack some labels."""
    frames = small.structures(24)
    for i in (0, 1, 7):
        frames[i].info["energy"] = math.nan
    frames[3].arrays["forces"][:] = math.nan
    ase.io.write(tmp_path / "gaps.xyz", frames)
    dataset, info = small.read(tmp_path / "gaps.xyz")
    finalize = epoch.Metrics.finalize

    def run(limit, dataset=dataset, dtype=torch.float64, **hypers):
        results = []

        def finalize_and_keep(metrics):
            results.append(finalize(metrics))
            return results[-1]

        monkeypatch.setattr(epoch.Metrics, "finalize", finalize_and_keep)
        monkeypatch.setattr(Memory, "of", lambda processes: Memory(limit))
        model, trainer = small.new_model(info), small.new_trainer(num_epochs=3, **hypers)
        train, valid = Subset(dataset, range(18)), Subset(dataset, range(18, 24))
        small.fit(trainer, model, train, valid, tmp_path, dtype)
        assert len(results) == 6
        return results, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()

    run.dataset = dataset
    return run


PART = 100_000
ALL = 10**9


@pytest.mark.parametrize(
    "rotate, dtype",
    [
        (False, torch.float64),
        (True, torch.float32),
        pytest.param(False, torch.float32, marks=pytest.mark.slow),
        pytest.param(True, torch.float64, marks=pytest.mark.slow),
    ],
)
def test_same_bits_whether_kept_or_made_anew(run, rotate, dtype):
    expected = run(ALL, dtype=dtype, rotational_augmentation=rotate)
    for limit, num_workers in [(PART, 0), (0, 0), (ALL, 2)]:
        hypers = {"num_workers": num_workers, "rotational_augmentation": rotate}
        assert run(limit, dtype=dtype, **hypers) == expected


def test_batches_of_one_structure_leave_what_is_kept_as_it_is(run):
    """They are what is kept, not a copy."""
    assert run(ALL, batch_size=1) == run(0, batch_size=1)


def test_data_set_on_disk(run, tmp_path):
    writer = DiskDatasetWriter(str(tmp_path / "gaps.zip"))
    for sample in run.dataset:
        writer.write([sample.system], {"energy": sample.energy})
    writer.finish()
    on_disk = DiskDataset(str(tmp_path / "gaps.zip"), fields=["energy"])
    for limit in (ALL, 0):
        assert run(limit, on_disk) == run(ALL)


@pytest.fixture
def structures(small):
    """A prepared data set, not yet read, that may keep as many bytes as asked for."""
    dataset, info = small.read(small.file)
    prepare = Preparation(small.new_model(info))
    return lambda limit: PreparedStructures(dataset, prepare, Memory(limit))


def test_memory_is_not_exceeded(structures):
    """By two data sets that share it; what is kept is read once."""
    unkept = structures(0)
    training = structures(sum(size_in_bytes(unkept[i]) for i in range(5)))
    training.dataset = Counted(training.dataset)
    validation = PreparedStructures(training.dataset.dataset, training.prepare, training.memory)
    for _ in range(3):
        for data in (Subset(training, range(24)), validation):
            assert len([data[i] for i in range(24)]) == 24
    assert sorted(training.kept) == [0, 1, 2, 3, 4] and not validation.kept
    assert training.memory.used == training.memory.limit
    assert training.dataset.reads == 5 * [1] + 19 * [3]


def test_size_of_a_structure(structures):
    """One of three atoms, all within the cutoff of each other."""
    sample = structures(0)[0]
    assert len(sample.system) == 3
    system = 3 * (8 * 3 + 4) + 9 * 8 + 3
    pairs = 6 * (3 * 8 + 5 * 4)
    energy, gradients = 8 + 4, 3 * (3 * 8 + 3 * 4)
    assert size_in_bytes(sample) == prepared.OVERHEAD + system + pairs + energy + gradients


def test_the_data_set_keeps_its_structures_as_they_are(structures):
    data = structures(ALL)
    before = data.dataset[0].energy.block().values.clone()
    prepared_sample = data[0]
    assert len(prepared_sample.system.known_neighbor_lists()) == 1
    assert data.dataset[0].system.known_neighbor_lists() == []
    assert torch.equal(data.dataset[0].energy.block().values, before)


@pytest.mark.parametrize(
    "given, limit, workers_there, takes_long, expected, kept",
    [
        (None, ALL, 5, False, 0, True),
        (None, PART, 5, False, 5, False),
        (None, PART, 5, True, 0, True),
        (None, PART, 0, False, 0, True),
        (0, PART, 5, False, 0, True),
        (3, ALL, 5, False, 3, False),
    ],
)
def test_choice_of_workers(
    structures, monkeypatch, caplog, given, limit, workers_there, takes_long, expected, kept
):
    caplog.set_level("INFO")
    monkeypatch.setattr(workers, "get_num_workers", lambda: workers_there)
    if takes_long:
        monkeypatch.setattr(workers, "unpack_batch", lambda packed: time.sleep(0.5))
    data = structures(limit)
    assert choose_workers(given, [data, structures(limit)]) == expected
    assert data.memory.limit == (limit if kept else 0)
    assert len([data[i] for i in range(24)]) == 24
    assert bool(data.kept) is kept
    (message,) = caplog.messages
    assert message.startswith("Neighbour lists and labels of 48 structures: ")
    assert message.endswith(
        f"{expected} processes prepare them, anew in every pass"
        if expected > 0
        else "They are prepared once and kept"
        if limit == ALL
        else "What fits is kept, the rest prepared anew in every pass"
    )


def test_few_structures_that_do_not_fit(structures):
    """Each is looked at once: fewer than the number of samples failed in being joined."""
    data = structures(0)
    data.dataset = Subset(data.dataset, range(5))
    data.indices = range(5)
    assert choose_workers(None, [data]) >= 0


def test_processes_on_one_machine_share_the_memory(monkeypatch):
    monkeypatch.setattr(prepared, "available_memory", lambda device, sharing: 8000 // sharing)
    assert Memory.of(Processes(torch.device("cpu"))).limit == 2000
    assert Memory.of(Processes(torch.device("cpu"), 0, 8, per_machine=4)).limit == 500
    monkeypatch.setattr(prepared, "available_memory", lambda device, sharing: None)
    assert Memory.of(Processes(torch.device("cpu"))).limit == prepared.UNKNOWN
