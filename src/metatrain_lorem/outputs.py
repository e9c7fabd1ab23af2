r"""From plain tensors to TensorMaps."""

from typing import Optional

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatensor.torch.operations._add import _add_block_block
from metatomic.torch import ModelOutput, System
from metatrain import composition
from metatrain.utils.additive import ZBL
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.data.atomic_basis_helpers import sparsify_atomic_basis_target

from .blocks.charge_equilibration import Charges
from .documentation import ModelHypers
from .electrostatics.equilibration.equilibrium import response
from .graph import Graph
from .indexing import occurrences, sum_systems


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

    def add_tensor(self, name: str, components: list[str]) -> None:
        """
        :param name: of an output of one block and one property
        :param components: names of its Cartesian indices
        """
        self.add_array(name, name.split("::")[-1])
        self.components[name] = [[Labels([c], torch.arange(3).unsqueeze(1)) for c in components]]

    def forward(
        self,
        values: dict[str, list[torch.Tensor]],
        graph: Graph,
        outputs: dict[str, ModelOutput],
        selected_atoms: Optional[Labels],  # noqa: UP045
        dtype: torch.dtype,
    ) -> dict[str, TensorMap]:
        """
        :param values: per output one array per block ``[atoms, components ..., properties]``
        :param graph: of the batch
        :param outputs: whether they are asked for per atom or per system
        :param selected_atoms: atoms to return or to sum, all if None
        :param dtype: floating-point type of the outputs
        :return: what is asked for
        """
        maps: dict[str, TensorMap] = {}
        if len(values) == 0:
            return maps
        self.move(graph.system_index.device)
        num_systems = len(graph.boundaries.counts)
        samples: dict[str, Labels] = {}
        for name, arrays in values.items():
            kind = outputs[name].sample_kind if selected_atoms is None else "atom"
            if kind not in samples:
                samples[kind] = system_samples(graph) if kind == "system" else atom_samples(graph)
            blocks: list[TensorBlock] = []
            for i, components in enumerate(self.components[name]):
                array = arrays[i].to(dtype)
                if kind == "system":
                    array = sum_systems(array, graph.system_index, num_systems)
                properties = self.properties[name][i]
                blocks.append(TensorBlock(array, samples[kind], components, properties))
            maps[name] = TensorMap(self.keys[name], blocks)
        if selected_atoms is not None:
            maps = select(maps, outputs, selected_atoms)
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


def atom_samples(graph: Graph) -> Labels:
    """
    :param graph: of the batch
    :return: all atoms
    """
    atoms = torch.stack([graph.system_index, graph.atom_index], dim=1)
    return Labels(["system", "atom"], atoms, assume_unique=True)


def system_samples(graph: Graph) -> Labels:
    """
    :param graph: of the batch
    :return: all structures
    """
    device = graph.system_index.device
    systems = torch.arange(len(graph.boundaries.counts), dtype=torch.int32, device=device)
    return Labels(["system"], systems.unsqueeze(1), assume_unique=True)


class CompositionModel(composition.CompositionModel):
    """metatrain's, with a shorter way to the baseline of one structure: the labels of its atoms
    take a third of the operators of an evaluation's last stage."""

    # of the base class, too: TorchScript cannot infer the type of an empty dictionary
    outputs: dict[str, ModelOutput]
    scalars: list[str]

    def __init__(self, hypers: dict, dataset_info: DatasetInfo) -> None:
        super().__init__(hypers, dataset_info)
        targets = dataset_info.targets
        self.scalars = [name for name, target in targets.items() if target.is_scalar]
        zero = torch.zeros([1, 1], dtype=torch.int32)
        self.register_buffer("first_system", zero, persistent=False)

    def forward(
        self,
        systems: list[System],
        outputs: dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,  # noqa: UP045
    ) -> dict[str, TensorMap]:
        """
        :param systems: structures
        :param outputs: whether baselines are asked for per atom or per system
        :param selected_atoms: atoms to return or to sum, all if None
        :return: what is asked for
        """
        positions = systems[0].positions
        self.weights_to(positions.device, positions.dtype)
        short = len(systems) == 1 and selected_atoms is None
        for name, output in outputs.items():
            short = short and output.sample_kind == "system" and name in self.scalars
        baselines: dict[str, TensorMap] = {}
        if not short:
            baselines = self.model.forward(systems, outputs, selected_atoms)
            for name, baseline in baselines.items():
                target = self.dataset_info.targets[name]
                if target.is_atomic_basis and not self.training:
                    baselines[name] = sparsify_atomic_basis_target(systems, baseline, target.layout)
            return baselines
        for name in outputs:
            weights = self.model.weights[name]
            block = weights.block()
            values = block.values.index_select(0, self.model.type_to_index[systems[0].types])
            samples = Labels(["system"], self.first_system, assume_unique=True)
            values = values.sum(dim=0, keepdim=True)
            block = TensorBlock(values, samples, block.components, block.properties)
            baselines[name] = TensorMap(weights.keys, [block])
        return baselines


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


def without_gradients(results: dict[str, TensorMap]) -> dict[str, TensorMap]:
    """Back to the mode of the caller, after derivatives that were needed along the way.

    :param results: all outputs
    :return: the same without derivatives
    """
    torch.set_grad_enabled(False)
    new: dict[str, TensorMap] = {}
    for name, result in results.items():
        new[name] = mts.detach(result)
    return new


def baselines_wanted(
    outputs: dict[str, ModelOutput],
    offered: dict[str, ModelOutput],
    selected_atoms: Optional[Labels],  # noqa: UP045
) -> dict[str, ModelOutput]:
    """
    Per atom where atoms are selected: sums over these are not left to metatrain, which numbers
    structures anew where one has no selected atom.

    :param outputs: what is asked for
    :param offered: what has a baseline
    :param selected_atoms: atoms to return or to sum, all if None
    :return: baselines to ask for
    """
    wanted: dict[str, ModelOutput] = {}
    for name, output in outputs.items():
        if name in offered:
            kind = output.sample_kind if selected_atoms is None else "atom"
            wanted[name] = ModelOutput(unit=output.unit, sample_kind=kind)
    return wanted


def add_baselines(
    results: dict[str, TensorMap],
    baselines: dict[str, TensorMap],
    outputs: dict[str, ModelOutput],
    selected_atoms: Optional[Labels],  # noqa: UP045
) -> dict[str, TensorMap]:
    """
    :param results: all outputs
    :param baselines: as :func:`baselines_wanted` asks for them
    :param outputs: what is asked for
    :param selected_atoms: atoms to return or to sum, all if None
    :return: all outputs, with their baselines
    """
    if selected_atoms is not None:
        baselines = select(baselines, outputs, selected_atoms)
    for name, baseline in baselines.items():
        results[name] = add_baseline(results[name], baseline)
    return results


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


def with_response(
    results: dict[str, TensorMap], energies: dict[str, float], charges: Charges, graph: Graph
) -> dict[str, TensorMap]:
    """Where charges were solved iteratively in TorchScript: the derivatives of energies become
    exact, everything else that depends on charges loses its derivatives.

    :param results: all outputs
    :param energies: units of those that are energies
    :param charges: of the atoms
    :param graph: of the batch
    :return: all outputs
    """
    equilibrium, first = charges.equilibrium, graph.boundaries.first
    if equilibrium is None or len(equilibrium.structures) == 0:
        return results
    new: dict[str, TensorMap] = {}
    for name, result in results.items():
        new[name] = mts.detach(result)
        if name in energies:
            energy = result.block().values.sum()
            new[name] = add_response(result, response(energy, equilibrium, first))
    return new


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


def select(
    per_atom: dict[str, TensorMap], outputs: dict[str, ModelOutput], selected_atoms: Labels
) -> dict[str, TensorMap]:
    """
    :param per_atom: values of all atoms
    :param outputs: whether they are asked for per atom or per system
    :param selected_atoms: atoms to return or to sum
    :return: what is asked for
    """
    selected: dict[str, TensorMap] = {}
    for name, result in per_atom.items():
        result = mts.slice(result, "samples", selected_atoms)
        if outputs[name].sample_kind == "system":
            # no rows for structures without a selected atom
            result = mts.sum_over_samples(result, ["atom"])
        selected[name] = result
    return selected
