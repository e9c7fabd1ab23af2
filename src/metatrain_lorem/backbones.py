"""Other architectures of metatrain as a backbone: made, loaded, checked, stored and exported."""

import copy
import logging
from typing import Any

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, System
from metatrain.utils.abc import ModelInterface
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.io import model_from_checkpoint
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from torch.utils._python_dispatch import TorchDispatchMode

from .backbone_sources import SECTION, architecture_class, from_checkpoint, from_scratch
from .blocks.backbone import FEATURES, Backbone, is_invariant
from .documentation import BackboneHypers, ModelHypers
from .heads.charges import is_energy
from .nn.spex_harmonics import SpexHarmonics
from .variants import starting_points

KNOWN_INPUTS = {"charge": 0.0, "spin_multiplicity": 1.0}
"""Inputs that can be passed on, with values for a trial."""

STATES = ("model_state_dict", "best_model_state_dict")


def build_backbone(
    hypers: ModelHypers, dataset_info: DatasetInfo, model: ModelInterface | None = None
) -> Backbone | None:
    """
    :param hypers: of the model, their section ``backbone`` says which
    :param dataset_info: of the model
    :param model: what the backbone is made of, where it is not new
    :return: the backbone, None for models without one
    :raises FileNotFoundError: for a checkpoint that does not exist
    :raises ValueError: for an architecture that can be none, its hypers, or a checkpoint of other
        data, naming the hyper
    """
    options = hypers["backbone"]
    name, is_new = options["name"], model is None
    if name is None:
        for key in ("checkpoint", "hypers"):
            if options[key]:
                raise ValueError(f"{SECTION}.{key} is given, but no architecture: set `name`")
        return None
    if is_new:
        source = from_scratch if options["checkpoint"] is None else from_checkpoint
        model = source(options, dataset_info)
    try:
        outputs = list(model.supported_outputs())
    except AttributeError as error:
        # as of LLPR, until it is given another model
        raise ValueError(
            f"{SECTION}.name: {name!r} can't be a backbone: it is no model by itself, but is made "
            "from another one. Name the architecture of that one"
        ) from error
    if not any(feature in outputs for feature in FEATURES):
        raise ValueError(
            f"{SECTION}.name: {name!r} has no features that could be used: it offers none of "
            f"{', '.join(FEATURES)}, but {', '.join(outputs)}"
        )
    energies = _energies(options, model, dataset_info, is_new)
    missing = [key for key in _inputs(model) if key not in dataset_info.extra_data]
    if missing:
        raise ValueError(
            f"{SECTION}: this {name!r} asks for the inputs {', '.join(missing)}, which the data "
            f"lack: give them under `extra_data` in all data sets"
        )
    backbone = Backbone(hypers, model, _num_features(model, name), energies)
    if options["freeze"]:
        backbone.freeze(True)
    return backbone


def _energies(
    options: BackboneHypers, model: ModelInterface, dataset_info: DatasetInfo, is_new: bool
) -> dict[str, str]:
    """Targets that get the energy of the backbone, and its names there."""
    if options["checkpoint"] is None or options["energy"] is False:
        return {}
    old, new = (_energy_targets(info) for info in (model.dataset_info, dataset_info))
    energies = starting_points(old, new)
    if not energies:
        message = (
            f"no target is the energy of the backbone: it has {sorted(old)}, the data {sorted(new)}"
        )
        if options["energy"] is True:
            raise ValueError(f"{SECTION}.energy: {message}")
        if is_new:
            logging.warning(f"{SECTION}: {message}. Its features are used alone")
    return energies


def _energy_targets(dataset_info: DatasetInfo) -> dict[str, TargetInfo]:
    targets = dataset_info.targets
    return {name: target for name, target in targets.items() if is_energy(name, target)}


def _inputs(model: ModelInterface) -> dict[str, ModelOutput]:
    return model.requested_inputs() if hasattr(model, "requested_inputs") else {}


def _trial(model: ModelInterface) -> dict[str, TensorMap]:
    """Features and energies of two atoms."""
    dtype = next(model.parameters()).dtype
    types = sorted(model.dataset_info.atomic_types)[:1] * 2
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.5, 0.9]], dtype=dtype, requires_grad=True)
    system = System(
        torch.tensor(types), positions, torch.zeros(3, 3, dtype=dtype), torch.zeros(3).bool()
    )
    system = get_system_with_neighbor_lists(system, get_requested_neighbor_lists(model))
    for name in _inputs(model):
        block = TensorBlock(
            torch.full([1, 1], KNOWN_INPUTS[name], dtype=dtype),
            Labels.range("system", 1),
            [],
            Labels.range(name, 1),
        )
        system.add_data(name, TensorMap(Labels.single(), [block]))
    names = [name for name in FEATURES if name in model.supported_outputs()]
    names += _energy_targets(model.dataset_info)
    return model([system], {name: ModelOutput(sample_kind="atom") for name in names})


def _num_features(model: ModelInterface, name: str) -> int:
    """Number of invariant features, found by a trial."""
    try:
        results = _trial(model.eval())
    except Exception as error:
        raise ValueError(f"{SECTION}: {name!r} can't be evaluated: {error!r}") from error
    features = next(results[feature] for feature in FEATURES if feature in results)
    return next(b.values[0].numel() for key, b in features.items() if is_invariant(key))


def take_over_energies(model: ModelInterface) -> None:
    """Let a new model start as the potential that its backbone is.

    Baselines and scales become those of the model, where large numbers stay in double precision and
    may move to fit new data; the backbone keeps its scale and gives energies without baseline.
    Readouts start at zero, and so do charges of neutral structures.

    :param model: new, with a backbone that has energies
    """
    backbone = model.backbone
    other = backbone.model
    rows = [sorted(other.dataset_info.atomic_types).index(t) for t in model.atomic_types]
    for target, source in backbone.energies.items():
        pairs = [(model.additive_models[0], other.additive_models[0], "{}_composition_buffer")]
        for part in ("", "_per_target", "_per_property"):
            pairs.append((model.scaler, other.scaler, "{}" + part + "_scaler_buffer"))
        for own, its, buffer in pairs:
            values = mts.load_buffer(getattr(own, buffer.format(target)))
            its_values = mts.load_buffer(getattr(its, buffer.format(source)).cpu())
            for block, its_block in zip(values.blocks(), its_values.blocks(), strict=True):
                same = block.values.shape == its_block.values.shape
                block.values[:] = its_block.values if same else its_block.values[rows]
            setattr(own, buffer.format(target), mts.save_buffer(mts.make_contiguous(values)))
        baseline = mts.load_buffer(
            getattr(other.additive_models[0], f"{source}_composition_buffer")
        )
        zero = mts.save_buffer(mts.zeros_like(baseline))
        setattr(other.additive_models[0], f"{source}_composition_buffer", zero)
        if target in model.readout.heads:
            last_layer = model.readout.heads[target].invariants.last_layer
            torch.nn.init.zeros_(last_layer.weight)
        model.additive_models[0]._new_outputs.remove(target)
    model.scaler.new_outputs = [
        name for name in model.dataset_info.targets if name not in backbone.energies
    ]
    for module in (*model.additive_models[:1], *other.additive_models[:1], model.scaler):
        module.sync_tensor_maps()
    if model.charge_equilibration is not None:
        torch.nn.init.zeros_(model.charge_equilibration.electronegativity[2].weight)
        model.has_new_charges = True
    # what is trained knows no element yet
    model.has_new_parameters, model.new_types = True, list(model.atomic_types)
    logging.info(
        f"Energies start from those of the backbone {model.hypers['backbone']['name']!r}: "
        + ", ".join(f"'{source}' for '{target}'" for target, source in backbone.energies.items())
    )


def interaction_range(model: ModelInterface) -> float:
    """
    :param model: an architecture of metatrain
    :return: its interaction range, in its unit of length
    """
    return float(duplicate(model).export().capabilities().interaction_range)


def duplicate(model: ModelInterface) -> ModelInterface:
    """
    :param model: an architecture of metatrain
    :return: a copy, made by way of a checkpoint: some hold what Python can't copy
    """
    # architectures that upgrade or load a checkpoint may change it
    checkpoint = copy.deepcopy(model.get_checkpoint())
    return _load_quietly(checkpoint).train(model.training)


def _load_quietly(checkpoint: dict[str, Any]) -> ModelInterface:
    """Without the announcement of the epoch, which here means nothing."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        return model_from_checkpoint(checkpoint, context="restart")
    finally:
        logging.disable(before)


def record(model: ModelInterface) -> dict[str, Any]:
    """
    :param model: of a backbone
    :return: its checkpoint without weights, which the checkpoint of the whole model holds
    """
    checkpoint = dict(model.get_checkpoint())
    weights = model.state_dict().keys()
    state = checkpoint["model_state_dict"]
    checkpoint["model_state_dict"] = {k: v for k, v in state.items() if k not in weights}
    del checkpoint["best_model_state_dict"]
    return checkpoint


def load_recorded(checkpoint: dict[str, Any], state_key: str) -> ModelInterface | None:
    """The backbone of a checkpoint, in the current version of its architecture.

    Weights of an older version are brought to this one in all of the checkpoint.

    :param checkpoint: of the whole model, changed in place
    :param state_key: which weights to load
    :return: None if the model has no backbone
    """
    stored = checkpoint["model_data"].get("backbone")
    if stored is None:
        return None
    prefix = "backbone.model."
    current = architecture_class(stored["architecture_name"]).__checkpoint_version__
    outdated = stored["model_ckpt_version"] != current
    models = {}
    for key in (key for key in STATES if checkpoint.get(key) is not None):
        if key != state_key and not outdated:
            continue
        whole = checkpoint[key]
        names = [name for name in whole if name.startswith(prefix)]
        state = {name.removeprefix(prefix): whole[name] for name in names}
        state.update(stored["model_state_dict"])
        # upgrades change what they are given
        own = {**copy.deepcopy(stored), **{key: copy.deepcopy(state) for key in STATES}}
        models[key] = _load_quietly(own)
        if outdated:
            for name in names:
                del whole[name]
            whole.update({prefix + name: x for name, x in models[key].state_dict().items()})
    if outdated and checkpoint.get("optimizer_states") is not None:
        logging.info("The backbone is of a newer version now: the optimizer starts anew")
        checkpoint["optimizer_states"] = None
    return models[state_key]


class _Operators(TorchDispatchMode):
    """Names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def exportable(model: ModelInterface) -> torch.nn.Module:
    """
    :param model: of a backbone, changed
    :return: as its architecture prepares it for TorchScript
    :raises ValueError: for operators that an exported file can't take along
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__module__ == "spex.angular.spherical_harmonics":
                own = SpexHarmonics(child.max_angular)
                setattr(parent, name, own.to(next(model.parameters()).device))
    check_exportable(model)
    return model.export().module


def check_exportable(model: ModelInterface) -> None:
    """Refuse operators whose derivatives are registered in Python: engines that load an exported
    file without it would get wrong forces, with no more than a warning.

    :param model: of a backbone
    :raises ValueError: naming the operators
    """
    with _Operators() as operators:
        _trial(model)
    in_python = [
        name
        for name in sorted(operators.names)
        for line in torch._C._dispatch_dump(name.split(".")[0]).split("\n")
        if line.startswith("Autograd") and ".py:" in line
    ]
    if in_python:
        raise ValueError(
            f"the backbone can't be exported: the derivatives of its operators "
            f"{', '.join(in_python)} are in Python, without which engines in C++ get wrong forces"
        )
