"""Checkpoints of the model: saved, loaded, and upgraded from one version to the next.

An upgrade from version v is a function ``model_update_v{v}_v{v + 1}`` or
``trainer_update_v{v}_v{v + 1}`` here, which changes the checkpoint in place.
"""

import copy
import logging
import math
from typing import Any, Literal

import torch
from metatrain.utils.abc import ModelInterface
from metatrain.utils.metadata import merge_metadata

from . import backbones
from .blocks.partial_charges import FLOW, START
from .documentation import has_partial_charges
from .heads.charges import ATOMIC_CHARGE, DIPOLE_MOMENT
from .heads.response import BORN_CHARGE

CHARGE_EQUILIBRATION_OFF = {
    "enable": False,
    "energy": "variational",
    "learn_widths": False,
    "atomic_dipoles": False,
    "solver": "auto",
    "accuracy": 1e-6,
    "tolerance": None,
    "max_iterations": 100,
}
"""Hypers of the block that models of version 1 do not have."""

NO_BACKBONE = {
    "name": None,
    "hypers": {},
    "checkpoint": None,
    "energy": "auto",
    "freeze": False,
}
"""Hypers of models up to version 3."""

BORDERLESS = 20.0
"""Logarithm of a width in Å, of charge that flows as far as the cutoff."""

STATES = ("model_state_dict", "best_model_state_dict")


def save(model: ModelInterface) -> dict[str, Any]:
    """
    :param model: the model
    :return: the model's part of a checkpoint
    """
    return {
        "architecture_name": "lorem",
        "model_ckpt_version": model.__checkpoint_version__,
        "metadata": model.metadata,
        "model_data": {
            "model_hypers": model.hypers,
            "dataset_info": model.dataset_info,
            # built in, where the model would ask for it otherwise
            "total_charge": None if model.conditional else model.total_charge,
            "backbone": None if model.backbone is None else backbones.record(model.backbone.model),
        },
        "epoch": None,
        "best_epoch": None,
        "model_state_dict": model.state_dict(),
        "best_model_state_dict": model.state_dict(),
    }


def load(
    model_class: type[ModelInterface],
    checkpoint: dict[str, Any],
    context: Literal["restart", "finetune", "export"],
) -> ModelInterface:
    """
    :param model_class: to make an instance of
    :param checkpoint: of the current version
    :param context: ``"restart"`` for the latest weights, else the best ones
    :return: the model
    :raises ValueError: for another context, and for a built-in total charge that the backbone
        can't have
    """
    if context == "restart":
        logging.info(f"Using latest model from epoch {checkpoint['epoch']}")
        key = "model_state_dict"
    elif context in ("finetune", "export"):
        logging.info(f"Using best model from epoch {checkpoint['best_epoch']}")
        has_best = checkpoint["best_model_state_dict"] is not None
        key = "best_model_state_dict" if has_best else "model_state_dict"
    else:
        raise ValueError(f"unknown context {context!r} for loading a checkpoint")

    data = checkpoint["model_data"]
    backbone = backbones.load_recorded(checkpoint, key)
    model = model_class(data["model_hypers"], data["dataset_info"], backbone)
    state = checkpoint[key]
    model.finetunes = context == "finetune"
    if data.get("total_charge") is not None:
        model.total_charge = float(data["total_charge"])
        # models that never knew another charge are neutral without having been told so
        if model.conditional or model.total_charge != 0.0:
            model.built_in_charge = f"{model.total_charge:+g}"
        model.conditional = False
        if "charge" in model.requested_inputs():
            raise ValueError(
                "the backbone asks for total charges itself: none can be built into the model"
            )
    model.to(state["short_range.embedding.weight"].dtype).load_state_dict(state)
    model.additive_models[0].sync_tensor_maps()
    model.scaler.sync_tensor_maps()
    model.metadata = merge_metadata(model.metadata, checkpoint.get("metadata"))
    return model


def upgrade(
    checkpoint: dict[str, Any], part: Literal["model", "trainer"], version: int
) -> dict[str, Any]:
    """Bring one part of a checkpoint to the current version.

    :param checkpoint: the checkpoint, changed in place
    :param part: ``model`` or ``trainer``
    :param version: current version of that part
    :return: the checkpoint
    :raises RuntimeError: where no upgrade leads to the current version
    """
    key = f"{part}_ckpt_version"
    for v in range(1, version):
        if checkpoint[key] == v:
            globals()[f"{part}_update_v{v}_v{v + 1}"](checkpoint)
            checkpoint[key] = v + 1
    if checkpoint[key] != version:
        raise RuntimeError(
            f"Unable to upgrade the checkpoint: the checkpoint is using {part} version "
            f"{checkpoint[key]}, while the current {part} version is {version}."
        )
    return checkpoint


def model_update_v1_v2(checkpoint: dict[str, Any]) -> None:
    """Charge equilibration and total charges came with version 2.

    :param checkpoint: changed in place
    """
    data = checkpoint["model_data"]
    data["model_hypers"].setdefault("charge_equilibration", dict(CHARGE_EQUILIBRATION_OFF))
    data.setdefault("total_charge", None)
    # the model neither took total charges nor knew which occurred
    data["dataset_info"].extra_data.pop("charge", None)
    for key in STATES:
        if checkpoint.get(key) is not None:
            no_range = torch.tensor([torch.inf, -torch.inf])
            checkpoint[key].setdefault("total_charge_range", no_range)


def model_update_v2_v3(checkpoint: dict[str, Any]) -> None:
    """With version 3 heads became part of a readout, long range may act by other powers, and norms
    of spherical features may be smooth.

    :param checkpoint: changed in place
    """
    hypers = checkpoint["model_data"]["model_hypers"]
    hypers["long_range"].setdefault("exponents", [1])
    hypers.setdefault("norms", "lorem-jax")
    for key in STATES:
        if checkpoint.get(key) is not None:
            for name in list(checkpoint[key]):
                # the order is kept: that of the parameters is the optimizer's
                tensor = checkpoint[key].pop(name)
                new = "readout." + name if name.startswith("heads.") else name
                checkpoint[key][new] = tensor


def model_update_v3_v4(checkpoint: dict[str, Any]) -> None:
    """Since version 4 there may be another architecture inside the model.

    :param checkpoint: changed in place
    """
    data = checkpoint["model_data"]
    data["model_hypers"].setdefault("backbone", copy.deepcopy(NO_BACKBONE))
    data.setdefault("backbone", None)


def model_update_v4_v5(checkpoint: dict[str, Any]) -> None:
    """Since version 5 long range may be that of partial charges, and Born charges may be screened.

    :param checkpoint: changed in place
    """
    hypers = checkpoint["model_data"]["model_hypers"]
    hypers["long_range"].setdefault("energy", "features")
    hypers["charge_equilibration"].setdefault("epsilon_infinity", 1.0)


def model_update_v5_v6(checkpoint: dict[str, Any]) -> None:
    """Since version 6 charge flows no further than Gaussians of the atoms overlap, and partial
    charges make all that is made of charges.

    :param checkpoint: changed in place
    :raises RuntimeError: for partial charges beside others that were predicted
    """
    data = checkpoint["model_data"]
    if not has_partial_charges(data["model_hypers"]):
        return
    made = {ATOMIC_CHARGE, DIPOLE_MOMENT, BORN_CHARGE} & set(data["dataset_info"].targets)
    if made:
        raise RuntimeError(
            f"Unable to upgrade the checkpoint: the targets {sorted(made)} were predicted beside "
            "the partial charges (long_range.energy: charges), which make them now. Train it anew"
        )
    for key in STATES:
        if checkpoint.get(key) is not None:
            state, name = checkpoint[key], "partial_charges.network.2"
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"].clone()
            # what flows starts at another number
            bias[2] += math.log(START / FLOW)
            state[f"{name}.weight"] = torch.cat([weight, torch.zeros_like(weight[:1])])
            state[f"{name}.bias"] = torch.cat([bias, bias.new_tensor([BORDERLESS])])


def model_update_v6_v7(checkpoint: dict[str, Any]) -> None:
    """Since version 7 the hardness may depend on the features, and charges may be equilibrated
    after the long range.

    :param checkpoint: changed in place
    """
    hypers = checkpoint["model_data"]["model_hypers"]["charge_equilibration"]
    hypers.setdefault("hardness", "species")
    hypers.setdefault("after_long_range", False)


def trainer_update_v1_v2(checkpoint: dict[str, Any]) -> None:
    """Since version 2 checkpoints say with what their best value was found.

    :param checkpoint: changed in place
    """
    metric = checkpoint["train_hypers"]["best_model_metric"]
    checkpoint.setdefault("basis", {"best_model_metric": metric})


def trainer_update_v2_v3(checkpoint: dict[str, Any]) -> None:
    """Since version 3 Muon leaves weights of one row or column to AdamW: the moments of either are
    those of other parameters.

    :param checkpoint: changed in place
    """
    if checkpoint["train_hypers"]["optimizer"] == "muon":
        logging.info("The checkpoint is of an older version, whose optimizer starts anew")
        checkpoint["optimizer_states"] = None


def trainer_update_v3_v4(checkpoint: dict[str, Any]) -> None:
    """Since version 4 the network of partial charges has another output.

    :param checkpoint: changed in place
    """
    # older models have no such key
    if checkpoint["model_data"]["model_hypers"]["long_range"].get("energy") == "charges":
        logging.info("The checkpoint is of an older version, whose optimizer starts anew")
        checkpoint["optimizer_states"] = None


def trainer_update_v4_v5(checkpoint: dict[str, Any]) -> None:
    """Since version 5 energies may weigh more in the last epochs.

    :param checkpoint: changed in place
    """
    checkpoint["train_hypers"].setdefault("final_energy_factor", 1.0)


def trainer_update_v5_v6(checkpoint: dict[str, Any]) -> None:
    """Since version 6 forces may enter the scale of energies.

    :param checkpoint: changed in place
    """
    checkpoint["train_hypers"].setdefault("energy_scale", "energies")
