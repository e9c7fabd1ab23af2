"""Which targets of a model new ones start from."""

import logging

from metatrain.utils.data import TargetInfo


def starting_points(old: dict[str, TargetInfo], new: dict[str, TargetInfo]) -> dict[str, str]:
    """Find out which targets go on, and under which names.

    :param old: targets of the model
    :param new: targets of the new data
    :return: for each new target that starts from one of the model, the name of that one
    :raises ValueError: if a target of the same name has another unit or layout
    """
    sources = {}
    for name, target in new.items():
        if name in old:
            if not _alike(old[name], target):
                raise ValueError(
                    f"target '{name}' was trained as {_describe(old[name])}, the new data have "
                    f"{_describe(target)}: convert it, or give it another name"
                )
            sources[name] = name
            continue
        variants = [
            other
            for other, known in old.items()
            if other.split("/")[0] == name.split("/")[0] and _alike(known, target)
        ]
        if len(variants) == 1:
            sources[name] = variants[0]
            logging.info(
                f"Target '{name}' starts from the head, baseline and scale of '{variants[0]}'"
            )
    return sources


def _alike(one: TargetInfo, other: TargetInfo) -> bool:
    """Whether two targets can be read from the same head."""
    return (
        (one.quantity, one.unit, one.sample_kind) == (other.quantity, other.unit, other.sample_kind)
        and one.layout.keys == other.layout.keys
        and all(
            a.values.shape[1:] == b.values.shape[1:]
            for a, b in zip(one.layout.blocks(), other.layout.blocks(), strict=True)
        )
    )


def _describe(target: TargetInfo) -> str:
    shapes = [list(block.values.shape[1:]) for block in target.layout.blocks()]
    quantity = target.quantity or "quantity ''"
    return f"{quantity} in '{target.unit}' per {target.sample_kind}, values of shape {shapes}"
