"""Targets in their own units: no baseline, no scale."""

import logging
import math
from typing import Any

import torch
from metatensor.torch import TensorMap
from metatrain.utils.abc import ModelInterface

from ..heads.charges import DIPOLE_MOMENT
from ..heads.response import BORN_CHARGE
from .total_charges import TOTAL_CHARGE

Weights = dict[str, float | dict[int, float]]

LARGEST_EXCESS = 0.1
"""Of the sum of the Born charges of a structure over its total charge in e, which calculations do
not exceed; labels of another structure, or a wrong total charge, do."""


def unscaled_targets(model: ModelInterface) -> list[str]:
    """
    :param model: the model
    :return: its targets without baseline and scale. Charges that a head has learnt in other units,
        in an older version, stay in these
    """
    charged, new = model.readout.has_charges, model.scaler.new_outputs
    return [name for name in model.unscaled_targets if charged or name in new]


def warn_of_unused_dipoles(model: ModelInterface) -> None:
    """Say where nothing trains the learned dipoles of atoms.

    :param model: the model
    """
    options = model.hypers["charge_equilibration"]
    if (
        options["enable"]
        and options["atomic_dipoles"]
        and DIPOLE_MOMENT not in model.dataset_info.targets
    ):
        logging.warning(
            "charge_equilibration.atomic_dipoles has no effect: the dipoles of atoms belong to the "
            f"target '{DIPOLE_MOMENT}', which the data do not have. Add it, or leave the option out"
        )


def check_dipole(fields: dict[str, Any], structure: str) -> None:
    """Refuse dipole moments that charges cannot be compared with.

    :param fields: structure and labels
    :param structure: what to call it in errors
    :raises ValueError: for the dipole moment of a periodic structure
    """
    if DIPOLE_MOMENT in fields and fields["system"].pbc.any():
        if not fields[DIPOLE_MOMENT].block().values.isnan().all():
            raise ValueError(
                f"{structure} is periodic and has a dipole moment, which depends on the choice of "
                f"the cell: set its '{DIPOLE_MOMENT}' to NaN"
            )


def check_born_charges(fields: dict[str, Any], structure: str, default: float) -> None:
    """Refuse Born charges that violate the sum rule.

    :param fields: structure, labels and extra data
    :param structure: what to call it in errors
    :param default: total charge of structures without, e
    :raises ValueError: where the sum over all atoms is no multiple of the unit matrix by the total
        charge
    """
    if BORN_CHARGE not in fields:
        return
    total = default
    if TOTAL_CHARGE in fields:
        given = float(fields[TOTAL_CHARGE].block().values)
        total = given if math.isfinite(given) else 0.0
    born = fields[BORN_CHARGE].block().values.double().sum(dim=0).squeeze(2)
    excess = float((born - total * torch.eye(3, dtype=born.dtype)).abs().max())
    if excess > LARGEST_EXCESS:
        rows = [[round(x, 4) for x in row] for row in born.tolist()]
        raise ValueError(
            f"{structure}: its Born charges ('{BORN_CHARGE}') sum to {rows} e, which is off by "
            f"{excess:.3g} e from the total charge, {total:g} e, times the unit matrix (the "
            "acoustic sum rule). Correct them or the total charge, or set them to NaN"
        )


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
