"""Targets in their own units: no baseline, no scale."""

from metatensor.torch import TensorMap
from metatrain.utils.abc import ModelInterface

Weights = dict[str, float | dict[int, float]]


def unscaled_targets(model: ModelInterface) -> list[str]:
    """
    :param model: the model
    :return: its targets without baseline and scale. Charges that a head has learnt in other units,
        in an older version, stay in these
    """
    equilibrated = model.charge_equilibration is not None
    new = model.scaler.new_outputs
    return [name for name in model.unscaled_targets if equilibrated or name in new]


def with_fixed(
    weights: Weights | str, targets: list[str], value: float, hyper: str
) -> Weights | str:
    """
    :param weights: baselines or scales that the user has fixed, or a checkpoint of them
    :param targets: targets to fix
    :param value: their baseline or scale
    :param hyper: name of the hyper that ``weights`` are from
    :return: the same with ``targets`` fixed; a checkpoint is for :func:`check_fixed` to judge
    :raises ValueError: where the user has fixed another value for one of ``targets``
    """
    if isinstance(weights, str):
        return weights
    for name in targets:
        given = weights.get(name, value)
        if any(x != value for x in (given.values() if isinstance(given, dict) else [given])):
            raise ValueError(_message(name, value, hyper))
    return {**weights, **dict.fromkeys(targets, value)}


def check_fixed(
    weights: dict[str, TensorMap], targets: list[str], value: float, hyper: str
) -> None:
    """
    :param weights: fitted or loaded baselines or scales
    :param targets: targets whose values must be fixed
    :param value: their baseline or scale
    :param hyper: name of the hyper that fixes them
    :raises ValueError: for other values, e.g. from a checkpoint
    """
    for name in targets:
        if any((block.values != value).any() for block in weights[name].blocks()):
            raise ValueError(_message(name, value, hyper))


def _message(name: str, value: float, hyper: str) -> str:
    return (
        f"Target '{name}' is predicted in its own unit, with {hyper} {value}: the charges of atoms "
        f"sum to the total charge. Remove other values from `{hyper}`, or leave out a checkpoint "
        "that has them."
    )
