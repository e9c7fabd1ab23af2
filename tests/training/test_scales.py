"""Labels that the baseline explains exactly."""

import logging
import math
import re

import ase.io
import pytest
import torch
from metatrain.utils.data import DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.io import model_from_checkpoint
from omegaconf import OmegaConf
from torch.utils.data import Subset

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


def _errors(caplog) -> list[float]:
    return [float(x) for x in re.findall(r"validation loss: (\S+)", caplog.text)]
