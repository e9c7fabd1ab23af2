"""Where the model inside a backbone comes from: hypers and random weights, or a checkpoint."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from metatrain.utils.abc import ModelInterface
from metatrain.utils.architectures import (
    check_architecture_name,
    check_architecture_options,
    get_default_hypers,
    import_architecture,
)
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.io import model_from_checkpoint
from omegaconf import OmegaConf

from .documentation import BackboneHypers

SECTION = "architecture.model.backbone"


def from_scratch(options: BackboneHypers, dataset_info: DatasetInfo) -> ModelInterface:
    """
    :param options: section ``backbone`` of the hypers
    :param dataset_info: of the whole model
    :return: a model with random weights
    :raises ValueError: for an architecture or hypers that can't be
    """
    name = options["name"]
    for key in ("energy", "freeze"):
        if options[key] is True:
            message = f"{SECTION}.{key}: true has a meaning with a `checkpoint` only"
            if key == "energy":
                raise ValueError(f"{message}: energies of random weights are no start")
            logging.warning(f"{message}: the weights of the backbone stay random")
    model_class = architecture_class(name)
    defaults = get_default_hypers(name, base_precision=64)
    merged = OmegaConf.to_container(OmegaConf.merge(defaults["model"], options["hypers"]))
    try:
        # metatrain's errors start with "architecture.model"
        check_architecture_options(name, {**defaults, "model": merged})
    except Exception as error:
        raise ValueError(f"{SECTION}.hypers, as of {name!r}: {error}") from error
    # with a target, for containers without content have no type in TorchScript
    info = DatasetInfo(
        dataset_info.length_unit,
        dataset_info.atomic_types,
        {"energy": get_energy_target_info("energy", {"unit": "eV"})},
        dataset_info.extra_data,
    )
    try:
        return model_class(merged, info)
    except Exception as error:
        raise ValueError(f"{SECTION}: {name!r} can't be made: {error}") from error


def architecture_class(name: str) -> type[ModelInterface]:
    """
    :param name: of an architecture of metatrain
    :return: the class of its models
    :raises ValueError: if there is none, or not all that it needs is installed
    """
    try:
        check_architecture_name(name)
        return import_architecture(name).__model__
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{SECTION}.name: {error}") from error


def from_checkpoint(options: BackboneHypers, dataset_info: DatasetInfo) -> ModelInterface:
    """
    :param options: section ``backbone`` of the hypers
    :param dataset_info: of the whole model
    :return: the model of the checkpoint, with its best weights
    :raises FileNotFoundError: if it does not exist
    :raises ValueError: if it is none, or of another architecture, other hypers or other data
    """
    name, path = options["name"], str(Path(options["checkpoint"]).expanduser())
    architecture_class(name)
    try:
        checkpoint = torch.load(path, weights_only=False, map_location="cpu")
        architecture = checkpoint["architecture_name"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{SECTION}.checkpoint: there is no file {path}") from error
    except Exception as error:
        if path.endswith(".pt"):
            raise ValueError(
                f"{SECTION}.checkpoint: {path} is an exported model: give the checkpoint (.ckpt) "
                "it came from"
            ) from error
        raise ValueError(
            f"{SECTION}.checkpoint: {path} is no checkpoint (.ckpt) of metatrain: {error!r}"
        ) from error
    if architecture != name:
        raise ValueError(
            f"{SECTION}.checkpoint: {path} is of the architecture {architecture!r}, but `name` is "
            f"{name!r}"
        )
    model = model_from_checkpoint(checkpoint, context="export")
    for key, value, own in _differences(options["hypers"], model.hypers):
        raise ValueError(
            f"{SECTION}.hypers.{key} is {value}, but {own} in {path}: leave `hypers` out, a "
            "checkpoint brings its own"
        )
    unit, own_unit = model.dataset_info.length_unit, dataset_info.length_unit
    if unit.lower() != own_unit.lower():
        raise ValueError(
            f"{SECTION}.checkpoint: lengths are in {unit!r} in {path}, but in {own_unit!r} in the "
            "data: convert the data"
        )
    unknown = sorted(set(dataset_info.atomic_types) - set(model.dataset_info.atomic_types))
    if unknown:
        raise ValueError(
            f"{SECTION}.checkpoint: {path} does not know the atomic types {unknown} of the data; "
            f"it knows {sorted(model.dataset_info.atomic_types)}"
        )
    return model


def _differences(given: Mapping[str, Any], own: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Hypers that differ from those of a model, by their paths; what is not given does not."""
    found = []
    for key, value in given.items():
        other = own.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += [(f"{key}.{path}", x, y) for path, x, y in _differences(value, other)]
        elif value != other:
            found.append((key, value, other))
    return found
