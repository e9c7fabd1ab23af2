r"""Another architecture of metatrain inside the model: its features join those of LOREM.

CELLI (arXiv 2501.19179) calls its charge equilibration a block behind any network of atoms. Here
the network comes in between: whatever LOREM makes of scalar and spherical features, charges,
potentials and outputs, it makes of the backbone's too.
"""

import torch
from metatensor.torch import LabelsEntry
from metatomic.torch import ModelOutput, NeighborListOptions, System
from metatrain.utils.abc import ModelInterface
from metatrain.utils.neighbor_lists import get_requested_neighbor_lists

from ..documentation import ModelHypers
from ..graph import Graph
from ..nn.mlp import linear
from ..nn.spherical import degrees_of_components

FEATURES = ("feature", "mtt::aux::mace_features")
"""Outputs of features that architectures of metatrain offer."""

START = 0.1
"""Of the map of features, relative to one that keeps their variance."""


class Backbone(torch.nn.Module):
    r"""Features f of another model into the scalar features x and the spherical ones
    :math:`\rho`, degree by degree:

    .. math:: x \to x + W f, \qquad \rho_l \to \rho_l \odot (1 + G_l f)

    with a small W and G = 0 at first. Of equivariant features only the invariant part is used.

    :param hypers: of the model
    :param model: the other model, an architecture of metatrain
    :param num_inputs: number of its (invariant) features
    :param energies: targets that get its energy, and the names of this energy there
    """

    energies: dict[str, str]  # TorchScript can't infer types of empty containers

    def __init__(
        self,
        hypers: ModelHypers,
        model: ModelInterface,
        num_inputs: int,
        energies: dict[str, str],
    ) -> None:
        super().__init__()
        max_degree, s = int(hypers["max_degree"]), int(hypers["num_spherical_features"])
        self.model = model
        # some architectures train few of their weights (LoRA)
        self.fixed: list[str] = [n for n, p in model.named_parameters() if not p.requires_grad]
        self.feature: str = next(name for name in FEATURES if name in model.supported_outputs())
        self.energies = energies
        self.num_inputs = num_inputs
        self.num_channels = s
        self.linear = linear(num_inputs, int(hypers["num_features"]), bias=False)
        self.linear.weight.data *= START
        self.gate = torch.nn.Linear(num_inputs, (max_degree + 1) * s, bias=False)
        torch.nn.init.zeros_(self.gate.weight)
        degrees = degrees_of_components(max_degree)
        self.register_buffer("degrees", degrees, persistent=False)

    def train(self, mode: bool = True) -> "Backbone":
        """The other model gives energies in units of the data in training too, where metatrain's
        architectures leave out their scales; only what is inside it is told of the training.

        :param mode: whether to train
        :return: the module
        """
        super().train(mode)
        self.model.training = False
        return self

    def freeze(self, frozen: bool) -> None:
        """
        :param frozen: whether the weights of the other model stay as they are, or only those that
            it keeps fixed itself
        """
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not frozen and name not in self.fixed)

    def inputs(self) -> dict[str, ModelOutput]:
        """What the other model asks for beside positions and cells."""
        if hasattr(self.model, "requested_inputs"):
            return self.model.requested_inputs()
        return {}

    def neighbor_lists(self) -> list[NeighborListOptions]:
        """Neighbour lists that the other model and what is inside it ask for."""
        return get_requested_neighbor_lists(self.model)

    def forward(
        self,
        systems: list[System],
        graph: Graph,
        x: torch.Tensor,
        rho: torch.Tensor,
        targets: list[str],
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """
        :param systems: structures with the neighbour lists and inputs that the other model asks for
        :param graph: of the same structures
        :param x: scalar features ``[atoms, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :param targets: names of the outputs to evaluate
        :return: new scalar and spherical features of the same shapes; energies of atoms
            ``[atoms, 1]`` for those of the targets that get them, in their units
        """
        outputs = {self.feature: ModelOutput(sample_kind="atom")}
        for target, name in self.energies.items():
            if target in targets:
                outputs[name] = ModelOutput(sample_kind="atom")
        results = self.model(self.rounded(systems, graph), outputs, None)

        first = torch.tensor(graph.boundaries.first[:-1], device=x.device)
        features = torch.zeros([x.shape[0], self.num_inputs], dtype=x.dtype, device=x.device)
        for key, block in results[self.feature].items():
            if not is_invariant(key):
                continue
            rows = first[block.samples.column("system")] + block.samples.column("atom")
            features = features.index_add(0, rows, block.values.flatten(1))
        energies: dict[str, torch.Tensor] = {}
        for target, name in self.energies.items():
            if target in targets:
                block = results[name].block()
                rows = first[block.samples.column("system")] + block.samples.column("atom")
                energies[target] = torch.zeros_like(block.values).index_add(0, rows, block.values)

        gate = self.gate(features).unflatten(1, [-1, self.num_channels])
        rho = rho * (1.0 + gate.index_select(1, self.degrees))
        return x + self.linear(features), rho, energies

    def rounded(self, systems: list[System], graph: Graph) -> list[System]:
        """
        :param systems: structures in any precision
        :param graph: of the same structures, in the precision of the model
        :return: structures in the precision of the model; where that is another one, their
            positions are those of the graph, about the mean of the atoms
        """
        dtype = graph.positions.dtype
        if systems[0].positions.dtype == dtype:
            return systems
        rounded: list[System] = []
        for i, system in enumerate(systems):
            copy = system.to(dtype)
            start = graph.boundaries.first[i]
            copy.positions = graph.positions[start : start + len(system)]
            rounded.append(copy)
        return rounded


def is_invariant(key: LabelsEntry) -> bool:
    """
    :param key: of a block of features
    :return: whether rotations and inversion leave it as it is
    """
    if "o3_lambda" not in key.names:
        return True
    return int(key["o3_lambda"]) == 0 and int(key["o3_sigma"]) == 1
