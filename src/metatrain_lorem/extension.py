"""The same model with other targets, more species and more blocks."""

import copy
import logging
from typing import Any

import metatensor.torch as mts
import torch
from metatrain.utils.abc import ModelInterface
from metatrain.utils.data import DatasetInfo

from . import backbones
from .documentation import ModelHypers, equilibrates_last, has_partial_charges

BLOCKS = ("charge_equilibration", "long_range")
"""Blocks that a model may get later, in their usual order."""

PER_SPECIES = (
    "short_range.embedding.weight",
    "charge_equilibration.species_electronegativity",
    "charge_equilibration.raw_hardness",
    "charge_equilibration.raw_widths",
)
"""Parameters with a row for each species."""

BY_TARGET = ("readout.heads.", "additive_models.", "scaler.")
"""Beginnings of the names of what belongs to one target, or follows from the data set alone."""


def stage_names(hypers: ModelHypers) -> list[str]:
    """
    :param hypers: of a model
    :return: after what the scalar features are read, in order
    """
    names = ["density"]
    names += [f"message passing {i}" for i in range(int(hypers["num_message_passing"]))]
    if hypers["backbone"]["name"] is not None:
        names.append("backbone")
    for block in reversed(BLOCKS) if equilibrates_last(hypers) else BLOCKS:
        if hypers[block]["enable"] and not (block == "long_range" and has_partial_charges(hypers)):
            names.append(block)
    return names


def newly_unscaled(model: ModelInterface, blocks: dict[str, dict[str, Any]]) -> list[str]:
    """
    :param model: the extended model
    :param blocks: hypers of the new blocks
    :return: targets that lose the baseline and the scale that they had, being made of charges now
    """
    partial = "long_range" in blocks and has_partial_charges(model.hypers)
    return model.unscaled_targets if partial or "charge_equilibration" in blocks else []


def extended(
    model: ModelInterface,
    info: DatasetInfo,
    blocks: dict[str, dict[str, Any]],
    sources: dict[str, str],
) -> ModelInterface:
    """The same model with other targets, with new species, and with new blocks.

    Readouts of a new block start at zero. A new long-range block has no effect on the outputs yet,
    nor has the total charge as a new input. Partial charges add their energy, which is small at
    first for neutral structures alone (zero charges would not learn). A new charge equilibration
    adds the energy of its charges, and where it updates the features before a long-range block, it
    changes what that makes of them. A new species starts as the mean of all others.

    :param model: left as it is
    :param info: of the extended model
    :param blocks: hypers of the new blocks, by name (``charge_equilibration``, ``long_range``)
    :param sources: see :func:`.variants.starting_points`
    :return: the extended model
    :raises ValueError: for a new species that the backbone does not know
    """
    backbone = None
    if model.backbone is not None:
        backbone = backbones.duplicate(model.backbone.model)
        unknown = sorted(set(info.atomic_types) - set(backbone.dataset_info.atomic_types))
        if unknown:
            raise ValueError(
                f"the backbone of the checkpoint does not know the atomic types {unknown} of the "
                f"data; it knows {sorted(backbone.dataset_info.atomic_types)}"
            )
    hypers = copy.deepcopy(dict(model.hypers))
    hypers.update(copy.deepcopy(blocks))
    new = type(model)(hypers, info, backbone)
    new.to(model.short_range.embedding.weight.dtype)
    new.new_types = [t for t in new.atomic_types if t not in model.atomic_types]
    if new.new_types:
        logging.info(
            f"New atomic types {new.new_types} start as the mean of {model.atomic_types}, those of "
            "the checkpoint"
        )
    known = [new.atomic_types.index(t) for t in model.atomic_types]
    old_state, state = model.state_dict(), new.state_dict()
    for name, tensor in state.items():
        new_field = "long_range" in blocks and name.endswith("field_linear.weight")
        if new_field or name.startswith("charge_embedding.2."):
            state[name] = torch.zeros_like(tensor)
    for name, tensor in old_state.items():
        # the total charge's embedding, which charge equilibration replaces, is in one of them only
        if name in state and not name.startswith(BY_TARGET):
            state[name] = with_rows(tensor, known, state[name]) if name in PER_SPECIES else tensor
    stages = stage_names(hypers)
    places = [stages.index(stage) for stage in stage_names(model.hypers)]
    unscaled = newly_unscaled(new, blocks)
    for target, source in sources.items():
        take_head(state, target, old_state, source, places)
        if target not in unscaled:
            take_baseline_and_scale(state, target, old_state, source, known)

    new.load_state_dict(state)
    new.additive_models[0].sync_tensor_maps()
    new.scaler.sync_tensor_maps()
    new.metadata = model.metadata
    new.conditional, new.total_charge = model.conditional, model.total_charge
    new.built_in_charge = model.built_in_charge
    new.finetunes, new.has_new_parameters = model.finetunes, True
    new.has_new_charges = "charge_equilibration" in blocks
    return new


def with_rows(tensor: torch.Tensor, known: list[int], template: torch.Tensor) -> torch.Tensor:
    """
    :param tensor: a row for each species that the model knew
    :param known: their places among the species that it knows now
    :param template: an array of the new shape
    :return: a row for each species that it knows now, the mean of ``tensor`` for a new one
    """
    rows = tensor.mean(dim=0, keepdim=True).expand_as(template).clone()
    rows[known] = tensor
    return rows


def take_head(
    state: dict[str, torch.Tensor],
    target: str,
    old_state: dict[str, torch.Tensor],
    source: str,
    places: list[int],
) -> None:
    """
    :param state: of the new model, changed in place
    :param target: a target of the new model
    :param old_state: of the old model
    :param source: the target of the old model to start from
    :param places: places of the old stages among the new ones
    """
    old_head, new_head = f"readout.heads.{source}.", f"readout.heads.{target}."
    for old_name in [name for name in old_state if name.startswith(old_head)]:
        tensor = old_state[old_name]
        part = old_name.removeprefix(old_head)
        if part.startswith("invariants.stages."):
            number, parameter = part.removeprefix("invariants.stages.").split(".", 1)
            part = f"invariants.stages.{places[int(number)]}.{parameter}"
        name = new_head + part
        if name not in state:  # a target that is made of the charges now
            continue
        if part == "invariants.last_layer.weight":
            # sees the features of more stages
            d = tensor.shape[1] // len(places)
            columns = torch.zeros_like(state[name])
            for old, new in enumerate(places):
                columns[:, new * d : (new + 1) * d] = tensor[:, old * d : (old + 1) * d]
            tensor = columns
        state[name] = tensor


def take_baseline_and_scale(
    state: dict[str, torch.Tensor],
    target: str,
    old_state: dict[str, torch.Tensor],
    source: str,
    known: list[int],
) -> None:
    """
    :param state: of the new model, changed in place
    :param target: a target of the new model
    :param old_state: of the old model
    :param source: the target of the old model to start from
    :param known: places of the old species among the new ones
    """
    for buffer in (
        "additive_models.0.{}_composition_buffer",
        "scaler.{}_scaler_buffer",
        "scaler.{}_per_target_scaler_buffer",
        "scaler.{}_per_property_scaler_buffer",
    ):
        name, old_name = buffer.format(target), buffer.format(source)
        if name not in state:  # targets that are no scalars have no baseline
            continue
        values, old_values = (mts.load_buffer(b.cpu()) for b in (state[name], old_state[old_name]))
        for block, old_block in zip(values.blocks(), old_values.blocks(), strict=True):
            rows = old_block.values
            if rows.shape != block.values.shape:  # one for each species
                rows = with_rows(rows, known, block.values)
            block.values[:] = rows
        state[name] = mts.save_buffer(mts.make_contiguous(values))
