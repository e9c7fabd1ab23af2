"""Files that take long to make, made once for all processes of pytest-xdist."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def common_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A temporary folder that all processes of a run of pytest share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # that of the process is in that of the run
        folder = folder.parent
    folder = folder / name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process makes files in a folder."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
