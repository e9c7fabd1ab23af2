"""The benchmark of dimers far apart: what it says of labels, and that it runs."""

import argparse
import importlib
import json
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"needs the repository: no folder {FOLDER}"
)
CHARGES = np.array([0.7, 0.3, -0.4, -0.6])


@pytest.fixture
def far_dimers(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield importlib.import_module("far_dimers")
    # a script of its own, which sets both
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def dimers(far_dimers, length: float, charges: np.ndarray = CHARGES) -> list[ase.Atoms]:
    """Two molecules in a box, pulled apart; energies and forces between them only."""
    frames = []
    for distance in np.linspace(8.0, 14.0, 6):
        positions = np.array([[0.0, 0, 0], [0, 0, 1.1], [0, 0, 0], [1.2, 0, 0]])
        positions[2:] += distance / np.sqrt(3)
        energies, forces = far_dimers.box_matrices(positions, length)
        energies[:2, :2] = energies[2:, 2:] = forces[:2, :2] = forces[2:, 2:] = 0
        frame = ase.Atoms("COCO", positions, cell=[length] * 3, pbc=True)
        frame.info |= {"label": "CC", "indexB": 2, "charge": 0}
        frame.info |= {"chargeA": charges[:2].sum(), "chargeB": charges[2:].sum()}
        frame.calc = SinglePointCalculator(
            frame,
            energy=0.5 * charges @ energies @ charges,
            forces=np.einsum("i,ijc,j->ic", charges, forces, charges),
        )
        frames.append(frame)
    return frames


@pytest.mark.parametrize("length", [30.0, np.inf])
def test_forces_of_the_box(far_dimers, length):
    rng = np.random.default_rng(0)
    positions, step = rng.uniform(-4, 4, (3, 3)), 1e-4
    _, forces = far_dimers.box_matrices(positions, length)
    for axis in range(3):
        moved = np.zeros_like(positions)
        moved[0, axis] = step
        ahead, behind = (far_dimers.box_matrices(positions + s * moved, length)[0] for s in (1, -1))
        slope = (ahead - behind)[0] / (2 * step)
        np.testing.assert_allclose(forces[0, 1:, axis], -slope[1:], atol=1e-5)


def test_energies_of_the_box(far_dimers):
    """Two unit charges: in a large box 1/r plus 2 pi r² / 3 V, to leading order."""
    positions = np.array([[0.0, 0, 0], [0, 0, 2.0], [0, 0, 4.0]])
    length = 60.0
    energies, _ = far_dimers.box_matrices(positions, length)
    isolated, _ = far_dimers.box_matrices(positions, np.inf)
    images = (energies - isolated)[0]
    leading = 2 * np.pi / 3 / length**3 * (4.0**2 - 2.0**2) * far_dimers.COULOMB_CONSTANT
    assert images[2] - images[1] == pytest.approx(leading, rel=0.02)
    assert isolated[0, 1] == pytest.approx(far_dimers.COULOMB_CONSTANT / 2.0)


def test_labels_tell_the_box(far_dimers, tmp_path):
    frames = dimers(far_dimers, 30.0)
    for split, part in (("train", frames[:4]), ("test", frames[4:])):
        ase.io.write(tmp_path / f"lode6_{split}.xyz", part)
    frames, num_near = far_dimers.read_frames(tmp_path, "CC", isolated=False)
    assert num_near == 4 and len(frames) == 6
    assert far_dimers.misfit(frames, 30.0) < 0.05
    assert far_dimers.misfit(frames, np.inf) > 0.5


def test_fixed_charges_carry_over(far_dimers, tmp_path, monkeypatch, capsys):
    """Dipoles whose forces are half too large: energies far apart are right if energies count."""
    frames = dimers(far_dimers, 30.0, np.array([0.4, -0.4, 0.3, -0.3]))
    for frame in frames:
        # besides, what acts within the partners
        frame.calc.results["forces"] = 1.5 * frame.calc.results["forces"] + np.eye(4, 3)
    for split, part in (("train", frames[:4]), ("test", frames[4:])):
        ase.io.write(tmp_path / f"lode6_{split}.xyz", part)
    frames, num_near = far_dimers.read_frames(tmp_path, "CC", isolated=False)
    expected = np.array([frame.info["energy"] for frame in frames])
    off = np.ptp(expected[num_near:]) + np.ptp(expected[:num_near])
    right, forces = far_dimers.extrapolated(frames, num_near, 1e6)
    wrong, best = far_dimers.extrapolated(frames, num_near, 1e-6)
    assert right < 0.02 * 1e3 * off < 0.1 * 1e3 * off < wrong
    assert best < 0.05 * forces

    monkeypatch.setattr(far_dimers, "CLOSE", 0)
    far_dimers.print_fixed(argparse.Namespace(data=tmp_path, classes=["CC"]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("CC, energy weight 1000: ")


def test_trains_and_resumes(far_dimers, tmp_path, monkeypatch, capsys):
    frames = dimers(far_dimers, 30.0)
    for split, part in (("train", frames[:4]), ("test", frames[4:])):
        ase.io.write(tmp_path / f"lode6_{split}.xyz", part)
    monkeypatch.setattr(far_dimers, "RESULTS", tmp_path / "results" / "far_dimers.json")
    monkeypatch.setattr(far_dimers, "SIZE", {**far_dimers.SIZE, "num_features": 4})
    arguments = argparse.Namespace(
        data=tmp_path,
        classes=["CC"],
        seeds=[0],
        model="charges",
        isolated=True,
        epochs=1,
        batch_size=2,
        energy_weight=1.0,
        fit_steps=0,
    )
    far_dimers.train_all(arguments)
    (result,) = json.loads(far_dimers.RESULTS.read_text())
    monkeypatch.setattr(far_dimers, "FIT_ENERGY_WEIGHT", 10.0)
    arguments.fit_steps = 2
    capsys.readouterr()
    far_dimers.train_all(arguments)  # the training once more, stored already
    lines = capsys.readouterr().out.splitlines()
    squares = [float(line.split()[-1]) for line in lines if line.startswith("step ")]
    first, fitted = json.loads(far_dimers.RESULTS.read_text())
    assert first == result and first["fit_steps"] == 0
    assert (fitted["fit_steps"], fitted["fit_energy_weight"]) == (2, 10.0)
    assert len(squares) == 3 and squares[2] < squares[1] < squares[0]
    # per atom, of which a dimer has four
    weighted = [10.0 * (x["near"][0] / 4) ** 2 + x["near"][1] ** 2 for x in (first, fitted)]
    assert squares[::2] == pytest.approx(weighted, rel=1e-2)
    energies = np.array(result["energies"])
    assert len(energies) == 6 and result["boundaries"] == "isolated"
    assert result["far"][0] == pytest.approx(np.sqrt((energies[4:] ** 2).mean()), abs=0.01)
    before = far_dimers.RESULTS.read_text()
    far_dimers.train_all(arguments)  # nothing is left to do
    assert far_dimers.RESULTS.read_text() == before
    arguments.fit_steps = 1
    far_dimers.train_all(arguments)  # another row
    assert [x["fit_steps"] for x in json.loads(far_dimers.RESULTS.read_text())] == [0, 2, 1]
    capsys.readouterr()
    far_dimers.print_table(arguments)
    groups = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[-2:] for line in groups[::2]] == [["0", "1"], ["1", "1"], ["2", "1"]]
    assert f"{result['far'][0]:.2f} (" in groups[1]
