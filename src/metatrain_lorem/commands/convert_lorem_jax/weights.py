"""From the arrays of a lorem-jax checkpoint to the parameters of a model."""

import numpy as np
import torch

from ...blocks.long_range import LongRange
from ...heads.born import BiasedDegreeLinear
from ...model import Lorem
from ...nn.density import RadialMixing
from ...nn.message_passing import MessagePassing
from ...nn.mlp import Update
from ...nn.tensor_dense import DegreeLinear, TensorDense, TensorProduct

PREDICTOR = "PerParticleTensorPredictor"
"""Class of lorem-jax for one summand of the Born charges."""


class Loader:
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
        self.predictor(model, 0)
        for i, step in enumerate(short_range.message_passing):
            self.message_passing(step)
            self.energy_mlp(model, i + 1)
            self.predictor(model, i + 1)
        if model.long_range is not None:
            self.long_range(model.long_range)
            self.energy_mlp(model, model.readout.num_stages - 1)
            self.predictor(model, model.readout.num_stages - 1)
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

    def predictor(self, model: Lorem, stage: int) -> None:
        if model.readout.born_head is None:
            return
        predictor, path = model.readout.born_head.predictors[stage], self.next(PREDICTOR)
        for i, layer in enumerate(predictor.layers):
            self.biased_degree_linear(layer, f"{path}/Dense_{i}")
        self.biased_degree_linear(predictor.factors, f"{path}/TensorDense_0/dense")
        path = f"{path}/TensorDense_0/tensor/kernel"
        kernel = self.array(path)
        degrees = predictor.factors.linear.weight.shape[0]
        expected = [1, degrees, 1, degrees, 2, 3, 1]
        if list(kernel.shape) != expected:
            raise ValueError(f"{path} has shape {list(kernel.shape)} instead of {expected}")
        for i, (l1, l2, l3) in enumerate(predictor.paths):
            # the other parity is computed there, but has no effect
            predictor.weight[i] = kernel[0, l1, 0, l2, 0, l3, 0]

    def biased_degree_linear(self, module: BiasedDegreeLinear, path: str) -> None:
        self.degree_linear(module.linear, path)
        self.copy(module.bias, f"{path}/0+/bias")

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
