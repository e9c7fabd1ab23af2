"""Files that ``mtt eval`` of our models must not misread."""

import ase.io
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
