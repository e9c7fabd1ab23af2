"""Scales of energies with forces, and of labels that the baseline explains exactly."""

import logging
import math
import re

import ase.io
import numpy as np
import pytest
import torch
from metatrain.utils.data import DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.io import model_from_checkpoint
from omegaconf import OmegaConf
from torch.utils.data import Subset

from metatrain_lorem.trainer import Trainer

TARGETS = {
    "partial": {"sample_kind": "atom", "type": "scalar"},
    "total": {"sample_kind": "system", "type": "scalar"},
    "dipole_moment": {"sample_kind": "system", "type": {"cartesian": {"rank": 1}}},
}


@pytest.mark.parametrize("target", TARGETS)
def test_labels_without_a_scale(small, tmp_path, caplog, target):
    """Of the target per atom those of one element, of the others all."""
    caplog.set_level(logging.INFO)
    frames = small.structures(24)
    for i, frame in enumerate(frames):
        oxygen = frame.numbers == 8
        frame.arrays["partial"] = oxygen * -0.2 + ~oxygen * 0.01 * frame.positions[:, 0]
        frame.info["total"] = 0.3 * len(frame)
        frame.info["dipole_moment"] = [0.0, 0.0, 0.0]
        if i >= 18:
            frame.arrays["partial"][oxygen] -= 0.1
            frame.info["total"] += 0.1
            frame.info["dipole_moment"][0] = 0.1
    path = tmp_path / "exact.xyz"
    ase.io.write(path, frames)
    name = f"mtt::{target}"
    options = small.dataset_options(path)
    section = {**options["targets"]["energy"], "key": target, "quantity": "", "unit": ""}
    section = {**section, "forces": False, **TARGETS[target]}
    dataset, infos, _ = get_dataset(
        OmegaConf.create({"systems": options["systems"], "targets": {name: section}})
    )
    info = DatasetInfo("angstrom", get_atomic_types(dataset), infos)
    model = small.new_model(info)
    loss = small.new_trainer().hypers["loss"]["energy"]
    trainer = small.new_trainer(loss={name: loss})
    train, valid = Subset(dataset, range(18)), Subset(dataset, range(18, 24))
    small.fit(trainer, model, train, valid, tmp_path)

    assert sum(f"Target '{name}': the baseline leaves nothing" in m for m in caplog.messages) == 1
    assert all(math.isfinite(value) for value in _errors(caplog)) and len(_errors(caplog)) == 2

    trainer.save_checkpoint(model, tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
    loaded = model_from_checkpoint(checkpoint, context="restart")
    for scaler in (model.scaler, loaded.scaler):
        for scales in (scaler.model.scales[name], scaler.model.per_target_scales[name]):
            values = scales.block().values.reshape(-1).tolist()
            assert values[-1] == 1.0
            assert all(math.isfinite(value) and value > 1e-4 for value in values)
    if target == "partial":
        assert values[0] != 1.0


@pytest.mark.parametrize(
    "scale, forces, unit",
    [
        ("forces", True, "angstrom"),
        ("forces", True, "nm"),
        ("forces", False, "angstrom"),
        ("energies", True, "angstrom"),
    ],
)
def test_forces_enter_the_scale_of_energies(small, tmp_path, caplog, scale, forces, unit):
    """As much as they are at 1 Å; without their labels the scale is that of energies."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "frames.xyz"
    frames = small.structures(12)
    ase.io.write(path, frames)
    options = small.dataset_options(path)
    options["systems"]["length_unit"] = unit
    if not forces:
        options["targets"]["energy"]["forces"] = False
    dataset, infos, _ = get_dataset(options)
    model = small.new_model(DatasetInfo(unit, get_atomic_types(dataset), infos))
    train, valid = Subset(dataset, range(9)), Subset(dataset, range(9, 12))
    trainer = small.new_trainer(num_epochs=1, batch_size=3, energy_scale=scale)
    small.fit(trainer, model, train, valid, tmp_path)

    types = sorted(get_atomic_types(dataset))
    numbers = np.array([[(x.numbers == z).sum() for z in types] for x in frames[:9]])
    energies = np.array([x.info["energy"] for x in frames[:9]])
    rest = energies - numbers @ np.linalg.lstsq(numbers, energies)[0]
    square = np.mean((rest / numbers.sum(axis=1)) ** 2)
    acts = forces and scale == "forces"
    if acts:
        angstrom = 1.0 if unit == "angstrom" else 0.1
        components = np.concatenate([x.arrays["forces"].ravel() for x in frames[:9]])
        square += np.mean((angstrom * components) ** 2)
    assert any("Scale of 'energy'" in message for message in caplog.messages) == acts
    unused = any("`energy_scale: forces` has no effect" in x for x in caplog.messages)
    assert unused == (scale == "forces" and not acts)
    trainer.save_checkpoint(model, tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
    for x in (model, model_from_checkpoint(checkpoint, context="restart")):
        for scales in (x.scaler.model.scales, x.scaler.model.per_target_scales):
            assert scales["energy"].block().values.item() == pytest.approx(square**0.5, rel=1e-3)


def test_scales_of_checkpoints_stay(small, tmp_path, caplog):
    """Whatever the options say in a restart, and forces of one that was fixed."""
    caplog.set_level(logging.INFO)
    dataset, info = small.read(small.file)
    train, valid = Subset(dataset, range(9)), Subset(dataset, range(9, 12))
    model = small.new_model(info)
    trainer = small.new_trainer(num_epochs=1, fixed_scaling_weights={"energy": 0.3})
    trainer.hypers["energy_scale"] = "forces"
    small.fit(trainer, model, train, valid, tmp_path)
    assert model.scaler.model.scales["energy"].block().values.item() == 0.3
    trainer.save_checkpoint(model, tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
    again = model_from_checkpoint(checkpoint, context="restart").restart(info)
    hypers = small.new_trainer(num_epochs=2, energy_scale="forces").hypers
    small.fit(Trainer.load_checkpoint(checkpoint, hypers, "restart"), again, train, valid, tmp_path)
    assert again.scaler.model.scales["energy"].block().values.item() == 0.3
    assert sum("`energy_scale: forces` has no effect" in x for x in caplog.messages) == 1
    assert sum(x == "Scale of 'energy': 0.3, as it was before" for x in caplog.messages) == 1


def _errors(caplog) -> list[float]:
    return [float(x) for x in re.findall(r"validation loss: (\S+)", caplog.text)]
