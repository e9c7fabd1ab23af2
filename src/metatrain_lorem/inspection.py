"""What can be told of a model from outside, whether it is exported or not.

No PyTorch is imported here, so that the hooks into metatrain may use it in any run.
"""

import math
from typing import Any

TOLERANCE = 1e-3
"""Difference in e between total charges that count as equal: a file has rounded them."""


def find_modules(model: Any, name: str) -> list[Any]:
    """
    :param model: a module of Python or, as in exported models, of TorchScript
    :param name: of a class
    :return: the model and what is inside it, where they are of this class
    """
    return [
        module
        for module in model.modules()
        if getattr(module, "original_name", type(module).__name__) == name
    ]


def built_in_charge(model: Any) -> float | None:
    """
    :param model: of this package or another, or one that wraps it as those of LLPR
    :return: the total charge in e that the model takes every structure to have; None if it takes
        total charges as an input, or if they mean nothing to it
    """
    for lorem in find_modules(model, "Lorem"):
        blocks = {name for name, _ in lorem.named_children()}
        knows_charges = blocks & {"charge_equilibration", "partial_charges", "charge_embedding"}
        if knows_charges and not lorem.conditional:
            return float(lorem.total_charge)
    return None


def other_charges(charges: list[float], built_in: float | None) -> list[int]:
    """
    :param charges: total charges of structures in e, NaN where unknown
    :param built_in: :func:`built_in_charge`
    :return: indices of structures that have another one than the model takes them to have
    """
    if built_in is None:
        return []
    return [
        i
        for i, charge in enumerate(charges)
        if not math.isnan(charge) and abs(charge - built_in) > TOLERANCE
    ]


def describe_other_charges(model, dataset) -> str | None:
    """Compare the total charges of a data set with the one that is built into a model.

    :param model: of this package, or one that wraps it
    :param dataset: structures, which have total charges if the options ask for them
    :return: a sentence, or None if there is no difference
    """
    built_in = built_in_charge(model)
    if built_in is None or len(dataset) == 0 or not hasattr(dataset[0], "charge"):
        return None
    charges = [float(dataset[i].charge.block().values) for i in range(len(dataset))]
    different = other_charges(charges, built_in)
    if not different:
        return None
    return (
        f"{len(different)} of {len(dataset)} structures have another total charge than "
        f"{built_in:+g} e, which the model takes all of them to have; the first is structure "
        f"{different[0]}, of {charges[different[0]]:+g} e"
    )
