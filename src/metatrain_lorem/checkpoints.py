"""Upgrades of checkpoints from one version to the next.

An upgrade from version v is a function ``model_update_v{v}_v{v + 1}`` or
``trainer_update_v{v}_v{v + 1}`` here, which changes the checkpoint in place.
"""

from typing import Any, Literal

import torch

CHARGE_EQUILIBRATION_OFF = {
    "enable": False,
    "energy": "variational",
    "learn_widths": False,
    "atomic_dipoles": False,
    "solver": "auto",
    "accuracy": 1e-6,
    "tolerance": None,
    "max_iterations": 100,
}
"""Hypers of the block that models of version 1 do not have."""


def upgrade(
    checkpoint: dict[str, Any], part: Literal["model", "trainer"], version: int
) -> dict[str, Any]:
    """Bring one part of a checkpoint to the current version.

    :param checkpoint: the checkpoint, changed in place
    :param part: ``model`` or ``trainer``
    :param version: current version of that part
    :return: the checkpoint
    :raises RuntimeError: where no upgrade leads to the current version
    """
    key = f"{part}_ckpt_version"
    for v in range(1, version):
        if checkpoint[key] == v:
            globals()[f"{part}_update_v{v}_v{v + 1}"](checkpoint)
            checkpoint[key] = v + 1
    if checkpoint[key] != version:
        raise RuntimeError(
            f"Unable to upgrade the checkpoint: the checkpoint is using {part} version "
            f"{checkpoint[key]}, while the current {part} version is {version}."
        )
    return checkpoint


def model_update_v1_v2(checkpoint: dict[str, Any]) -> None:
    """Charge equilibration and total charges came with version 2.

    :param checkpoint: changed in place
    """
    data = checkpoint["model_data"]
    data["model_hypers"].setdefault("charge_equilibration", dict(CHARGE_EQUILIBRATION_OFF))
    data.setdefault("total_charge", None)
    # the model neither took total charges nor knew which occurred
    data["dataset_info"].extra_data.pop("charge", None)
    for key in ("model_state_dict", "best_model_state_dict"):
        if checkpoint.get(key) is not None:
            no_range = torch.tensor([torch.inf, -torch.inf])
            checkpoint[key].setdefault("total_charge_range", no_range)
