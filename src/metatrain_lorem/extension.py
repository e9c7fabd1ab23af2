"""New blocks for a model that was trained without."""

import copy
from typing import Any

import torch
from metatrain.utils.abc import ModelInterface
from metatrain.utils.data import DatasetInfo, TargetInfo

from .documentation import ModelHypers


def stage_names(hypers: ModelHypers) -> list[str]:
    """
    :param hypers: of a model
    :return: after what the scalar features are read, in order
    """
    names = ["density"]
    names += [f"message passing {i}" for i in range(int(hypers["num_message_passing"]))]
    for block in ("charge_equilibration", "long_range"):
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
        if name.startswith("heads.") and name.split(".")[1] not in extended.heads:
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
    extended.has_new_block = True
    return extended
