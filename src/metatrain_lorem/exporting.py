"""The model as a file for engines."""

import copy
from typing import Optional

import torch
from metatomic.torch import AtomisticModel, ModelCapabilities, ModelMetadata
from metatrain.utils.abc import ModelInterface
from metatrain.utils.dtype import dtype_to_str
from metatrain.utils.metadata import merge_metadata

from . import backbones


def interaction_range(model: ModelInterface) -> float:
    """
    :param model: the model
    :return: distance beyond which atoms can't feel each other, in the unit of length of the data:
        infinite with the long-range block or charge equilibration, else the receptive field
    """
    if model.hypers["long_range"]["enable"] or model.charge_equilibration is not None:
        return torch.inf
    ranges = [float(model.hypers["cutoff"]) * (1 + int(model.hypers["num_message_passing"]))]
    for additive_model in model.additive_models:
        if hasattr(additive_model, "cutoff_radius"):
            ranges.append(float(additive_model.cutoff_radius))
    if model.backbone is not None:
        ranges.append(backbones.interaction_range(model.backbone.model))
    return max(ranges)


def export(
    model: ModelInterface,
    metadata: Optional[ModelMetadata],  # noqa: UP045
) -> AtomisticModel:
    """
    :param model: the model
    :param metadata: of the file, joined to that of the model
    :return: what engines evaluate
    :raises ValueError: for a floating-point type or a backbone that can't be exported
    """
    dtype = next(model.parameters()).dtype
    if dtype not in model.__supported_dtypes__:
        raise ValueError(f"lorem can't be exported in {dtype}")
    # after training the additive models may still be in float64
    model.to(dtype)
    model.additive_models[0].weights_to(torch.device("cpu"), torch.float64)
    aliases = model.readout.default_outputs()
    outputs = model.outputs
    capabilities = ModelCapabilities(
        outputs={**outputs, **{name: outputs[x] for name, x in aliases.items()}},
        atomic_types=model.atomic_types,
        interaction_range=interaction_range(model),
        length_unit=model.dataset_info.length_unit,
        supported_devices=model.__supported_devices__,
        # of structures and outputs; between them everything is in the type of the parameters
        dtype="float64" if model.exports_double else dtype_to_str(dtype),
    )
    # what depends on weights only is evaluated here, in a copy that is never trained
    copies = {}
    if model.backbone is not None:
        other = model.backbone.model
        copies[id(other)] = backbones.exportable(backbones.duplicate(other))
    exported = copy.deepcopy(model.eval(), copies)
    exported.readout.aliases = aliases
    for module in exported.modules():
        if hasattr(module, "fold"):
            module.fold()
    return AtomisticModel(exported, merge_metadata(model.metadata, metadata), capabilities)
