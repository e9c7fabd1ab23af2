"""Fixtures of all tests."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # one thread for each process, also for those that tests start; PyTorch reads it once
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from types import SimpleNamespace

import ase.io
import pytest
import torch
from helpers import models, training

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared():
    """Folder of data and reference numbers that lies beside the repository in development."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs reference data that is not shipped: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def lorem():
    """Small models, their outputs, and structures of each kind of boundary."""
    frames = {"bulk": models.bulk(), "slab": models.slab(), "molecule": models.molecule()}
    return SimpleNamespace(
        new_model=models.new_model,
        systems=models.systems,
        values=models.values,
        frames=frames,
        with_charge=models.with_charge,
        total_charge_info=models.total_charge_info,
    )


@pytest.fixture(scope="module")
def interpreted():
    """Without the compilation of TorchScript by profiles, which takes longer than all else here."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    yield
    torch._C._set_graph_executor_optimize(before)


@pytest.fixture
def small(tmp_path: Path) -> SimpleNamespace:
    """A file with 24 structures, and what a trainer needs to fit them in seconds."""
    path = tmp_path / "small.xyz"
    ase.io.write(path, training.structures(24))
    return SimpleNamespace(
        file=path,
        structures=training.structures,
        read=training.read,
        new_model=training.new_model,
        new_trainer=training.new_trainer,
        fit=training.fit,
        dataset_options=training.dataset_options,
    )
