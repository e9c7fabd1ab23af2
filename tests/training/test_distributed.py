"""Runs of two processes, on the CPU."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
import torch
from helpers import backbones
from metatrain.utils.hypers import init_with_defaults

from metatrain_lorem.documentation import ChargeEquilibrationHypers

SCRIPT = Path(__file__).with_name("train_small.py")
TESTS = str(SCRIPT.parents[1])
PYTHONPATH = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run(command, folder, check=True):
    """Run a command in a folder; its output is in the message if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, text=True, capture_output=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_processes_equal_one_with_the_same_global_batch(small, tmp_path):
    """Structures of different size and missing labels: the processes' means weigh differently."""
    frames = small.structures(24)
    for i in (0, 1, 2, 5, 11):
        frames[i].info["energy"] = math.nan
    frames[3].arrays["forces"][:] = math.nan
    ase.io.write(tmp_path / "small.xyz", frames)

    check_two_processes(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [False, True])
def test_two_processes_with_a_backbone(small, tmp_path, freeze):
    """A PET from a checkpoint, of whose weights some, or all, get no gradient."""
    backbones.write_trained(tmp_path / "pet.ckpt")
    section = backbones.section(checkpoint=str(tmp_path / "pet.ckpt"), freeze=freeze)
    equilibration = {**init_with_defaults(ChargeEquilibrationHypers), "enable": True}
    hypers = {"backbone": section, "charge_equilibration": equilibration}
    check_two_processes(tmp_path, json.dumps(hypers))


def check_two_processes(folder, *hypers):
    """Gradients, weights and losses of ``small.xyz`` in a folder."""
    run([sys.executable, str(SCRIPT), str(folder), "8", "muon", *hypers], folder)
    run([*TORCHRUN, str(SCRIPT), str(folder), "4", "muon", *hypers], folder)
    one, first, second = (
        json.loads((folder / f"result_{rank}.json").read_text()) for rank in ("only", "0", "1")
    )
    assert first["weights"] == second["weights"]
    assert len(one["gradients"]) == len(first["gradients"]) == 6
    torch.testing.assert_close(
        torch.tensor(first["gradients"]), torch.tensor(one["gradients"]), rtol=1e-8, atol=1e-10
    )
    assert len(one["losses"]) == len(first["losses"]) == 4
    for expected, actual in zip(one["losses"], first["losses"], strict=True):
        assert actual.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-10)
        # metatrain sums errors over processes in single precision
        assert actual == pytest.approx(expected, rel=1e-6)


OPTIONS = """
device: cpu
base_precision: 64
architecture:
  name: lorem
  model: {cutoff: 3.0, num_radial: 4, num_features: 8, num_spherical_features: 2, max_degree: 2}
  training: {batch_size: 4, num_epochs: 2, num_workers: 0, checkpoint_interval: 1}
training_set:
  systems: {read_from: small.xyz, length_unit: angstrom}
  targets: {energy: {key: energy, unit: eV, forces: {key: forces}}}
validation_set: 0.2
"""


@pytest.mark.slow
def test_torchrun_of_mtt_writes_each_file_once(small, tmp_path):
    """The options give no seed: both processes must still split the data alike."""
    (tmp_path / "options.yaml").write_text(OPTIONS)
    output = run([*TORCHRUN, "-m", "metatrain", "train", "options.yaml"], tmp_path)
    assert "Training in torch.float64 on 2 processes" in output
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert {path.name for path in folder.glob("*.ckpt")} == {
        "model_0.ckpt",
        "model_1.ckpt",
        "model.ckpt",
    }
    assert len((folder / "train.csv").read_text().splitlines()) == 2 + 2
    assert (tmp_path / "model.pt").exists()


@pytest.mark.slow
def test_slurm_job_of_mtt_writes_each_file_once(small, tmp_path):
    """Two tasks as SLURM would start them; the options give no seed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = OPTIONS.replace("training: {", f"training: {{distributed_port: {port}, ")
    (tmp_path / "options.yaml").write_text(options)
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "metatrain", "train", "options.yaml"],
            cwd=tmp_path,
            env={**ENVIRONMENT, **job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], "\n".join(outputs)
    assert "Training in torch.float64 on 2 processes" in outputs[0]
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert len((folder / "train.csv").read_text().splitlines()) == 2 + 2
    assert (tmp_path / "model.pt").exists()


@pytest.mark.slow
def test_different_splits_are_refused(small, tmp_path):
    script = tmp_path / "split.py"
    script.write_text(
        "import os, torch\n"
        "from torch.utils.data import Subset\n"
        "from metatrain_lorem.training.distributed import start_processes\n"
        "processes = start_processes([torch.device('cpu')], 0)\n"
        "data = Subset(range(9), [1, 2, int(os.environ['RANK']) + 3])\n"
        "processes.check_same_split([data])\n"
    )
    output = run([*TORCHRUN, str(script)], tmp_path, check=False)
    assert "split the data differently" in output
    assert "Set `seed` at the top level of the options file" in output
