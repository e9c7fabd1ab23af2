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
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.hypers import init_with_defaults
from metatrain.utils.pydantic import MetatrainArchitectureValidationError

from ...blocks.long_range import LongRange
from ...documentation import LongRangeHypers, ModelHypers, check_hypers
from ...model import Lorem
from ...nn.density import RadialMixing
from ...nn.message_passing import MessagePassing
from ...nn.mlp import Update
from ...nn.tensor_dense import DegreeLinear, TensorDense, TensorProduct
from ...trainer import Trainer

ARCHITECTURE = "lorem.models.mlip.Lorem"
BORN_CHARGES = "lorem.models.bec.LoremBEC"
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
    model = build_model(hypers, baseline, parameters)
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
    hypers: ModelHypers, baseline: dict[int, float], parameters: dict[str, np.ndarray]
) -> Lorem:
    """A model with given weights.

    :param hypers: model hypers
    :param baseline: energy in eV per atomic number
    :param parameters: arrays by their Flax path, joined by ``/``
    :return: the model, in double precision (sums of single-precision weights are exact)
    :raises ValueError: where weights are missing, left over or of another shape
    """
    info = get_energy_target_info("energy", {"quantity": "energy", "unit": "eV"})
    dataset_info = DatasetInfo("angstrom", sorted(baseline), {"energy": info})
    model = Lorem(hypers, dataset_info).to(torch.float64)
    with torch.no_grad():
        _Loader(parameters).load(model)
    _set_baseline(model.additive_models[0], baseline)
    return model


def read_hypers(path: Path) -> ModelHypers:
    """
    :param path: of ``model.yaml``
    :return: the model hypers it stands for
    :raises ValueError: for other models and unknown settings
    """
    settings = _read_yaml(path)
    if not isinstance(settings, dict) or len(settings) != 1:
        raise ValueError(f"{path} should hold one model, with its settings below its name")
    name, values = next(iter(settings.items()))
    if name == BORN_CHARGES:
        raise ValueError(f"{path}: models with Born charges ({name}) can't be imported yet")
    if name != ARCHITECTURE:
        raise ValueError(f"{path}: {name} is not {ARCHITECTURE}")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: below {name} there should be settings, not {values!r}")
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


class _Loader:
    """Hands out the arrays in the order in which lorem-jax's model makes its modules: Flax numbers
    the modules of each class from zero."""

    def __init__(self, parameters: dict[str, np.ndarray]) -> None:
        self.left = dict(parameters)
        self.counts: dict[str, int] = {}

    def load(self, model: Lorem) -> None:
        short_range = model.short_range
        path = "params/Initial_0/ChemicalEmbedding_0/Embed_0/embedding"
        table = self.array(path)
        if table.shape[1] != short_range.embedding.embedding_dim:
            raise ValueError(f"{path} has shape {list(table.shape)}")
        if max(model.atomic_types) >= len(table):
            raise ValueError(f"{path} ends at atomic number {len(table) - 1}")
        short_range.embedding.weight.copy_(table[model.atomic_types])

        mixing = self.next("RadialCoefficients")
        if short_range.initialize_node_features:
            self.linear(short_range.initial, self.next("Dense"))
        density = short_range.density
        self.mixing(density.mixing, mixing)
        self.linear(density.scalar, self.next("Dense"))
        self.update(short_range.neighbor_update, self.next("Update"))
        self.linear(density.spherical, self.next("Dense"))
        self.tensor_dense(short_range.density_product, self.next("TensorDense"))
        self.update(short_range.norm_update, self.next("Update"))
        self.energy_mlp(model, 0)
        for i, step in enumerate(short_range.message_passing):
            self.message_passing(step)
            self.energy_mlp(model, i + 1)
        if model.long_range is not None:
            self.long_range(model.long_range)
            self.energy_mlp(model, model.readout.num_stages - 1)
        if self.left:
            shapes = {key: list(value.shape) for key, value in self.left.items()}
            raise ValueError(f"weights that the model has no place for: {shapes}")

    def next(self, name: str) -> str:
        number = self.counts.get(name, 0)
        self.counts[name] = number + 1
        return f"params/{name}_{number}"

    def array(self, path: str) -> torch.Tensor:
        if path not in self.left:
            raise ValueError(f"the checkpoint lacks {path}, or it is used already")
        return torch.from_numpy(np.array(self.left.pop(path)))

    def copy(self, parameter: torch.Tensor, path: str, transpose: bool = False) -> None:
        array = self.array(path)
        expected = parameter.shape[::-1] if transpose else parameter.shape
        if array.shape != expected:
            raise ValueError(f"{path} has shape {list(array.shape)} instead of {list(expected)}")
        parameter.copy_(array.T if transpose else array)

    def linear(self, module: torch.nn.Linear, path: str) -> None:
        self.copy(module.weight, f"{path}/kernel", transpose=True)
        if module.bias is not None:
            self.copy(module.bias, f"{path}/bias")

    def mlp(self, module: torch.nn.Sequential, path: str) -> None:
        layers = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
        for i, layer in enumerate(layers):
            self.linear(layer, f"{path}/Dense_{i}")

    def mixing(self, module: RadialMixing, path: str) -> None:
        self.mlp(module.mlp, f"{path}/MLP_0")

    def update(self, module: Update, path: str) -> None:
        self.mlp(module.input_mlp, f"{path}/MLP_0")
        self.mlp(module.feature_mlp, f"{path}/MLP_1")
        for i, norm in enumerate((module.input_norm, module.feature_norm)):
            self.copy(norm.weight, f"{path}/LayerNorm_{i}/scale")
            self.copy(norm.bias, f"{path}/LayerNorm_{i}/bias")

    def degree_linear(self, module: DegreeLinear, path: str) -> None:
        for degree in range(module.weight.shape[0]):
            parity = "+" if degree % 2 == 0 else "-"
            self.copy(module.weight[degree], f"{path}/{degree}{parity}/kernel")

    def product(self, module: TensorProduct, path: str) -> None:
        kernel = self.array(f"{path}/kernel")
        degrees = [degree + 1 for degree in module.max_degrees]
        expected = [1, degrees[0], 1, degrees[1], 1, degrees[2], module.weight.shape[1]]
        if list(kernel.shape) != expected:
            raise ValueError(f"{path}/kernel has shape {list(kernel.shape)} instead of {expected}")
        for i, (l1, l2, l3) in enumerate(module.paths):
            module.weight[i] = kernel[0, l1, 0, l2, 0, l3]

    def tensor_dense(self, module: TensorDense, path: str) -> None:
        self.degree_linear(module.linear, f"{path}/dense")
        self.product(module.product, f"{path}/tensor")

    def message_passing(self, step: MessagePassing) -> None:
        self.mixing(step.mixing, self.next("RadialCoefficients"))
        self.linear(step.scalar, self.next("Dense"))
        self.update(step.update, self.next("Update"))
        if step.spherical is not None:
            self.linear(step.spherical.coefficients, self.next("Dense"))
            path = self.next("MessagePass")
            self.degree_linear(step.spherical.filter, f"{path}/filter")
            self.product(step.spherical.message_product, f"{path}/tensor")
            self.degree_linear(step.spherical.atom_linear, self.next("Dense"))
            self.degree_linear(step.spherical.message_linear, self.next("Dense"))
            self.product(step.spherical.product, self.next("Tensor"))
            self.update(step.norm_update, self.next("Update"))

    def long_range(self, block: LongRange) -> None:
        self.mlp(block.scalar_charge, self.next("MLP"))
        self.tensor_dense(block.spherical_charges, self.next("TensorDense"))
        self.degree_linear(block.potential_linear, self.next("Dense"))
        self.product(block.product, self.next("Tensor"))
        self.update(block.update, self.next("Update"))

    def energy_mlp(self, model: Lorem, stage: int) -> None:
        """The last layers of all stages are one linear map here, with one bias."""
        head = model.readout.heads["energy"].invariants
        path = self.next("MLP")
        self.linear(head.stages[stage][0], f"{path}/Dense_0")
        self.linear(head.stages[stage][2], f"{path}/Dense_1")
        d = head.stages[stage][2].out_features
        self.copy(
            head.last_layer.weight[:, stage * d : (stage + 1) * d].T, f"{path}/Dense_2/kernel"
        )
        if stage == 0:
            head.last_layer.bias.zero_()
        bias = self.array(f"{path}/Dense_2/bias")
        if bias.shape != head.last_layer.bias.shape:
            raise ValueError(f"{path}/Dense_2/bias has shape {list(bias.shape)} instead of [1]")
        head.last_layer.bias.add_(bias)


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
