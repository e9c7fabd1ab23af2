"""What the benchmark finds steps of labels by."""

import importlib
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import Calculator

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"needs the repository: no folder {FOLDER}"
)


class Spring(Calculator):
    """A stiff spring between two atoms, with a step of its energy at 2 Å, and an atom alone."""

    implemented_properties = ["energy", "forces"]
    height = 0.02  # eV
    width = 0.02  # Å

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, properties, system_changes)
        vector = atoms.positions[1] - atoms.positions[0]
        distance = np.linalg.norm(vector)
        x = (distance - 2.0) / self.width
        slope = 20.0 * (distance - 1.9) + 0.5 * self.height / self.width / np.cosh(x) ** 2
        forces = np.outer([slope, -slope, 0.0], vector / distance)
        energy = 10.0 * (distance - 1.9) ** 2 + 0.5 * self.height * np.tanh(x)
        self.results = {"energy": energy, "forces": forces}


@pytest.fixture
def label_steps(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("label_steps")


def pair(distance: float) -> ase.Atoms:
    positions = [[0, 0, 0], [0, 0, distance], [0, 0, 9]]
    return ase.Atoms("NaClNa", positions, info={"charge": 1})


def test_finds_the_step(label_steps, monkeypatch):
    """At the step and beside it, but not away from it, nor without one."""
    charges = []
    monkeypatch.setattr(label_steps, "label_method", lambda x: charges.append(x) or Spring())
    near, beside, away = (pair(x) for x in (2.0, 1.97, 1.7))
    assert label_steps.without_steps([near, away, beside]) == [away]
    assert charges == [1, 1, 1]
    smooth = Spring()
    smooth.height = 0.0
    rng = np.random.default_rng(0)
    assert label_steps.largest_step(near, smooth, rng) < 0.5 * label_steps.LARGEST


def test_errors_with_and_without(label_steps, monkeypatch, tmp_path, capsys):
    frames = [pair(2.0), pair(1.7)]
    errors = {"rmse": 1.0, "mae": 0.5}

    def evaluate(model, extensions, path):
        assert (model, extensions) == ("model.pt", "libraries")
        scaled = {x: y * len(ase.io.read(path, ":")) for x, y in errors.items()}
        return {"energy": scaled, "forces": scaled}

    monkeypatch.setattr(label_steps, "label_method", lambda charge: Spring())
    monkeypatch.setattr(label_steps, "DATASETS", {"nacl-clusters": "the clusters"})
    monkeypatch.setattr(label_steps, "load", lambda x, _: {"the clusters": {"test": frames}}[x])
    monkeypatch.setattr(label_steps, "evaluate", evaluate)
    monkeypatch.setattr(sys, "argv", ["label_steps.py", "model.pt", "libraries"])
    label_steps.main()
    assert capsys.readouterr().out.splitlines() == [
        "all: 2 structures, RMSE (MAE) 2.00 (1.00) meV/atom, 2.0 (1.0) meV/Å",
        "without steps: 1 structures, RMSE (MAE) 1.00 (0.50) meV/atom, 1.0 (0.5) meV/Å",
    ]
