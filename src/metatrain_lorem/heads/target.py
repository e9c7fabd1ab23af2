r"""The head of one target: invariant coefficients times equivariant bases, per block."""

import torch
from metatrain.utils.data import TargetInfo

from ..documentation import ModelHypers, has_long_range_features
from ..indexing import cut
from ..nn.spherical import CARTESIAN
from ..nn.tensor_dense import DegreeLinear
from .equivariant import TensorBasis
from .invariant import InvariantHead


class TargetHead(torch.nn.Module):
    r"""Per-atom values of a target, one array per block of its layout.

    A block of tensors with components K and properties p is
    :math:`T_{K p} = \sum_b c_{p b}(x)\, B_{K b}`, with invariant coefficients c from the scalar
    features of all stages and an equivariant basis B from the spherical ones (and the long-range
    field, mapped linearly onto them).

    :param name: of the target
    :param target: its description, atomic bases densified
    :param hypers: of the model
    :param num_stages: stages of scalar features
    :raises ValueError: for targets that can't be built, see :class:`TensorBasis`
    """

    shapes: list[list[int]]  # TorchScript can't infer empty lists

    def __init__(self, name: str, target: TargetInfo, hypers: ModelHypers, num_stages: int) -> None:
        super().__init__()
        max_degree = int(hypers["max_degree"])
        num_channels = int(hypers["num_spherical_features"])
        self.is_scalar = bool(target.is_scalar)
        self.cartesian = bool(target.is_cartesian)
        self.bases = torch.nn.ModuleList()
        self.shapes = []
        self.num_properties: list[int] = []
        for key, block in target.layout.items():
            if target.is_cartesian:
                degrees = [1 for _ in block.components]
                parities = [1 for _ in block.components]
            else:
                degrees = [int(key[n]) for n in key.names if n.startswith("o3_lambda")]
                parities = [int(key[n]) for n in key.names if n.startswith("o3_sigma")]
            self.bases.append(TensorBasis(degrees, parities, max_degree, num_channels, name))
            self.shapes.append([len(component) for component in block.components])
            self.num_properties.append(len(block.properties))
        self.sizes = [
            num * basis.num_tensors
            for num, basis in zip(self.num_properties, self.bases, strict=True)
        ]
        self.field_linear: torch.nn.Module | None = None
        if has_long_range_features(hypers) and not target.is_scalar:
            self.field_linear = DegreeLinear(max_degree, num_channels, num_channels)
        self.invariants = InvariantHead(int(hypers["num_features"]), num_stages, sum(self.sizes))
        self.register_buffer("xyz", torch.tensor(CARTESIAN), persistent=False)

    def last_layer_features(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """
        :param stages: scalar features after each stage, each ``[atoms, d]``
        :return: hidden features of all stages' MLPs ``[atoms, num_stages * d]``
        """
        return self.invariants.last_layer_features(stages)

    def forward(
        self,
        last_layer_features: torch.Tensor,
        spherical: torch.Tensor,
        field: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """
        :param last_layer_features: ``[atoms, num_stages * d]``
        :param spherical: spherical features ``[atoms, (L + 1)**2, num_channels]``
        :param field: long-range field, if there is one, of the same shape
        :return: per block ``[atoms, components ..., properties]``
        """
        if self.field_linear is not None and field is not None:
            spherical = spherical + self.field_linear(field)
        coefficients = cut(self.invariants(last_layer_features), self.sizes, 1)
        values: list[torch.Tensor] = []
        if self.is_scalar:
            return list(coefficients)
        for i, basis in enumerate(self.bases):
            tensors = basis(spherical)
            block = torch.einsum(
                "nkb,npb->nkp",
                tensors,
                coefficients[i].unflatten(1, [self.num_properties[i], tensors.shape[2]]),
            )
            block = block.reshape([block.shape[0]] + self.shapes[i] + [block.shape[2]])
            if self.cartesian:
                for axis in range(len(self.shapes[i])):
                    block = block.index_select(axis + 1, self.xyz)
            values.append(block)
        return values
