"""A training run that is killed and restarted, as a user does it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.morse import MorsePotential

import metatrain_lorem.model  # noqa: F401  (its import makes the classes in checkpoints known)

OPTIONS = """
seed: 5
device: cpu
base_precision: 64
architecture:
  name: lorem
  model: {cutoff: 3.0, num_radial: 4, num_features: 8, num_spherical_features: 2, max_degree: 2}
  # errors that fall slowly: the digits of metatrain's table follow from the first epoch of a run
  training:
    {optimizer: adamw, learning_rate: 1e-3, batch_size: 4, num_epochs: 12, num_workers: 0,
     checkpoint_interval: 2}
training_set:
  systems: {read_from: clusters.xyz, length_unit: angstrom}
  targets: {energy: {key: energy, unit: eV, forces: {key: forces}}}
validation_set: 0.2
"""


def mtt(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "metatrain", "train", "options.yaml", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def prepare(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    frames = []
    for n in 8 * [3, 4, 5]:
        frame = ase.Atoms("HOHHO"[:n], positions=1.2 * rng.normal(size=(n, 3)))
        frame.calc = MorsePotential(epsilon=0.5, r0=1.3, rho0=2.0)
        frame.info["energy"], frame.arrays["forces"] = (
            frame.get_potential_energy(),
            frame.get_forces(),
        )
        frame.calc = None
        frames.append(frame)
    folder.mkdir()
    ase.io.write(folder / "clusters.xyz", frames)
    (folder / "options.yaml").write_text(OPTIONS)
    return folder


def last_figures(folder: Path) -> list[float]:
    """The last line of the newest table of errors. How many digits it has follows from the size of
    errors in the first epoch of the run."""
    newest = max(folder.glob("outputs/*/*/train.csv"), key=lambda path: path.stat().st_mtime)
    return [float(figure) for figure in newest.read_text().splitlines()[-1].split(",")]


@pytest.mark.slow
def test_killed_run_ends_with_the_figures_of_an_uninterrupted_one(tmp_path):
    uninterrupted, killed = prepare(tmp_path / "uninterrupted"), prepare(tmp_path / "killed")
    process = mtt(uninterrupted)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output

    process = mtt(killed)
    while not list(killed.glob("outputs/*/*/model_2.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "model.ckpt").exists(), "the run had ended before it was killed"

    process = mtt(killed, "--restart", "auto")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert last_figures(killed) == pytest.approx(last_figures(uninterrupted), rel=1e-4)
    checkpoints = [
        torch.load(folder / "model.ckpt", weights_only=False) for folder in (uninterrupted, killed)
    ]
    assert checkpoints[0]["best_epoch"] == checkpoints[1]["best_epoch"]
    assert checkpoints[0]["best_metric"] == checkpoints[1]["best_metric"]
    states = [checkpoint["model_state_dict"] for checkpoint in checkpoints]
    for name, value in states[0].items():
        # metatrain leaves the entries of unknown elements undefined
        if not name.endswith("type_to_index"):
            assert torch.equal(value, states[1][name]), name


@pytest.mark.slow
def test_truncated_checkpoint(tmp_path):
    folder = prepare(tmp_path / "run")
    whole = tmp_path / "whole.ckpt"
    torch.save({"architecture_name": "lorem", "weights": torch.zeros(100_000)}, whole)
    content = whole.read_bytes()
    (folder / "cut.ckpt").write_bytes(content[:-1000])
    process = mtt(folder, "--restart", "cut.ckpt")
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 1
    assert "Restarting training from 'cut.ckpt'" in output
    assert "there is a high likelihood that your checkpoint file is corrupted" in output
