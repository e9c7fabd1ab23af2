"""A trained model for more training: new targets, new blocks, new solver settings."""

import copy
import logging
from typing import Any

import torch
from metatrain.composition import CompositionModel
from metatrain.utils.abc import ModelInterface
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.data.atomic_basis_helpers import densify_atomic_basis_dataset_info
from metatrain.utils.hypers import get_hypers_diff, raise_hypers_mismatch

from .documentation import ModelHypers, check_hypers

BLOCKS = ("charge_equilibration", "long_range")
"""Blocks that a model may get later, in their order."""


def restart(
    model: ModelInterface, dataset_info: DatasetInfo, hypers: dict[str, Any] | None
) -> ModelInterface:
    """Prepare a model for more training, perhaps with new targets or blocks.

    :param model: as loaded from a checkpoint
    :param dataset_info: of the new data
    :param hypers: of the new run. They must equal the model's own, but for how charges are solved
        for, and for blocks, which may be switched on: a new long-range block starts without any
        effect on the outputs
    :return: the model, or its extended copy
    :raises ValueError: for other hypers, and for species that the model does not know
    """
    if hypers is not None:
        take_solver(model, hypers.get("charge_equilibration", {}))
        if hypers.get("norms", model.hypers["norms"]) != model.hypers["norms"]:
            logging.info(
                f"`norms` stays {model.hypers['norms']!r}, with which the model was trained"
            )
            hypers = {**hypers, "norms": model.hypers["norms"]}
        defaults = get_default_hypers("lorem")["model"]
        changes = get_hypers_diff(model.hypers, hypers, default_hypers=defaults)
        new_blocks = {}
        for block in BLOCKS:
            old, new = changes.get(block, ({"enable": True}, {}))
            if new.get("enable", False) and not old["enable"]:
                new_blocks[block] = new
        new_input = "charge" in dataset_info.extra_data and not model.conditional
        if new_blocks or new_input:
            extra_data = {**model.dataset_info.extra_data, **dataset_info.extra_data}
            extended = with_blocks(model, new_blocks, extra_data)
            if not new_input:
                extended.conditional = model.conditional
                extended.total_charge = model.total_charge
                extended.built_in_charge = model.built_in_charge
            return restart(extended, dataset_info, hypers)
        raise_hypers_mismatch(changes)

    merged = model.dataset_info.union(dataset_info)
    unknown = sorted(set(merged.atomic_types) - set(model.atomic_types))
    if len(unknown) > 0:
        raise ValueError(
            f"new atomic types {unknown} in the dataset: the model knows {model.atomic_types} "
            "and can't learn others; train a new one"
        )
    new_targets = [name for name in merged.targets if name not in model.dataset_info.targets]
    densified = densify_atomic_basis_dataset_info(dataset_info).targets
    for name in new_targets:
        model.readout.add_target(name, densified[name])
    model.has_new_parameters = model.has_new_parameters or len(new_targets) > 0

    model.dataset_info = merged
    targets = {
        name: target
        for name, target in dataset_info.targets.items()
        if CompositionModel.is_valid_target(name, target)
    }
    model.additive_models[0] = model.additive_models[0].restart(
        DatasetInfo(dataset_info.length_unit, model.atomic_types, targets)
    )
    model.scaler = model.scaler.restart(dataset_info)
    return model


def take_solver(model: ModelInterface, hypers: dict[str, Any]) -> None:
    """Take over how charges are solved for, which no weight depends on.

    :param model: changed in place
    :param hypers: ``charge_equilibration`` of the new run
    """
    if model.charge_equilibration is None:
        return
    options = model.hypers["charge_equilibration"]
    for key in ("solver", "tolerance", "max_iterations"):
        if hypers.get(key, options[key]) != options[key]:
            logging.info(f"charge_equilibration.{key} was {options[key]}, now {hypers[key]}")
            options[key] = hypers[key]
    check_hypers(model.hypers)
    model.charge_equilibration.set_solver(options)


def stage_names(hypers: ModelHypers) -> list[str]:
    """
    :param hypers: of a model
    :return: after what the scalar features are read, in order
    """
    names = ["density"]
    names += [f"message passing {i}" for i in range(int(hypers["num_message_passing"]))]
    for block in BLOCKS:
        if hypers[block]["enable"]:
            names.append(block)
    return names


def with_blocks(
    model: ModelInterface, blocks: dict[str, dict[str, Any]], extra_data: dict[str, TargetInfo]
) -> ModelInterface:
    """The same model with new blocks, whose readouts start at zero.

    A new long-range block has no effect on the outputs yet, nor has the total charge as a new
    input. A new charge equilibration adds the energy of its charges, and as it updates the
    features before a long-range block, it changes what that makes of them.

    :param model: left as it is
    :param blocks: hypers of the new blocks, by name (``charge_equilibration``, ``long_range``)
    :param extra_data: inputs of the extended model
    :return: the extended model
    """
    hypers = copy.deepcopy(dict(model.hypers))
    hypers.update(copy.deepcopy(blocks))
    info = model.dataset_info
    info = DatasetInfo(info.length_unit, info.atomic_types, info.targets, extra_data)
    extended = type(model)(hypers, info)
    extended.to(model.short_range.embedding.weight.dtype)
    state = extended.state_dict()
    for name, tensor in state.items():
        new_field = "long_range" in blocks and name.endswith("field_linear.weight")
        if new_field or name.startswith("charge_embedding.2."):
            state[name] = torch.zeros_like(tensor)

    stages = stage_names(hypers)
    places = [stages.index(stage) for stage in stage_names(model.hypers)]
    d = int(hypers["num_features"])
    for name, tensor in model.state_dict().items():
        if name.startswith("readout.heads.") and name.split(".")[2] not in extended.readout.heads:
            # a target that is made of the charges now
            continue
        if name.endswith("invariants.last_layer.weight"):
            # sees the features of more stages
            columns = torch.zeros_like(state[name])
            for old, new in enumerate(places):
                columns[:, new * d : (new + 1) * d] = tensor[:, old * d : (old + 1) * d]
            tensor = columns
        elif ".invariants.stages." in name:
            head, rest = name.split(".invariants.stages.")
            number, parameter = rest.split(".", 1)
            name = f"{head}.invariants.stages.{places[int(number)]}.{parameter}"
        if name in state:  # not the total charge's embedding, which charge equilibration replaces
            state[name] = tensor
    extended.load_state_dict(state)
    extended.additive_models[0].sync_tensor_maps()
    extended.scaler.sync_tensor_maps()
    extended.metadata = model.metadata
    extended.has_new_parameters = True
    return extended
