"""Baselines and scales of targets: fitted, given, or kept from a checkpoint."""

import logging

import torch
from metatensor.torch import TensorMap
from metatrain.composition import CompositionModel, train_or_load_composition_model
from metatrain.scaler import train_or_load_scaler
from metatrain.utils.abc import ModelInterface
from torch.utils.data import Dataset

from .datasets import without_missing
from .distributed import Processes
from .hypers import TrainerHypers
from .label_spread import LabelSpread
from .scales import add_forces, replace_zero_scales
from .unscaled import Weights, check_fixed, unscaled_targets, with_fixed

Values = dict[str, list[torch.Tensor]]
"""Baselines or scales of targets, by block."""


def fit_baselines_and_scales(
    model: ModelInterface,
    hypers: TrainerHypers,
    train_datasets: list[Dataset],
    missing: bool,
    spread: LabelSpread,
    processes: Processes,
) -> list[str]:
    """Fit the composition model and the scaler to targets that are new to them.

    Baselines that the options give for targets of a checkpoint replace those in fine-tuning, not in
    a restart; scales can't be replaced, for the weights are trained for them.

    :param model: the model, changed
    :param hypers: of the trainer
    :param train_datasets: training sets
    :param missing: whether they lack some labels
    :param spread: of their forces
    :param processes: of this run
    :return: targets whose baselines are still those of a checkpoint
    :raises ValueError: if the options contradict what is kept
    """
    unscaled = unscaled_targets(model)
    composition = model.additive_models[0]
    new = composition._new_outputs
    known = [name for name in composition.model.target_names if name not in new]
    before = _copy(composition.model.weights, known)
    without_baseline = [name for name in unscaled if name in composition.model.target_names]
    given = with_fixed(hypers["atomic_baseline"], without_baseline, 0.0, "atomic_baseline")
    replaced = known
    if isinstance(given, dict):
        given = _completed(given, known, composition, model.new_types)
        replaced = [name for name in known if name in given]
        composition._new_outputs = new + replaced
    if isinstance(given, str) or composition._new_outputs:
        # No checkpoint_dir: `mtt train --restart auto` takes the newest *.ckpt there for ours
        train_or_load_composition_model(
            composition_model=composition,
            atomic_baseline=given,
            train_datasets=without_missing(train_datasets, model.dataset_info.targets)
            if missing
            else train_datasets,
            other_additive_models=list(model.additive_models[1:]),
            batch_size=hypers["batch_size"],
            is_distributed=processes.is_distributed,
        )
        composition._new_outputs = new
    check_fixed(composition.model.weights, without_baseline, 0.0, "atomic_baseline")
    replaces = model.finetunes or model.has_new_parameters
    if not replaces:
        _refuse_changes(
            before,
            composition.model.weights,
            [],
            "atomic_baseline",
            "a restart keeps that. To change it, fine-tune (`finetune: read_from: ...`)",
        )
    given_ones = set(replaced) - set(model.unscaled_targets)
    if given_ones and replaces:
        logging.info(f"Baselines of {sorted(given_ones)} are those of `atomic_baseline`")
    if hypers["scale_targets"]:
        _fit_scales(model, hypers, train_datasets, spread, processes)
    if hypers["energy_scale"] == "forces" and not spread.energies:
        logging.info(
            "`energy_scale: forces` has no effect: no energy with forces gets a scale here (not "
            "beside that of a backbone, with `fixed_scaling_weights` or without `scale_targets`)"
        )
    composition.weights_to(device=processes.device, dtype=torch.float64)
    model.scaler.scales_to(device=processes.device, dtype=torch.float64)
    return [name for name in known if name not in {*replaced, *model.unscaled_targets}]


def _fit_scales(
    model: ModelInterface,
    hypers: TrainerHypers,
    train_datasets: list[Dataset],
    spread: LabelSpread,
    processes: Processes,
) -> None:
    unscaled = unscaled_targets(model)
    if isinstance(hypers["fixed_scaling_weights"], str) and not isinstance(
        hypers["atomic_baseline"], str
    ):
        raise ValueError(
            "`fixed_scaling_weights` is a checkpoint, whose scales hold for one baseline only: "
            "set `atomic_baseline` to the checkpoint of that composition model."
        )
    scaler, new = model.scaler, model.scaler.new_outputs
    known = [name for name in scaler.model.target_names if name not in new]
    before = _copy(scaler.model.scales, known)
    given = with_fixed(hypers["fixed_scaling_weights"], unscaled, 1.0, "fixed_scaling_weights")
    if isinstance(given, dict):
        scaler.new_outputs = new + [name for name in known if name in given]
    if isinstance(given, str) or scaler.new_outputs:
        train_or_load_scaler(
            scaler=scaler,
            fixed_weights=given,
            train_datasets=train_datasets,
            additive_models=model.additive_models,
            batch_size=hypers["batch_size"],
            is_distributed=processes.is_distributed,
            per_structure_targets=hypers["per_structure_targets"],
        )
        scaler.new_outputs = new
    if hypers["energy_scale"] == "forces" and isinstance(given, dict):
        forces = spread.mean_square_forces(processes)
        forces = {name: square for name, square in forces.items() if name not in given}
        spread.energies = add_forces(scaler, forces, new, model.dataset_info.length_unit)
    check_fixed(scaler.model.scales, unscaled, 1.0, "fixed_scaling_weights")
    _refuse_changes(
        before,
        scaler.model.scales,
        [model.atomic_types.index(t) for t in model.new_types],
        "fixed_scaling_weights",
        "its weights are trained for that scale. Leave the target out",
    )
    replace_zero_scales(scaler, model.additive_models[0])


def _completed(
    given: Weights, names: list[str], composition: CompositionModel, new_types: list[int]
) -> Weights:
    """Baselines of a checkpoint for the elements that the user gives none for.

    :param given: hyper ``atomic_baseline``
    :param names: targets that have a baseline in the checkpoint
    :param composition: of the model
    :param new_types: atomic types that were not in the checkpoint
    :return: for all elements of the checkpoint
    """
    result = dict(given)
    for name in set(names) & given.keys():
        block = composition.model.weights[name].block(0)
        if not isinstance(given[name], dict) or block.values[0].numel() != 1:
            continue
        values = dict(zip(composition.atomic_types, block.values.flatten().tolist(), strict=True))
        kept = {t: x for t, x in values.items() if t not in {*given[name], *new_types}}
        if kept:
            logging.info(
                f"`atomic_baseline` of '{name}' leaves out the atomic types {sorted(kept)}, whose "
                f"baselines are kept as in the checkpoint: {kept}"
            )
        result[name] = {**kept, **given[name]}
    return result


def _copy(weights: dict[str, TensorMap], names: list[str]) -> Values:
    return {name: [b.values.to("cpu", copy=True) for b in weights[name].blocks()] for name in names}


def _refuse_changes(
    before: Values, weights: dict[str, TensorMap], new: list[int], hyper: str, way_out: str
) -> None:
    """
    :param before: values of the checkpoint
    :param weights: values now
    :param new: species that the checkpoint did not know
    :param hyper: name of the hyper that they are from
    :param way_out: what to do, for the message
    :raises ValueError: where they differ
    """
    for name, values in before.items():
        for old, block in zip(values, weights[name].blocks(), strict=True):
            # a row for each species, or one for each structure
            rows = [i for i in range(len(old)) if len(old) == 1 or i not in new]
            old, now = old[rows], block.values.to(old)[rows]
            if not torch.allclose(old, now, rtol=1e-6, atol=1e-9):
                raise ValueError(
                    f"`{hyper}` of '{name}' is {now.flatten().tolist()}, but "
                    f"{old.flatten().tolist()} in the checkpoint: {way_out}"
                )
