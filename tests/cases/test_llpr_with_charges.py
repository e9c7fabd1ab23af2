"""metatrain's LLPR of models that take total charges, and of those that make charges."""

import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from helpers import models, training
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator
from metatrain.__main__ import main as mtt
from metatrain.llpr.model import LLPRUncertaintyModel
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info

from metatrain_lorem.commands.report.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("interpreted")

MODEL_HYPERS = {**training.MODEL_HYPERS, "charge_equilibration": {"enable": True}}
ENERGY = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
SECTION = {"quantity": "charge", "unit": "e", "type": "scalar", "sample_kind": "atom"}
CHARGE = get_generic_target_info("mtt::atomic_charge", {**SECTION, "num_subtargets": 1})


def train(folder: Path, name: str, architecture: dict, precision: int = 64) -> None:
    """Run ``mtt train`` in this process."""

    def data(file: str) -> dict:
        section = {
            "systems": {"read_from": file, "length_unit": "angstrom"},
            "targets": {"energy": {"key": "energy", "unit": "eV", "forces": False}},
        }
        return section | {"extra_data": {"charge": {"key": "charge"}}}

    options = {
        "base_precision": precision,
        "seed": 0,
        "architecture": architecture,
        "training_set": data("train.xyz"),
        "validation_set": data("valid.xyz"),
        "test_set": data("valid.xyz"),
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(options))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["mtt", "train", f"{name}.yaml", "-o", f"{name}.pt"])
        mtt()


def llpr(num_epochs: int | None) -> dict:
    return {
        "name": "llpr",
        "model": {"num_ensemble_members": {"energy": 8}},
        "training": {
            "model_checkpoint": "model.ckpt",
            "batch_size": 4,
            "num_workers": 0,
            "num_epochs": num_epochs,
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, what LLPR makes of it, and one whose ensemble was trained."""
    folder = tmp_path_factory.mktemp("llpr")
    frames = training.structures(24)
    for i, frame in enumerate(frames):
        frame.info["charge"] = i % 4
        frame.info["energy"] += 2.0 * (i % 4)
    ase.io.write(folder / "train.xyz", frames[:16])
    ase.io.write(folder / "valid.xyz", frames[16:])
    hypers = {"num_epochs": 2, "num_workers": 0, "batch_size": 4}
    train(folder, "model", {"name": "lorem", "model": MODEL_HYPERS, "training": hypers})
    train(folder, "llpr", llpr(None))
    train(folder, "trained", llpr(1))
    return folder


def outputs(path: Path, frames) -> dict[str, torch.Tensor]:
    names = ("energy", "energy_uncertainty", "energy_ensemble")
    requested = {n: ModelOutput(sample_kind="system") for n in names}
    results = MetatomicCalculator(path).run_model(frames, requested)
    return {n: results[n].block().values.detach().numpy() for n in names}


@pytest.mark.parametrize("name", ["llpr", "trained"])
def test_size_of_the_uncertainties(folder, name):
    """It is calibrated to the errors of the validation set, at the charges of its structures: with
    those of ASE the ratio is that of a Gaussian's mean absolute value and its standard deviation.
    """
    frames = ase.io.read(folder / "valid.xyz", ":")
    results = outputs(folder / f"{name}.pt", frames)
    labels = np.array([frame.get_potential_energy() for frame in frames])
    ratios = (results["energy"].flatten() - labels) / results["energy_uncertainty"].flatten()
    assert np.mean(abs(ratios)) == pytest.approx(np.sqrt(2 / np.pi), rel=1e-6)
    for frame in frames:
        frame.info["charge"] = 0
    neutral = outputs(folder / f"{name}.pt", frames)
    assert not np.allclose(neutral["energy_uncertainty"], results["energy_uncertainty"], rtol=0.01)


def test_weights_of_the_ensemble_were_trained(folder):
    frames = ase.io.read(folder / "valid.xyz", ":")
    before, after = (outputs(folder / f"{n}.pt", frames) for n in ("llpr", "trained"))
    np.testing.assert_allclose(after["energy"], before["energy"])
    assert not np.allclose(after["energy_ensemble"], before["energy_ensemble"])


def test_outputs_and_inputs_of_the_export(folder):
    """Every uncertainty that is offered has a value."""
    model = MetatomicCalculator(folder / "llpr.pt")._model
    assert list(model.requested_inputs(use_new_names=True)) == ["charge"]
    names = list(model.capabilities().outputs)
    assert [name for name in names if name.endswith("_uncertainty")] == ["energy_uncertainty"]
    assert "charge" in names  # of atoms, which remain
    frame = ase.io.read(folder / "valid.xyz", 1)
    requested = {n: ModelOutput(sample_kind="atom") for n in names}
    results = MetatomicCalculator(folder / "llpr.pt").run_model([frame], requested)
    assert all(torch.isfinite(x.block().values).all() for x in results.values())
    assert len(evaluate(folder / "llpr.pt", folder / "valid.xyz").energy) == 8


def precisions(path: Path) -> tuple[str, bool]:
    """Of an exported model, and whether its energies have digits that single precision lacks."""
    energy = outputs(path, [ase.io.read(path.parent / "valid.xyz", 0)])["energy"]
    return MetatomicCalculator(path)._model.capabilities().dtype, bool(
        np.any(energy != energy.astype(np.float32))
    )


def test_single_precision_is_told(folder, tmp_path, caplog):
    """One line says so, of models whose export is."""
    caplog.set_level("INFO")
    for name in ("train.xyz", "valid.xyz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    hypers = {"num_epochs": 1, "num_workers": 0, "batch_size": 4}
    lorem = {"name": "lorem", "model": MODEL_HYPERS, "training": hypers}
    train(tmp_path, "model", lorem, precision=32)
    text = "exported in single precision throughout"
    assert text not in caplog.text
    train(tmp_path, "llpr", llpr(None), precision=32)
    assert caplog.text.count(text) == 1
    assert precisions(tmp_path / "llpr.pt") == ("float32", False)
    caplog.clear()
    train(folder, "again", llpr(None))
    assert text not in caplog.text
    assert precisions(folder / "again.pt") == ("float64", True)


def test_data_without_total_charges(folder):
    """They are not taken for neutral."""
    wrapped = models.new_model(conditional=True, long_range={"enable": False})
    model = LLPRUncertaintyModel({"num_ensemble_members": {}}, wrapped.dataset_info)
    model.set_wrapped_model(wrapped)
    dataset, _ = training.read(folder / "train.xyz")
    with pytest.raises(ValueError, match="all data sets in the options `extra_data: charge`"):
        model._get_dataloader([dataset], 4, False)


def test_charges_as_a_target():
    """Those of charge equilibration have no last layer."""
    targets = {**ENERGY, "mtt::atomic_charge": CHARGE}
    wrapped = models.new_model(targets, charge_equilibration={"enable": True})
    model = LLPRUncertaintyModel({"num_ensemble_members": {}}, wrapped.dataset_info)
    with pytest.raises(ValueError, match="no uncertainty of 'mtt::atomic_charge'.*remove it from"):
        model.set_wrapped_model(wrapped)


def test_targets_without_data():
    """There is no uncertainty of what LLPR was not calibrated for."""
    targets = {**ENERGY, "mtt::atomic_charge": CHARGE}
    wrapped = models.new_model(targets)
    info = DatasetInfo("angstrom", wrapped.atomic_types, ENERGY)
    model = LLPRUncertaintyModel({"num_ensemble_members": {}}, info)
    model.set_wrapped_model(wrapped)
    uncertainties = [name for name in model.capabilities.outputs if "uncertainty" in name]
    assert uncertainties == ["energy_uncertainty"]
