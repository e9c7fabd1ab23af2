"""metatrain's ``llpr`` wraps the model: uncertainties from the last-layer features."""

import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
import torch
import yaml
from helpers import backbones
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

pytestmark = pytest.mark.usefixtures("interpreted")

FOLDER = Path(__file__).parent
NUM_MEMBERS = 200
MODEL_HYPERS = {
    "cutoff": 4.0,
    "num_radial": 8,
    "num_features": 8,
    "num_spherical_features": 2,
    "max_degree": 2,
}


def train(folder: Path, name: str, architecture: dict) -> None:
    options = {
        "base_precision": 64,
        "seed": 0,
        "architecture": architecture,
        "training_set": {
            "systems": {"read_from": "molecules.xyz", "length_unit": "angstrom"},
            "targets": {"energy": {"key": "U0", "unit": "eV"}},
        },
        "validation_set": 0.25,
        "test_set": 0.0,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "metatrain", "train", f"{name}.yaml", "-o", f"{name}.pt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("llpr"))


def fill(folder: Path, **hypers) -> Path:
    """A model trained for an epoch, and what llpr makes of its checkpoint."""
    frames = ase.io.read(FOLDER / "resources" / "molecules.xyz", ":40")
    ase.io.write(folder / "molecules.xyz", frames)
    training = {"num_epochs": 1, "num_workers": 0}
    train(folder, "model", {"name": "lorem", "model": MODEL_HYPERS | hypers, "training": training})
    llpr = {
        "name": "llpr",
        "model": {"num_ensemble_members": {"energy": NUM_MEMBERS}},
        "training": {"model_checkpoint": "model.ckpt", "batch_size": 4, "num_workers": 0},
    }
    train(folder, "llpr", llpr)
    return folder


def outputs(folder, name, frames, *names, sample_kind="system"):
    requested = {n: ModelOutput(sample_kind=sample_kind) for n in names}
    results = MetatomicCalculator(folder / name).run_model(frames, requested)
    return {n: results[n].block().values for n in names}


def test_energy_is_that_of_the_wrapped_model(folder):
    frames = ase.io.read(folder / "molecules.xyz", ":5")
    wrapped = outputs(folder, "llpr.pt", frames, "energy")["energy"]
    torch.testing.assert_close(wrapped, outputs(folder, "model.pt", frames, "energy")["energy"])


@pytest.mark.parametrize("sample_kind", ["system", "atom"])
def test_uncertainty_is_the_spread_of_the_ensemble(folder, sample_kind):
    frames = ase.io.read(folder / "molecules.xyz", ":5")
    results = outputs(
        folder,
        "llpr.pt",
        frames,
        "energy",
        "energy_uncertainty",
        "energy_ensemble",
        sample_kind=sample_kind,
    )
    uncertainty, ensemble = results["energy_uncertainty"], results["energy_ensemble"]
    assert (uncertainty > 0).all()
    assert ensemble.shape == (len(uncertainty), NUM_MEMBERS)
    # the standard deviation of 200 samples is known to 5 per cent
    ratio = ensemble.std(dim=1, keepdim=True) / uncertainty
    assert ratio.min() > 0.8 and ratio.max() < 1.2
    torch.testing.assert_close(ensemble.mean(dim=1, keepdim=True), results["energy"])


@pytest.mark.slow
def test_with_a_backbone(tmp_path):
    """Whose energy is part of the model's, and is not in its last layer."""
    backbones.write_trained(tmp_path / "pet.ckpt")
    fill(tmp_path, backbone={"name": "pet", "checkpoint": "pet.ckpt"})
    test_energy_is_that_of_the_wrapped_model(tmp_path)
    test_uncertainty_is_the_spread_of_the_ensemble(tmp_path, "system")


def test_uncertainty_grows_away_from_the_data(folder):
    frame = ase.io.read(folder / "molecules.xyz", 0)
    strange = frame.copy()
    strange.positions *= 0.6
    known, unknown = outputs(folder, "llpr.pt", [frame, strange], "energy_uncertainty")[
        "energy_uncertainty"
    ].flatten()
    assert unknown > 2 * known


@pytest.mark.parametrize("sample_kind", ["system", "atom"])
def test_energy_is_linear_in_the_last_layer_features(lorem, sample_kind):
    """What LLPR presumes, here of a model without baseline and scale."""
    model = lorem.new_model(num_message_passing=1)
    frames = [lorem.frames["bulk"], lorem.frames["molecule"]]
    name = "mtt::aux::energy_last_layer_features"
    features = lorem.values(model, frames, name, sample_kind)
    # stages: density, message passing, long range
    assert features.shape[1] == model.last_layer_feature_size == 3 * 16
    (parameter,) = model.last_layer_parameter_names["energy"]
    weights = model.state_dict()[parameter]
    energy = lorem.values(model, frames, sample_kind=sample_kind)
    torch.testing.assert_close(features @ weights.T, energy)
