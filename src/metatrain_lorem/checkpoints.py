"""Upgrades of checkpoints from one version to the next.

An upgrade from version v is a function ``model_update_v{v}_v{v + 1}`` or
``trainer_update_v{v}_v{v + 1}`` here, which changes the checkpoint in place.
"""

from typing import Any, Literal


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
