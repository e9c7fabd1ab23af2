"""Import of lorem-jax checkpoints (Flax parameters in a msgpack file)."""

import logging
import math
from pathlib import Path
from typing import Any

import metatensor.torch as mts
import msgpack
import numpy as np
import torch
import yaml
from metatrain.composition import CompositionModel
from metatrain.utils.architectures import check_architecture_options, get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.hypers import init_with_defaults
from metatrain.utils.pydantic import MetatrainArchitectureValidationError

from ...documentation import LongRangeHypers, ModelHypers, check_hypers
from ...heads.response import BORN_CHARGE
from ...model import Lorem
from ...trainer import Trainer
from .weights import Loader

ARCHITECTURE = "lorem.models.mlip.Lorem"
BORN_CHARGES = "lorem.models.bec.LoremBEC"
DEFAULTS = {
    ARCHITECTURE: {},
    BORN_CHARGES: {"equivariant_message_passing": False, "initialize_node_features": False},
}
"""Settings that a file may leave out, where their defaults differ from ours."""
NAMES = {
    "cutoff": "cutoff",
    "max_degree": "max_degree",
    "num_features": "num_features",
    "num_radial": "num_radial",
    "num_species": "num_species_features",
    "num_spherical_features": "num_spherical_features",
    "num_message_passing": "num_message_passing",
    "equivariant_message_passing": "equivariant_message_passing",
    "initialize_node_features": "initialize_node_features",
}
CUTOFF_FUNCTIONS = {"cosine_cutoff": "cosine", "smooth_cutoff": "smooth"}
RADIAL_BASES = {"basic_bernstein": "bernstein"}
BORN_TARGET = {
    "quantity": "",
    "unit": "e",
    "type": {"cartesian": {"rank": 2}},
    "sample_kind": "atom",
    "num_subtargets": 1,
    "description": "",
}


def convert(folder: str | Path, output: str | Path, full_isolated_potentials: bool = False) -> None:
    """Turn a lorem-jax checkpoint folder into a metatrain checkpoint of this architecture.

    :param folder: with ``model.yaml``, ``baseline.yaml`` and ``model.msgpack`` in it or in its
        subfolder ``model``
    :param output: checkpoint to write, for ``mtt export`` and for fine-tuning
    :param full_isolated_potentials: for weights trained when isolated structures had potentials
        without the factor ½ (those of the LOREM paper): the factor 2 is put into the weights, and
        the result is meant for isolated structures only
    :raises FileNotFoundError: where a file is missing
    :raises ValueError: for other models, settings unknown here, weights that are missing, left over
        or of another shape, and numbers that are none
    """
    folder = _model_folder(Path(folder))
    hypers = read_hypers(folder / "model.yaml")
    baseline = _read_baseline(folder / "baseline.yaml")
    parameters = read_parameters(folder / "model.msgpack")
    born_charges = read_model(folder / "model.yaml")[0] == BORN_CHARGES
    model = build_model(hypers, baseline, parameters, born_charges)
    if full_isolated_potentials:
        _double_potentials(model)
    bias = model.readout.heads["energy"].invariants.last_layer.bias
    constant = bias.item()
    model.to(torch.float32)
    # the bias is a sum of several of theirs: what single precision lacks of it is 1e-8 eV per atom
    remainder = constant - bias.item()
    _set_baseline(model.additive_models[0], {z: e + remainder for z, e in baseline.items()})
    trainer = Trainer(get_default_hypers("lorem", base_precision=32)["training"])
    trainer.save_checkpoint(model, output)
    logging.info(f"Wrote {output}")


def build_model(
    hypers: ModelHypers,
    baseline: dict[int, float],
    parameters: dict[str, np.ndarray],
    born_charges: bool = False,
) -> Lorem:
    """A model with given weights.

    :param hypers: model hypers
    :param baseline: energy in eV per atomic number
    :param parameters: arrays by their Flax path, joined by ``/``
    :param born_charges: whether it predicts Born charges
    :return: the model, in double precision (sums of single-precision weights are exact)
    :raises ValueError: where weights are missing, left over or of another shape
    """
    targets = {"energy": get_energy_target_info("energy", {"quantity": "energy", "unit": "eV"})}
    if born_charges:
        targets[BORN_CHARGE] = get_generic_target_info(BORN_CHARGE, BORN_TARGET)
    dataset_info = DatasetInfo("angstrom", sorted(baseline), targets)
    model = Lorem(hypers, dataset_info).to(torch.float64)
    with torch.no_grad():
        Loader(parameters).load(model)
    _set_baseline(model.additive_models[0], baseline)
    return model


def read_model(path: Path) -> tuple[str, dict[str, Any]]:
    """
    :param path: of ``model.yaml``
    :return: name and settings of the model
    :raises ValueError: for other models
    """
    settings = _read_yaml(path)
    if not isinstance(settings, dict) or len(settings) != 1:
        raise ValueError(f"{path} should hold one model, with its settings below its name")
    name, values = next(iter(settings.items()))
    if name not in DEFAULTS:
        raise ValueError(f"{path}: {name} is neither of {', '.join(DEFAULTS)}")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: below {name} there should be settings, not {values!r}")
    return name, {**DEFAULTS[name], **values}


def read_hypers(path: Path) -> ModelHypers:
    """
    :param path: of ``model.yaml``
    :return: the model hypers it stands for
    :raises ValueError: for other models and unknown settings
    """
    values = read_model(path)[1]
    hypers = init_with_defaults(ModelHypers)
    hypers["norms"] = "lorem-jax"
    for theirs, ours in NAMES.items():
        if theirs in values:
            hypers[ours] = values.pop(theirs)
    long_range = init_with_defaults(LongRangeHypers)
    long_range["enable"] = values.pop("lr", True)
    long_range["max_degree"] = values.pop("max_degree_lr", 2)
    hypers["long_range"] = long_range
    for key, ours, known in (
        ("cutoff_fn", "cutoff_function", CUTOFF_FUNCTIONS),
        ("radial_basis", "radial_basis", RADIAL_BASES),
    ):
        if key in values:
            value = values.pop(key)
            if value not in known:
                raise ValueError(f"{path}: {key}: {value!r} is not one of {sorted(known)}")
            hypers[ours] = known[value]
    if values.pop("inputs", ()):
        raise ValueError(f"{path}: models with inputs can't be imported")
    if values:
        raise ValueError(f"{path}: unknown settings {sorted(values)}")
    try:
        options = {**get_default_hypers("lorem"), "name": "lorem", "model": hypers}
        check_architecture_options("lorem", options)
        check_hypers(hypers)
    except (MetatrainArchitectureValidationError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return hypers


def read_parameters(path: Path) -> dict[str, np.ndarray]:
    """
    :param path: of ``model.msgpack``
    :return: arrays by their Flax path, joined by ``/``
    :raises ValueError: for a file that is not such a set of arrays, and for numbers that are none
    """
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_unpack_array, raw=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"{path} can't be read as msgpack: {error}") from error
    parameters: dict[str, np.ndarray] = {}

    def flatten(branch: Any, prefix: str) -> None:
        for key, value in branch.items():
            if isinstance(value, dict):
                flatten(value, f"{prefix}{key}/")
                continue
            if not isinstance(value, np.ndarray):
                raise ValueError(f"{path}: {prefix}{key} is not an array")
            if value.dtype not in (np.float16, np.float32, np.float64):
                raise ValueError(f"{path}: {prefix}{key} has the type {value.dtype}, not float")
            if not np.isfinite(value).all():
                raise ValueError(f"{path}: {prefix}{key} holds infinite values or NaN")
            parameters[f"{prefix}{key}"] = value

    if not isinstance(tree, dict):
        raise ValueError(f"{path} does not hold a tree of parameters")
    flatten(tree, "")
    return parameters


def _model_folder(folder: Path) -> Path:
    names = ("model.yaml", "baseline.yaml", "model.msgpack")
    for candidate in (folder / "model", folder):
        if all((candidate / name).is_file() for name in names):
            return candidate
    raise FileNotFoundError(
        f"{folder} is not a lorem-jax checkpoint: neither it nor its subfolder 'model' holds all "
        f"of {', '.join(names)}"
    )


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} can't be read as YAML: {error}") from error


def _read_baseline(path: Path) -> dict[int, float]:
    content = _read_yaml(path)
    if not isinstance(content, dict) or list(content) != ["elemental"] or not content["elemental"]:
        raise ValueError(f"{path} should hold energies per element below 'elemental'")
    try:
        baseline = {int(z): float(energy) for z, energy in content["elemental"].items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} should hold one energy per atomic number below 'elemental': {error}"
        ) from error
    for z, energy in baseline.items():
        if not math.isfinite(energy):
            raise ValueError(f"{path}: the energy of element {z} is {energy}")
    return baseline


def _unpack_array(code: int, data: bytes) -> np.ndarray:
    if code != 1:
        raise ValueError(f"unknown extension type {code}")
    shape, dtype, buffer = msgpack.unpackb(data, raw=False)
    return np.frombuffer(buffer, dtype=np.dtype(dtype)).reshape(shape)


def _set_baseline(composition: CompositionModel, baseline: dict[int, float]) -> None:
    composition.model.fit({"energy": baseline}, targets_to_fit=["energy"])
    weights = composition.model.weights["energy"].to(torch.float64)
    composition.register_buffer(
        "energy_composition_buffer", mts.save_buffer(mts.make_contiguous(weights))
    )


def _double_potentials(model: Lorem) -> None:
    if model.long_range is None:
        raise ValueError("the model has no long-range block whose potentials could be doubled")
    with torch.no_grad():
        model.long_range.potential_linear.weight.mul_(2.0)
        model.long_range.update.input_mlp[0].weight[:, 0].mul_(2.0)
