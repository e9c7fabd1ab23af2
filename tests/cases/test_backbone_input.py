"""Options of a backbone, and data for one, that once ended in riddles or in wrong baselines."""

import copy
import logging

import ase.io
import numpy as np
import pytest
import torch
from helpers import backbones, models, training
from metatrain.cli.train import train_model
from metatrain.utils.data import DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.hypers import init_with_defaults
from metatrain.utils.io import model_from_checkpoint
from omegaconf import OmegaConf

from metatrain_lorem.documentation import ChargeEquilibrationHypers, ModelHypers
from metatrain_lorem.model import Lorem

QEQ = {**init_with_defaults(ChargeEquilibrationHypers), "enable": True}
EXTRA = {"quantity": "", "unit": "e", "type": "scalar", "num_subtargets": 1, "description": ""}


# options


@pytest.mark.parametrize(
    "model, message",
    [
        ({"backbone": "pet"}, "model.backbone: 'pet' is no section"),
        ({"backbone": ["pet"]}, r"model.backbone: \['pet'\] is no section"),
        ({"backbone": {"name": "pet", "hypers": [1]}}, r"backbone.hypers: \[1\] is no section"),
        ({"backbone": {"name": "pet", "checkpoint": "."}}, "checkpoint: . is a folder, no file"),
        ({"backbone": {"name": "pet", "checkpoint": ""}}, "checkpoint: the path is empty"),
        ({"backbone": {"name": "pet", "checkpoint": "~/a.ckpt"}}, r"no file .*/home/a.ckpt \("),
    ],
)
def test_refused(model, message, tmp_path, monkeypatch):
    """Before the data are read, which do not exist either."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    systems = {"read_from": "none.xyz", "length_unit": "angstrom"}
    options = {
        "device": "cpu",
        "architecture": {"name": "lorem", "model": model},
        "training_set": {"systems": systems, "targets": {"energy": {"unit": "eV"}}},
        "validation_set": 0.5,
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_model(OmegaConf.create(options), checkpoint_dir=tmp_path, output="model.pt")


def test_few_degrees_without_the_long_range_block():
    """The default of its own ``max_degree`` is 2."""
    hypers = copy.deepcopy(init_with_defaults(ModelHypers))
    hypers["max_degree"] = 1
    info = DatasetInfo(
        "angstrom", [1, 8], {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    )
    with pytest.raises(ValueError, match="long_range.max_degree: 2 is not between"):
        Lorem(hypers, info)
    hypers["long_range"]["enable"] = False
    values = models.values(Lorem(hypers, info).to(torch.float64).eval(), training.structures(1))
    assert torch.isfinite(values).all()


# baselines of charged structures, at first without what it takes to charge them


@pytest.fixture(scope="module")
def pet(tmp_path_factory):
    path = tmp_path_factory.mktemp("pet") / "pet.ckpt"
    return backbones.write_trained(path), path


def read(path, frames):
    """Data with total charges."""
    ase.io.write(path, frames)
    options = OmegaConf.to_container(training.dataset_options(path))
    charge = {**EXTRA, "read_from": str(path), "reader": "ase", "key": "charge"}
    extra_data = {"charge": {**charge, "sample_kind": "system"}}
    data, targets, extra = get_dataset(OmegaConf.create({**options, "extra_data": extra_data}))
    return data, DatasetInfo("angstrom", get_atomic_types(data), targets, extra)


def labelled(reference, number, shift=2.0):
    """Structures with the energies of a model, and another zero."""
    frames = training.structures(number)
    energies = models.values(reference, frames).flatten().tolist()
    for frame, energy in zip(frames, energies, strict=True):
        frame.info.update(energy=energy + shift * len(frame), charge=0.0)
    return frames


def baselines(model):
    return model.additive_models[0].model.weights["energy"].block().values.flatten()


def begin(model, data, folder):
    trainer = training.new_trainer(num_epochs=0)
    training.fit(trainer, model, data, data, folder)
    return model.to(torch.float64).eval()


def test_start_from_a_checkpoint_with_charged_structures(pet, tmp_path, caplog):
    """Neutral structures stay exact, whatever charged ones say."""
    caplog.set_level(logging.INFO)
    frames = labelled(pet[0], 12)
    for frame in frames[6:]:
        frame.info["charge"] = 3.0
    data, info = read(tmp_path / "charged.xyz", frames)
    section = backbones.section(checkpoint=str(pet[1]))
    model = begin(
        training.new_model(info, backbone=section, charge_equilibration=QEQ), data, tmp_path
    )
    labels = torch.tensor([[frame.info["energy"]] for frame in frames])
    errors = (models.values(model, frames) - labels).abs().flatten()
    print(f"{errors[:6].max():.1e} eV of neutral ones, {errors[6:].min():.1e} eV of charged ones")
    assert errors[:6].max() < 1e-3 < 1.0 < errors[6:].min()
    expected = torch.tensor([-100.0 + 2.0, -800.0 + 2.0], dtype=torch.float64)
    torch.testing.assert_close(baselines(model), expected, rtol=0.0, atol=1e-3)
    assert "6 charged structures of the training set only decide what 6 neutral ones" in caplog.text
    assert "No neutral structure" not in caplog.text


def test_elements_of_charged_structures_only(pet, tmp_path, caplog):
    """Another zero of energy is found all the same, with a warning."""
    frames = labelled(pet[0], 12, shift=1e3)
    for frame in frames[6:]:
        frame.info["charge"] = 1.0
    for frame in frames[:6]:
        del frame[frame.numbers == 1]
        frame.info["energy"] = models.values(pet[0], [frame]).item() + 1e3 * len(frame)
    data, info = read(tmp_path / "charged.xyz", frames)
    section = backbones.section(checkpoint=str(pet[1]))
    model = begin(
        training.new_model(info, backbone=section, charge_equilibration=QEQ), data, tmp_path
    )
    hydrogen, oxygen = (baselines(model) - torch.tensor([900.0, 200.0])).abs().tolist()
    assert oxygen < 1e-2 and 0.1 < hydrogen < 20.0
    assert "No neutral structure of the training set has H: the baseline contains" in caplog.text


def test_charge_equilibration_that_is_switched_on(tmp_path, caplog):
    """In fine-tuning; once trained, charged structures count like others."""
    caplog.set_level(logging.INFO)
    frames = training.structures(12)
    for i, frame in enumerate(frames):
        frame.info["charge"] = 2.0 * (i % 2)
    data, info = read(tmp_path / "charged.xyz", frames)
    first = training.new_model(info)
    training.fit(training.new_trainer(num_epochs=1), first, data, data, tmp_path)

    def tuned(model, **hypers):
        caplog.clear()
        checkpoint = {**copy.deepcopy(model.get_checkpoint()), "best_epoch": 0}
        return model_from_checkpoint(checkpoint, "finetune").restart(info, hypers)

    model = begin(tuned(first, charge_equilibration=QEQ), data, tmp_path)
    assert "6 charged structures of the training set only decide" in caplog.text
    labels = torch.tensor([[frame.info["energy"]] for frame in frames])
    errors = (models.values(model, frames) - labels).numpy()[::2, 0]
    counts = np.array([[(f.numbers == z).sum() for z in (1, 8)] for f in frames[::2]])
    assert np.abs(np.linalg.lstsq(counts, errors, rcond=None)[0]).max() < 1e-3
    begin(tuned(model, charge_equilibration=QEQ), data, tmp_path)
    assert "only decide" not in caplog.text
