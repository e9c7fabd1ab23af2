"""Writing checkpoints so that a reader never sees an incomplete file."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from metatrain.utils.io import check_file_extension


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> Path:
    """
    :param checkpoint: content
    :param path: file to write; ``.ckpt`` is appended where it is missing
    :return: the file
    """
    path = Path(check_file_extension(path, ".ckpt"))
    _remove_remains(path.parent)
    # A name that `mtt train --restart auto` does not take for a checkpoint
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _remove_remains(folder: Path) -> None:
    """Remove the unfinished files of runs that were killed while they wrote a checkpoint."""
    for path in folder.glob(".*.ckpt.*.tmp"):
        # a younger one may be that of a run that still writes; another process may be faster
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()
