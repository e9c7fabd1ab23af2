"""``set-charge``: a total charge built into a checkpoint, for engines that can't give one to a
model."""

import argparse
import logging
import math
from pathlib import Path
from typing import Any

RANGE_TOLERANCE = 1e-3
"""Margin in e around the trained range: a model in float32 has rounded it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    :param parser: of the command line
    """
    parser.description = (
        "Write a checkpoint whose exported model has one total charge for all "
        "structures. It runs in engines that give a model no total charge. The checkpoint may be a "
        "stranger's: no code in it is run. `mtt export` and `mtt train` run any code that a "
        "checkpoint holds, so give them only those whose source you trust."
    )
    parser.add_argument("checkpoint", help="checkpoint of a model that was trained (.ckpt)")
    parser.add_argument("--total-charge", type=float, required=True, help="in e")
    parser.add_argument("-o", "--output", required=True, help="checkpoint to write (.ckpt)")


def run(arguments: argparse.Namespace) -> None:
    """Build a total charge in.

    :param arguments: as :func:`add_arguments` names them
    :raises ValueError: as :func:`set_charge`
    :raises OSError: if a file can't be read or written
    """
    set_charge(arguments.checkpoint, arguments.total_charge, arguments.output)


def set_charge(checkpoint_path: str | Path, total_charge: float, output_path: str | Path) -> None:
    """Write a checkpoint of a model that takes one total charge for all structures.

    :param checkpoint_path: checkpoint of a model that was trained with total charges, or with
        charges that sum to it; or of LLPR that wraps such a model
    :param total_charge: in e; a warning is logged where the training data have none like it
    :param output_path: checkpoint to write
    :raises ValueError: for a total charge that is not finite, for a file that is not such a
        checkpoint, and if the output is the input
    """
    from ..documentation import has_charges
    from ..training.checkpoint_files import write_checkpoint  # imports PyTorch

    if not math.isfinite(total_charge):
        raise ValueError(f"the total charge must be a finite number: {total_charge}")
    if Path(output_path).resolve() == Path(checkpoint_path).resolve():
        raise ValueError(f"{output_path} would overwrite the model that takes any total charge")
    checkpoint, model = _load(Path(checkpoint_path))
    data = model["model_data"]
    if not has_charges(data["model_hypers"]) and "charge" not in data["dataset_info"].extra_data:
        raise ValueError(
            f"{checkpoint_path}: the model was trained without total charges, without charge "
            "equilibration and without partial charges, so a total charge has no meaning to it"
        )
    lowest, highest = model["model_state_dict"]["total_charge_range"].tolist()
    if not lowest - RANGE_TOLERANCE <= total_charge <= highest + RANGE_TOLERANCE:
        logging.warning(
            f"The total charge {total_charge:g} is outside of the training data's, {lowest:g} to "
            f"{highest:g}: the model extrapolates"
        )
    data["total_charge"] = float(total_charge)
    path = write_checkpoint(checkpoint, output_path)
    logging.info(f"Wrote {path}, with a total charge of {total_charge:g} e")


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checkpoint in a file, and the one of our model in it, in the current version."""
    from ..model import Lorem
    from ..training.checkpoint_files import read_checkpoint

    if path.suffix == ".pt":
        raise ValueError(f"{path} is an exported model; give the checkpoint (.ckpt) it came from")
    checkpoint = read_checkpoint(path)
    model = checkpoint
    if checkpoint["architecture_name"] == "llpr":
        model = checkpoint["wrapped_model_checkpoint"]
    name = model["architecture_name"]
    if name != "lorem":
        raise ValueError(f"{path} is a checkpoint of {name}, not of lorem")
    try:
        # in place
        return checkpoint, Lorem.upgrade_checkpoint(model)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error
