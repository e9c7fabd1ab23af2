"""A trained model for more training: other targets, elements, blocks and solver settings."""

import logging
from typing import Any

from metatrain.utils.abc import ModelInterface
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.hypers import get_hypers_diff, raise_hypers_mismatch

from .documentation import check_hypers
from .extension import BLOCKS, extended, newly_unscaled
from .variants import starting_points


def restart(
    model: ModelInterface, dataset_info: DatasetInfo, hypers: dict[str, Any] | None
) -> ModelInterface:
    """Prepare a model for more training, perhaps with other targets, elements or blocks.

    Targets that the new data lack are dropped: their heads would no longer fit the features. A new
    target starts from the head, baseline and scale of an old one where both are variants of one
    quantity (``energy`` and ``energy/r2scan``). A new element starts as the mean of those that the
    model knows.

    :param model: as loaded from a checkpoint
    :param dataset_info: of the new data
    :param hypers: of the new run. Those given must equal the model's own, but for how charges are
        solved for, whether the backbone is trained, and for blocks, which may be switched on: a new
        long-range block starts without any effect on the outputs
    :return: the model, or its extended copy
    :raises ValueError: for other hypers, units or layouts of targets
    """
    blocks = {} if hypers is None else new_blocks(model, hypers)
    old = model.dataset_info
    if dataset_info.length_unit != old.length_unit:
        raise ValueError(
            f"lengths of the new data are in '{dataset_info.length_unit}', those of the checkpoint "
            f"in '{old.length_unit}': convert the data"
        )
    info = DatasetInfo(
        old.length_unit,
        sorted({*model.atomic_types, *dataset_info.atomic_types}),
        dataset_info.targets,
        {**old.extra_data, **dataset_info.extra_data},
    )
    sources = starting_points(old.targets, info.targets)
    dropped = [name for name in old.targets if name not in info.targets]
    if dropped:
        logging.info(
            f"Targets {dropped} of the checkpoint are not among the new ones and are dropped: the "
            "features that they are read from are about to change. To keep one, train it along"
        )
    new_input = "charge" in dataset_info.extra_data and not model.conditional
    if not model.conditional and model.total_charge != 0.0 and not new_input:
        logging.info(
            f"The checkpoint has a total charge of {model.total_charge:g} e built in, which all "
            "structures are taken to have (no `extra_data: charge`)"
        )
    other_targets = info.targets.keys() != old.targets.keys()
    if blocks or new_input or other_targets or info.atomic_types != model.atomic_types:
        model = extended(model, info, blocks, sources)
        if new_input:
            model.conditional, model.total_charge = True, 0.0
            model.built_in_charge = ""
    model.dataset_info = info
    # what the trainer has still to fit
    unscaled = newly_unscaled(model, blocks)
    new = [name for name in info.targets if name not in sources or name in unscaled]
    composition = model.additive_models[0]
    composition._new_outputs = [name for name in new if name in composition.outputs]
    model.scaler.new_outputs = new
    return model


def new_blocks(model: ModelInterface, hypers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Compare the hypers of a new run with those of the model.

    :param model: changed where it may be, see :func:`take_solver`
    :param hypers: of the new run
    :return: blocks to switch on, with their hypers
    :raises ValueError: for any other difference
    """
    defaults = get_default_hypers("lorem")["model"]
    kept = {
        name: value
        for name, value in model.hypers.items()
        if name not in hypers and value != defaults.get(name)
    }
    if kept:
        logging.info(
            "What the section `model` leaves out is kept as in the checkpoint, which differs from "
            f"the defaults in {kept}"
        )
    if "charge_equilibration" in hypers:
        # in a section that is given, what is left out has the default value
        options = {**defaults["charge_equilibration"], **hypers["charge_equilibration"]}
        take_solver(model, options)
    if "backbone" in hypers and model.backbone is not None:
        options = {**defaults["backbone"], **hypers["backbone"]}
        take_freeze(model, options["freeze"])
        hypers = {**hypers, "backbone": keep_source(model, options)}
    if hypers.get("norms", model.hypers["norms"]) != model.hypers["norms"]:
        logging.info(f"`norms` stays {model.hypers['norms']!r}, with which the model was trained")
        hypers = {**hypers, "norms": model.hypers["norms"]}
    changes = get_hypers_diff(model.hypers, hypers, default_hypers=defaults)
    blocks = {}
    for block in BLOCKS:
        before, now = changes.get(block, ({"enable": True}, {}))
        if now.get("enable", False) and not before["enable"]:
            blocks[block] = now
            del changes[block]
    raise_hypers_mismatch(changes)
    return blocks


def take_freeze(model: ModelInterface, freeze: bool) -> None:
    """Take over whether the backbone is trained.

    :param model: changed in place
    :param freeze: ``backbone.freeze`` of the new run
    """
    options = model.hypers["backbone"]
    if freeze != options["freeze"]:
        logging.info(f"backbone.freeze was {options['freeze']}, now {freeze}")
        options["freeze"] = freeze
        model.backbone.freeze(freeze)


def keep_source(model: ModelInterface, options: dict[str, Any]) -> dict[str, Any]:
    """Where the backbone was first loaded from no longer matters.

    :param model: the model, which holds its backbone
    :param options: ``backbone`` of the new run
    :return: the same with the path that the model was made with, if there was one
    """
    path = model.hypers["backbone"]["checkpoint"]
    if path is None:
        return options
    if options["checkpoint"] != path:
        logging.info(
            f"backbone.checkpoint was {path}, now {options['checkpoint']}: neither is read, the "
            "backbone goes on as it was trained"
        )
    return {**options, "checkpoint": path}


def take_solver(model: ModelInterface, hypers: dict[str, Any]) -> None:
    """Take over how charges are solved for, which no weight depends on.

    :param model: changed in place
    :param hypers: ``charge_equilibration`` of the new run
    """
    if model.charge_equilibration is None:
        return
    options = model.hypers["charge_equilibration"]
    for key in ("solver", "tolerance", "max_iterations"):
        if hypers[key] != options[key]:
            logging.info(f"charge_equilibration.{key} was {options[key]}, now {hypers[key]}")
            options[key] = hypers[key]
    check_hypers(model.hypers)
    model.charge_equilibration.set_solver(options)
