"""A long-range block for a model that was trained without."""

import copy
from typing import Any

import torch
from metatrain.utils.abc import ModelInterface


def with_long_range(model: ModelInterface, long_range: dict[str, Any]) -> ModelInterface:
    """The same model with a long-range block that has no effect on its outputs yet.

    :param model: without long-range block; left as it is
    :param long_range: hypers of the block
    :return: the extended model
    """
    hypers = copy.deepcopy(dict(model.hypers))
    hypers["long_range"] = copy.deepcopy(dict(long_range))
    extended = type(model)(hypers, model.dataset_info)
    extended.to(model.short_range.embedding.weight.dtype)
    state = extended.state_dict()
    for name, tensor in state.items():
        if name.endswith("field_linear.weight"):
            state[name] = torch.zeros_like(tensor)
    for name, tensor in model.state_dict().items():
        if name.endswith("invariants.last_layer.weight"):
            # sees the features of one stage more
            tensor = torch.nn.functional.pad(tensor, (0, state[name].shape[1] - tensor.shape[1]))
        state[name] = tensor
    extended.load_state_dict(state)
    extended.additive_models[0].sync_tensor_maps()
    extended.scaler.sync_tensor_maps()
    extended.metadata = model.metadata
    extended.has_new_block = True
    return extended
