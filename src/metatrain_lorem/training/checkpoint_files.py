"""Checkpoints as files: written so that a reader never sees an incomplete one, read so that a
stranger's runs no code."""

import contextlib
import os
import pickle
import secrets
import time
from pathlib import Path
from typing import Any

import torch
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.io import check_file_extension


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this architecture without running what else its pickle may hold.

    Beyond what PyTorch takes for safe, metatrain's descriptions of the data and the objects of
    metatensor and metatomic (``torch.ScriptObject``) are made.

    :param path: file that :func:`write_checkpoint` wrote
    :return: the content, tensors on the CPU
    :raises ValueError: for a file of another kind, and one that holds objects of other classes
    :raises OSError: if the file can't be read
    """
    known = [DatasetInfo, TargetInfo, torch.ScriptObject]
    try:
        with torch.serialization.safe_globals(known):
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        checkpoint["architecture_name"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        # PyTorch's message surrounds the reason with advice to load the file all the same
        before = str(error).split("Check the documentation of torch.load")[0].strip()
        reason = before.split("\n")[-1].split(". ")[0]
        raise ValueError(
            f"{path} is not a checkpoint (.ckpt) of metatrain, or it holds objects that no "
            f"checkpoint of lorem has, which are not loaded since they could run any code: {reason}"
        ) from error
    return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> Path:
    """
    :param checkpoint: content
    :param path: file to write; ``.ckpt`` is appended where it is missing
    :return: the file
    """
    path = Path(check_file_extension(path, ".ckpt"))
    _remove_remains(path.parent)
    # A name that `mtt train --restart auto` does not take for a checkpoint, and that nobody else
    # who may write to the folder can guess and make a link of, which would be followed
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
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
