"""Files that ``mtt eval`` of our models must not misread."""

import re

import ase.io
import numpy as np
import pytest
from helpers import models
from metatrain.cli.eval import eval_model
from omegaconf import OmegaConf


def evaluate(folder, monkeypatch, frames, systems=None, model=None, **energy):
    """Run ``mtt eval`` of a file in a folder."""
    monkeypatch.chdir(folder)
    ase.io.write("data.xyz", frames)
    section = {
        "systems": {"read_from": "data.xyz", **(systems or {})},
        "targets": {"energy": {"unit": "eV", **energy}},
    }
    model = model or models.new_model(long_range={"enable": False}).export()
    eval_model(model, OmegaConf.create(section), output="out.xyz", warm_up=False)


def labelled():
    frames = [models.bulk(), models.molecule()]
    for frame in frames:
        frame.info["energy"] = 0.0
    return frames


@pytest.mark.parametrize("unit", ["bohr", "nm", "furlong", "eV"])
def test_another_unit_of_length(tmp_path, monkeypatch, unit):
    """metatrain takes all numbers for those of the model's unit."""
    message = (
        f"systems.length_unit: data.xyz is in '{unit}', but the model takes lengths in 'angstrom'"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, monkeypatch, labelled(), {"length_unit": unit})
    assert not (tmp_path / "out.xyz").exists()


@pytest.mark.parametrize("unit", ["angstrom", "A", "Angstrom", ""])
def test_the_unit_of_the_model(tmp_path, monkeypatch, unit):
    """Under any of its names."""
    evaluate(tmp_path, monkeypatch, labelled(), {"length_unit": unit})
    assert len(ase.io.read(tmp_path / "out.xyz", ":")) == 2


def with_stress(frames):
    for frame in frames:
        frame.info["energy"] = 0.0
        frame.arrays["forces"] = np.zeros((len(frame), 3))
        if frame.pbc.all():
            frame.info["stress"] = np.zeros((3, 3))
    return frames


@pytest.mark.parametrize("molecule_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"stress": True}, {"stress": {"key": "stress"}}])
def test_stress_of_some_structures(tmp_path, monkeypatch, caplog, molecule_first, options):
    """metatrain drops that of all; the error is that of a crystal alone."""
    caplog.set_level("INFO")
    crystal, molecule = with_stress([models.bulk(), models.molecule()])
    model = models.new_model(long_range={"enable": False}).export()
    evaluate(tmp_path, monkeypatch, [crystal], model=model, **options)
    expected = strain_error(caplog)
    frames = [molecule, crystal] if molecule_first else [crystal, molecule]
    evaluate(tmp_path, monkeypatch, frames, model=model, **options)
    assert strain_error(caplog) == expected
    missing = 0 if molecule_first else 1
    assert (
        f"1 of 2 structures of the evaluation set (data.xyz) have no stress (first: structure "
        f"{missing}, no 'stress'): left out of the errors"
    ) in caplog.text


def strain_error(caplog) -> str:
    """That of the last evaluation in the log."""
    return re.findall(r"energy_strain_gradients RMSE.*?: (\S+) meV", caplog.text)[-1]


def test_stress_of_no_structure(tmp_path, monkeypatch):
    frames = with_stress([models.molecule()])
    message = "ask for stress .energy., but structure 0 of the evaluation set .data.xyz"
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, monkeypatch, frames, stress=True)


def test_one_of_several_sets(tmp_path, monkeypatch, caplog):
    """They count from 0; one without targets reads no labels."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("data.xyz", with_stress([models.bulk(), models.molecule()]))
    systems = {"systems": {"read_from": "data.xyz"}}
    options = [systems, {**systems, "targets": {"energy": {"unit": "eV"}}}]
    model = models.new_model(long_range={"enable": False}).export()
    eval_model(model, OmegaConf.create(options), output="out.xyz", warm_up=False)
    assert "structures of the evaluation set 1 (data.xyz) have no stress" in caplog.text
