r"""From plain tensors to TensorMaps."""

from typing import Optional

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatensor.torch.operations._add import _add_block_block
from metatomic.torch import ModelOutput
from metatrain.composition import CompositionModel
from metatrain.utils.additive import ZBL
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.sum_over_atoms import sum_over_atoms

from .documentation import ModelHypers
from .graph import Graph
from .indexing import occurrences


class OutputLabels(torch.nn.Module):
    """Labels of all outputs: keys, and of each block its components and properties."""

    # TorchScript can't infer types of empty containers
    keys: dict[str, Labels]
    components: dict[str, list[list[Labels]]]
    properties: dict[str, list[Labels]]

    def __init__(self) -> None:
        super().__init__()
        self.keys = {}
        self.components = {}
        self.properties = {}

    def add_target(self, name: str, target: TargetInfo) -> None:
        """
        :param name: of the output
        :param target: its description, atomic bases densified
        """
        self.keys[name] = target.layout.keys
        self.components[name] = [block.components for block in target.layout.blocks()]
        self.properties[name] = [block.properties for block in target.layout.blocks()]

    def add_array(self, name: str, label: str, size: int = 1) -> None:
        """
        :param name: of an output of one block without components
        :param label: name of its properties
        :param size: number of properties
        """
        self.keys[name] = Labels(["_"], torch.zeros([1, 1], dtype=torch.int64))
        self.components[name] = [[]]
        self.properties[name] = [Labels([label], torch.arange(size).unsqueeze(1))]

    def forward(
        self, values: dict[str, list[torch.Tensor]], graph: Graph, dtype: torch.dtype
    ) -> dict[str, TensorMap]:
        """
        :param values: per output one array per block ``[atoms, components ..., properties]``
        :param graph: of the batch
        :param dtype: floating-point type of the outputs
        :return: outputs per atom
        """
        maps: dict[str, TensorMap] = {}
        if len(values) == 0:
            return maps
        self.move(graph.system_index.device)
        samples = Labels(
            ["system", "atom"],
            torch.stack([graph.system_index, graph.atom_index], dim=1),
            assume_unique=True,
        )
        for name, arrays in values.items():
            blocks: list[TensorBlock] = []
            for i, components in enumerate(self.components[name]):
                properties = self.properties[name][i]
                array = arrays[i].to(dtype)
                blocks.append(TensorBlock(array, samples, components, properties))
            maps[name] = TensorMap(self.keys[name], blocks)
        return maps

    def move(self, device: torch.device) -> None:
        """To the device of the values."""
        for name, keys in self.keys.items():
            if keys.device != device:
                self.keys[name] = keys.to(device)
                self.properties[name] = [p.to(device) for p in self.properties[name]]
                components: list[list[Labels]] = []
                for labels in self.components[name]:
                    components.append([c.to(device) for c in labels])
                self.components[name] = components


def baseline_models(hypers: ModelHypers, dataset_info: DatasetInfo) -> list[torch.nn.Module]:
    """
    :param hypers: of the model
    :param dataset_info: of the model
    :return: what is added to the targets: the composition model and, if asked for, ZBL's repulsion
    """
    atomic_types = sorted(dataset_info.atomic_types)
    models = [CompositionModel.from_valid_targets(dataset_info, atomic_types)]
    if hypers["zbl"]:
        targets = {
            name: target
            for name, target in dataset_info.targets.items()
            if ZBL.is_valid_target(name, target)
        }
        models.append(ZBL({}, DatasetInfo(dataset_info.length_unit, atomic_types, targets)))
    return models


def relabeled(result: TensorMap, label: str) -> TensorMap:
    """
    :param result: one block with one property
    :param label: new name of the property
    :return: the same values
    """
    block = result.block()
    zero = torch.zeros([1, 1], dtype=torch.int64, device=block.values.device)
    block = TensorBlock(block.values, block.samples, block.components, Labels([label], zero))
    return TensorMap(Labels(["_"], zero), [block])


def add_baseline(predictions: TensorMap, baseline: TensorMap) -> TensorMap:
    """Add a baseline that may lack blocks of the predictions.

    :param predictions: predictions of a target
    :param baseline: what to add, in any floating-point type
    :return: the sum, in the type of the predictions
    """
    blocks: list[TensorBlock] = []
    for key, block in predictions.items():
        if key in baseline.keys:
            addend = baseline.block(key).to(device=block.device, dtype=block.dtype)
            blocks.append(_add_block_block(block, addend))
        else:
            blocks.append(block.copy(deep=False))
    return TensorMap(predictions.keys, blocks)


def add_response(energies: TensorMap, response: torch.Tensor) -> TensorMap:
    """Give energies the derivatives that they lack where charges were solved iteratively.

    Energies of atoms get the derivatives of their sum over the structure, each an equal part; any
    other combination of them gets derivatives too large to go unnoticed.

    :param energies: per structure or per atom
    :param response: zero, with the derivatives ``[systems]``
    :return: the same energies
    """
    block = energies.block()
    system = block.samples.column("system").to(torch.long)
    share = (response / occurrences(system, response.shape[0]).clamp(min=1))[system]
    if "atom" in block.samples.names and len(system) > 0:
        # zero, and so are its derivatives if those of neighbouring rows are equal
        same = (system[1:] == system[:-1]).to(response.dtype)
        numbers = torch.arange(1, len(system), device=system.device)
        alarm = 1e30 * numbers * same * response[system[1:]]
        after = torch.nn.functional.pad(alarm, [0, 1])
        before = torch.nn.functional.pad(alarm, [1, 0])
        share = share + (after - before)
    values = block.values + share.unsqueeze(1) / block.values.size(1)
    block = TensorBlock(values, block.samples, block.components, block.properties)
    return TensorMap(energies.keys, [block])


def collect(
    per_atom: dict[str, TensorMap],
    outputs: dict[str, ModelOutput],
    selected_atoms: Optional[Labels],  # noqa: UP045
) -> dict[str, TensorMap]:
    """
    :param per_atom: values of all atoms
    :param outputs: whether they are asked for per atom or per system
    :param selected_atoms: atoms to return or to sum, all if None
    :return: what is asked for
    """
    collected: dict[str, TensorMap] = {}
    for name, result in per_atom.items():
        per_system = outputs[name].sample_kind == "system"
        if selected_atoms is not None:
            result = mts.slice(result, "samples", selected_atoms)
            if per_system:
                # no rows for structures without a selected atom
                result = mts.sum_over_samples(result, ["atom"])
        elif per_system:
            result = sum_over_atoms(result)
        collected[name] = result
    return collected
