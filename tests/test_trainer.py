"""The trainer as a whole."""

import json
import logging
import math
import os
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from metatrain.utils.data import DatasetInfo, DiskDataset, get_dataset
from metatrain.utils.data.dataset import MemmapDataset
from metatrain.utils.data.writers import DiskDatasetWriter
from metatrain.utils.io import model_from_checkpoint
from torch.utils.data import Subset

from metatrain_lorem.trainer import Trainer
from metatrain_lorem.training import memory


def load(path):
    return torch.load(path, weights_only=False, map_location="cpu")


def progress(caplog) -> list[str]:
    """The lines of errors in the log."""
    return [message for message in caplog.messages if message.startswith("Epoch:")]


def assert_same(a, b):
    """Compare nested states to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("optimizer, num_workers", [("adamw", 0), ("muon", 2)])
def test_restart_continues_as_if_never_stopped(small, tmp_path, caplog, optimizer, num_workers):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    train, valid = Subset(dataset, range(18)), Subset(dataset, range(18, 24))
    hypers = {
        "num_epochs": 4,
        "num_workers": num_workers,
        "optimizer": optimizer,
        "checkpoint_interval": 1,
        "rotational_augmentation": True,
    }
    model, trainer = small.new_model(info), small.new_trainer(**hypers)
    small.fit(trainer, model, train, valid, tmp_path)
    trainer.save_checkpoint(model, tmp_path / "uninterrupted.ckpt")
    lines = progress(caplog)
    assert len(lines) == 4

    caplog.clear()
    torch.manual_seed(99)  # `mtt train` draws another seed when the options give none
    checkpoint = load(tmp_path / "model_1.ckpt")
    model = model_from_checkpoint(checkpoint, context="restart").restart(info)
    trainer = Trainer.load_checkpoint(checkpoint, trainer.hypers, "restart")
    assert trainer.best_metric == checkpoint["best_metric"] < math.inf
    small.fit(trainer, model, train, valid, tmp_path)
    trainer.save_checkpoint(model, tmp_path / "restarted.ckpt")
    assert progress(caplog) == lines[2:]

    one, other = load(tmp_path / "uninterrupted.ckpt"), load(tmp_path / "restarted.ckpt")
    for key in ("model_state_dict", "optimizer_states", "best_model_state_dict"):
        assert_same(one[key], other[key])
    assert (one["best_metric"], one["best_epoch"]) == (other["best_metric"], other["best_epoch"])


def test_restart_with_another_optimizer(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    trainer = small.new_trainer(num_epochs=1, optimizer="adamw")
    small.fit(trainer, small.new_model(info), dataset, dataset, tmp_path)
    checkpoint = load(tmp_path / "model_0.ckpt")
    model = model_from_checkpoint(checkpoint, context="restart").restart(info)
    hypers = small.new_trainer(num_epochs=2, optimizer="muon").hypers
    trainer = Trainer.load_checkpoint(checkpoint, hypers, "restart")
    small.fit(trainer, model, dataset, dataset, tmp_path)
    assert "`optimizer` was 'adamw', now 'muon': it starts anew" in caplog.messages
    assert trainer.epoch == 1


def test_order_differs_between_epochs_and_seeds(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    lines = []
    for seed in (0, 1):
        caplog.clear()
        model, trainer = small.new_model(info), small.new_trainer(num_epochs=1)
        trainer.seed = seed
        small.fit(trainer, model, dataset, dataset, tmp_path)
        lines.append(progress(caplog))
    assert lines[0] != lines[1]


def test_best_model_is_kept(small, tmp_path):
    """With a learning rate that destroys the model, the first epoch is the best."""
    dataset, info = small.read(small.file)
    model = small.new_model(info)
    hypers = {"optimizer": "adamw", "learning_rate": 1.0, "best_model_metric": "loss"}
    trainer = small.new_trainer(num_epochs=3, **hypers)
    small.fit(trainer, model, dataset, dataset, tmp_path)
    trainer.save_checkpoint(model, tmp_path / "model.ckpt")
    checkpoint = load(tmp_path / "model.ckpt")
    best = checkpoint["best_epoch"]
    assert best < 2
    first = small.new_trainer(num_epochs=3, checkpoint_interval=1, **hypers)
    small.fit(first, small.new_model(info), dataset, dataset, tmp_path)
    saved = load(tmp_path / f"model_{best}.ckpt")["model_state_dict"]
    for name, _ in model.named_parameters():
        assert torch.equal(saved[name], checkpoint["best_model_state_dict"][name])


def test_fitting_reduces_the_errors(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    trainer = small.new_trainer(num_epochs=10, learning_rate=1e-2)
    small.fit(trainer, small.new_model(info), dataset, dataset, tmp_path)
    losses = [float(re.search(r"validation loss: (\S+)", line)[1]) for line in progress(caplog)]
    assert losses[-1] < 0.5 * losses[0]
    assert any(re.search(r"s per epoch, about 0:00:\d\d left", line) for line in caplog.messages)


def test_energies_weigh_more_in_the_last_epochs(small, tmp_path, caplog):
    """The last two of ten epochs differ from those without; the loss is told without the factor."""
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    lines = []
    for factor in (1.0, 1e-3, 1e3):
        caplog.clear()
        model = small.new_model(info)
        hypers = {"num_epochs": 10, "final_energy_factor": factor, "learning_rate": 1e-2}
        metric = "loss" if factor > 1.0 else "rmse_prod"
        trainer = small.new_trainer(**hypers, best_model_metric=metric)
        small.fit(trainer, model, dataset, dataset, tmp_path)
        lines.append(progress(caplog))
        assert ("From epoch 8 on, energies weigh 1000 times as much" in caplog.text) == (factor > 1)
        assert ("chooses the epoch by the loss without" in caplog.text) == (factor > 1)
    plain, lighter, heavier = lines
    assert plain[:8] == heavier[:8] == lighter[:8] and plain[8] != heavier[8]
    energies, forces = (
        [
            float(re.search(rf"validation {key} RMSE[^:]*: ([0-9.e+-]+)", x[-1])[1])
            for x in lines[1:]
        ]
        for key in ("energy", "forces")
    )
    assert energies[1] < energies[0] and forces[1] > forces[0]
    for part in ("training", "validation"):
        losses = [float(re.search(rf"{part} loss: ([0-9.e+-]+)", x[-1])[1]) for x in lines]
        assert max(losses) < 5 * min(losses), part


def test_energy_factor_is_checked_before_training(small, tmp_path):
    dataset, info = small.read(small.file)
    trainer = small.new_trainer(final_energy_factor=-1.0)
    with pytest.raises(ValueError, match="`final_energy_factor` is -1: it has to be a positive"):
        small.fit(trainer, small.new_model(info), dataset, dataset, tmp_path)


def test_interrupted_writing_keeps_the_old_checkpoint(small, tmp_path, monkeypatch):
    dataset, info = small.read(small.file)
    model, trainer = small.new_model(info), small.new_trainer(num_epochs=0)
    small.fit(trainer, model, dataset, dataset, tmp_path)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(model, path)
    content = path.read_bytes()

    def stop_half_way(checkpoint, file):
        file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(model, path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["model.ckpt"]


def test_remains_of_killed_runs_are_removed(small, tmp_path):
    dataset, info = small.read(small.file)
    remains, other = tmp_path / ".model_7.ckpt.123.tmp", tmp_path / ".notes.tmp"
    writing = tmp_path / ".model_8.ckpt.124.tmp"
    for path in (remains, other, writing):
        path.write_text("")
    for path in (remains, other):
        os.utime(path, (0, 0))
    small.fit(small.new_trainer(num_epochs=1), small.new_model(info), dataset, dataset, tmp_path)
    assert (tmp_path / "model_0.ckpt").exists()
    assert not remains.exists()
    assert other.exists() and writing.exists()


def test_only_model_checkpoints_in_the_folder(small, tmp_path):
    """``mtt train --restart auto`` takes the newest ``*.ckpt``, so there must be no others."""
    dataset, info = small.read(small.file)
    trainer = small.new_trainer(num_epochs=1)
    small.fit(trainer, small.new_model(info), dataset, dataset, tmp_path)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["model_0.ckpt"]


def test_checkpoint_of_a_newer_version():
    with pytest.raises(RuntimeError, match="using trainer version 7, while .* version is 6"):
        Trainer.upgrade_checkpoint({"trainer_ckpt_version": 7})


def test_energies_of_older_runs_keep_weight_and_scale():
    old = {"trainer_ckpt_version": 4, "train_hypers": {"optimizer": "muon"}}
    upgraded = Trainer.upgrade_checkpoint(old)
    assert upgraded["trainer_ckpt_version"] == 6
    assert upgraded["train_hypers"] == {
        "optimizer": "muon",
        "final_energy_factor": 1.0,
        "energy_scale": "energies",
    }


@pytest.mark.parametrize(
    "optimizer, long_range", [("muon", {}), ("adamw", {}), ("adamw", {"energy": "charges"})]
)
def test_moments_of_other_parameters_are_dropped(optimizer, long_range, caplog):
    """Since trainer version 3 Muon has fewer parameters, which states know by number only; since
    version 4 one of partial charges is larger."""
    checkpoint = {"trainer_ckpt_version": 2, "optimizer_states": [{}, {}]}
    checkpoint["train_hypers"] = {"optimizer": optimizer}
    checkpoint["model_data"] = {"model_hypers": {"long_range": long_range}}
    with caplog.at_level(logging.INFO):
        upgraded = Trainer.upgrade_checkpoint(checkpoint)
    assert upgraded["trainer_ckpt_version"] == 6
    anew = "The checkpoint is of an older version, whose optimizer starts anew" in caplog.messages
    assert anew == (upgraded["optimizer_states"] is None)
    assert anew == (optimizer == "muon" or long_range != {})


def relabelled(small, tmp_path, change) -> Path:
    """The small file after a change to its structures."""
    frames = small.structures(24)
    change(frames)
    path = tmp_path / "changed.xyz"
    ase.io.write(path, frames)
    return path


def test_infinite_loss_names_the_batch_and_keeps_the_checkpoint(small, tmp_path, monkeypatch):
    # such labels are refused before training; here one gets there
    monkeypatch.setattr("metatrain_lorem.training.checks.LARGEST_LABEL", math.inf)

    def change(frames):
        frames[13].info["energy"] = 1e200

    hypers = {"num_epochs": 1, "atomic_baseline": {"energy": 0.0}, "scale_targets": False}
    dataset, info = small.read(small.file)
    model = small.new_model(info)
    small.fit(small.new_trainer(**hypers), model, dataset, dataset, tmp_path)
    checkpoint = (tmp_path / "model_0.ckpt").read_bytes()

    bad, _ = small.read(relabelled(small, tmp_path, change))
    trainer = Trainer.load_checkpoint(
        load(tmp_path / "model_0.ckpt"),
        small.new_trainer(**{**hypers, "num_epochs": 3}).hypers,
        "restart",
    )
    # structure 13 of the file has index 3 in the subset
    with pytest.raises(FloatingPointError, match="^The loss is NaN or infinite") as error:
        small.fit(trainer, model, Subset(bad, range(10, 24)), dataset, tmp_path)
    named = [int(i) for i in re.search(r"\[(.*)\]", str(error.value))[1].split(", ")]
    assert 13 in named
    assert len(named) == 4
    assert (tmp_path / "model_0.ckpt").read_bytes() == checkpoint
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_infinite_label(small, tmp_path):
    def change(frames):
        frames[20].arrays["forces"][1, 2] = math.inf

    bad, info = small.read(relabelled(small, tmp_path, change))
    with pytest.raises(ValueError, match=r"'energy' has an infinite label .* structure 20 of the"):
        small.fit(
            small.new_trainer(), small.new_model(info), Subset(bad, range(5, 24)), bad, tmp_path
        )


@pytest.mark.parametrize("split", ["training", "validation", "largest"])
def test_error_of_the_model_names_structures_of_the_file(small, tmp_path, split):
    """Two atoms on one spot, which the model refuses, in a set that begins at structure 10."""
    dataset, info = small.read(small.file)
    sizes = [len(frame) for frame in small.structures(24)]
    bad = max(range(10, 24), key=lambda i: (sizes[i], i)) if split == "largest" else 13
    structures = Subset(dataset, range(10, 24))
    dataset[bad].system.positions[1] = dataset[bad].system.positions[0]
    trainer, model = small.new_trainer(num_epochs=1), small.new_model(info)
    train, valid = Subset(dataset, range(10)), structures
    if split != "validation":
        train, valid = valid, train
    with pytest.raises(ValueError, match="on one spot") as error:
        small.fit(trainer, model, train, valid, tmp_path)
    pattern = r"structures (\[.*\]) of the (\w+) set .*: structure (\d+) of the batch: atoms"
    indices, named, position = re.search(pattern, str(error.value)).groups()
    assert named == ("validation" if split == "validation" else "training")
    assert json.loads(indices)[int(position)] == bad
    assert (len(json.loads(indices)) == 1) == (split == "largest")
    assert isinstance(error.value.__cause__, ValueError)


def test_warning_of_missing_forces(small, tmp_path, caplog):
    """The reader drops all forces where it does not find some."""
    options = small.dataset_options(small.file)
    options["targets"]["energy"]["forces"]["key"] = "force"
    dataset, targets, _ = get_dataset(options)
    model = small.new_model(DatasetInfo("angstrom", [1, 8], targets))
    small.fit(small.new_trainer(num_epochs=0), model, dataset, dataset, tmp_path)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert sum("'energy' is trained without forces" in message for message in warnings) == 1


@pytest.mark.parametrize("split", ["training", "validation"])
def test_structure_that_is_not_finite(small, tmp_path, split):
    dataset, info = small.read(small.file)
    dataset[17].system.positions[2, 1] = math.nan
    train, valid = Subset(dataset, range(10)), Subset(dataset, range(10, 24))
    if split == "training":
        train, valid = valid, train
    with pytest.raises(ValueError, match=f"^Structure 17 of the {split} set has positions"):
        small.fit(small.new_trainer(), small.new_model(info), train, valid, tmp_path)


def test_missing_labels_are_counted_and_left_out(small, tmp_path, caplog):
    def change(frames):
        for frame in frames[:6]:
            frame.info["energy"] = math.nan
        frames[7].arrays["forces"][:] = math.nan

    caplog.set_level(logging.INFO)
    dataset, info = small.read(relabelled(small, tmp_path, change))
    model = small.new_model(info)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    small.fit(small.new_trainer(), model, dataset, dataset, tmp_path)
    atoms = len(small.structures(24)[7])
    total = 3 * sum(len(frame) for frame in small.structures(24))
    message = f"6 of 24 of energy, {3 * atoms} of {total} of energy positions gradients"
    assert any(message in line for line in caplog.messages)
    assert not any("nan" in line for line in progress(caplog))
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, before[name]), name

    complete = small.new_model(info)
    known = Subset(dataset, range(6, 24))
    small.fit(small.new_trainer(num_epochs=0), complete, known, known, tmp_path)
    baselines = [
        m.additive_models[0].model.weights["energy"].block().values for m in (model, complete)
    ]
    assert torch.isfinite(baselines[0]).all()
    torch.testing.assert_close(*baselines)


def test_empty_validation_set_takes_the_last_model(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    trainer = small.new_trainer(num_epochs=3)
    small.fit(trainer, small.new_model(info), dataset, Subset(dataset, []), tmp_path)
    assert trainer.best_epoch == 2
    assert "The validation set is empty: the last model counts as the best" in caplog.messages


def test_all_labels_missing(small, tmp_path):
    def change(frames):
        for frame in frames:
            frame.info["energy"] = math.nan

    dataset, info = small.read(relabelled(small, tmp_path, change))
    with pytest.raises(ValueError, match="All 24 labels of 'energy' in the training set"):
        small.fit(small.new_trainer(), small.new_model(info), dataset, dataset, tmp_path)


def test_data_sets_with_different_targets(small, tmp_path):
    """Each target is trained by the data sets that have it."""
    both, info = small.read(small.file)
    options = small.dataset_options(small.file)
    options["targets"]["energy"]["forces"] = False
    energies = get_dataset(options)[0]
    model, trainer = small.new_model(info), small.new_trainer(num_epochs=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train(
        model,
        torch.float64,
        [torch.device("cpu")],
        [both, energies],
        [both, energies],
        str(tmp_path),
    )
    assert trainer.epoch == 1
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_batches_by_number_of_atoms_from_disk(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    writer = DiskDatasetWriter(str(tmp_path / "small.zip"))
    for sample in dataset:
        writer.write([sample.system], {"energy": sample.energy})
    writer.finish()
    on_disk = DiskDataset(str(tmp_path / "small.zip"), fields=["energy"])
    trainer = small.new_trainer(max_atoms_per_batch=12)
    small.fit(trainer, small.new_model(info), on_disk, on_disk, tmp_path)
    batches = int(re.search(r"(\d+) batches each", caplog.text)[1])
    atoms = sum(len(frame) for frame in small.structures(24))
    assert math.ceil(atoms / 12) <= batches < 24


def test_memory_mapped_data_train_like_those_in_memory(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    frames = small.structures(24)
    folder = tmp_path / "memmap"
    folder.mkdir()
    np.save(folder / "ns.npy", 24)
    np.save(folder / "na.npy", np.cumsum([0] + [len(f) for f in frames]).astype(np.int64))
    arrays = {
        "x": np.concatenate([f.positions for f in frames]).astype(np.float32),
        "a": np.concatenate([f.numbers for f in frames]).astype(np.int32),
        "energy": np.array([f.info["energy"] for f in frames], dtype=np.float32),
        "forces": np.concatenate([f.arrays["forces"] for f in frames]).astype(np.float32),
    }
    for name, array in arrays.items():
        array.tofile(folder / f"{name}.bin")
    mapped = MemmapDataset(folder, small.dataset_options(small.file)["targets"])
    losses = []
    for data in (dataset, mapped):
        caplog.clear()
        trainer = small.new_trainer()
        small.fit(trainer, small.new_model(info), data, data, tmp_path)
        losses.append(float(re.search(r"validation loss: (\S+)", progress(caplog)[-1])[1]))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_batch_larger_than_the_training_set(small, tmp_path):
    dataset, info = small.read(small.file)
    with pytest.raises(ValueError, match=r"fewer samples \(24\) than the batch size \(25\)"):
        small.fit(
            small.new_trainer(batch_size=25), small.new_model(info), dataset, dataset, tmp_path
        )


def test_too_little_memory(small, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    model = small.new_model(info)
    small.fit(small.new_trainer(num_epochs=0), model, dataset, dataset, tmp_path)
    number = re.search(r"training batch needs at least (\S+) MB", caplog.text)[1]
    monkeypatch.setattr(
        memory, "available_memory", lambda device, sharing: float(number) * 1e6 * 0.9
    )
    with pytest.raises(RuntimeError, match="needs more than .* Reduce `batch_size`"):
        small.fit(small.new_trainer(num_epochs=1), model, dataset, dataset, tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))
