"""LOREM as a metatrain model."""

import logging
from typing import Any, Dict, List, Literal, Optional

import torch
from metatensor.torch import Labels, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
    unit_conversion_factor,
)
from metatrain.scaler import Scaler
from metatrain.utils.abc import ModelInterface
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.atom_pair_helpers import check_no_atom_pair_targets
from metatrain.utils.data.atomic_basis_helpers import sparsify_atomic_basis_target
from torch.profiler import record_function

from . import backbones, checkpoints, exporting, restart
from .blocks.charge_equilibration import ChargeEquilibration, Charges
from .blocks.long_range import LongRange
from .blocks.partial_charges import PartialCharges
from .blocks.short_range import ShortRange
from .documentation import ModelHypers, check_hypers, equilibrates_last, has_partial_charges
from .electrostatics.boundaries import Vacuum
from .extension import stage_names
from .graph import Graph, GraphBuilder
from .heads.charges import unscaled_targets
from .heads.readout import Features, Readout
from .nn.mlp import MLP
from .outputs import (
    add_baselines,
    baseline_models,
    baselines_wanted,
    relabeled,
    with_response,
    without_gradients,
)
from .stages import Stages
from .systems import total_charges, tracked, warn_of_built_in_charge


class Lorem(Stages, ModelInterface[ModelHypers]):
    """LOREM (arXiv 2507.19382): local equivariant features, equivariant charges, their Coulomb
    potentials back into the features, residual energies.

    An evaluation goes through these stages, whose names a profile shows:

    1. ``lorem::graph`` (:mod:`.graph`): structures to one graph of atoms and sorted pairs, checked;
    2. ``lorem::short_range`` (:mod:`.blocks.short_range`): pairs to scalar and spherical features
       of atoms, within the cutoff; with message passing beyond it;
    3. ``lorem::backbone`` (:mod:`.blocks.backbone`), where there is one: features of another
       architecture of metatrain into those of LOREM;
    4. ``lorem::charge_equilibration`` (:mod:`.blocks.charge_equilibration`), where enabled: scalar
       features to charges of a given sum, and back; with ``after_long_range`` after the next;
    5. ``lorem::long_range`` (:mod:`.blocks.long_range`), where enabled: features to equivariant
       charges, their potentials over all distances, and back; or to :mod:`.blocks.partial_charges`;
    6. ``lorem::readout`` (:mod:`.heads.readout`): features of all stages to the values of each
       output, per atom;
    7. ``lorem::outputs`` (:mod:`.outputs`): sums over atoms, baselines and scales, TensorMaps.

    :param hypers: see :class:`ModelHypers`
    :param dataset_info: species, targets and units
    :param backbone: the model inside it, where it is not new
    :raises ValueError: for hypers out of range and targets that the model can't have
    """

    __checkpoint_version__ = 7
    __supported_devices__ = ["cuda", "cpu"]
    __supported_dtypes__ = [torch.float32, torch.float64]
    exports_double = True  # structures and outputs, whatever the precision of the parameters
    __default_metadata__ = ModelMetadata(
        references={
            "architecture": ["LOREM: https://arxiv.org/abs/2507.19382"],
            "implementation": [
                "torch-pme: https://doi.org/10.1063/5.0251713",
                "P3M: https://doi.org/10.1063/1.477414",
            ],
        }
    )

    __jit_unused_properties__ = ["unscaled_targets", "last_layer_parameter_names"]

    def __init__(
        self,
        hypers: ModelHypers,
        dataset_info: DatasetInfo,
        backbone: Optional[ModelInterface] = None,
    ) -> None:
        super().__init__(hypers, dataset_info, self.__default_metadata__)
        check_no_atom_pair_targets(dataset_info.targets, "lorem")
        check_hypers(hypers)
        unit, cutoff = dataset_info.length_unit, float(hypers["cutoff"])
        if unit.lower() not in ("angstrom", "a", ""):
            logging.warning(
                f"lengths are in {unit}: so is architecture.model.cutoff, {hypers['cutoff']}"
            )
        self.atomic_types = sorted(dataset_info.atomic_types)
        self.conditional: bool = "charge" in dataset_info.extra_data
        self.total_charge: float = 0.0
        # what `set-charge` built in, as text: TorchScript writes 1.0 as "1."
        self.built_in_charge: str = ""
        self.register_buffer("total_charge_range", torch.tensor([torch.inf, -torch.inf]))
        # for the trainer: loaded for fine-tuning; other parameters and new species since a restart
        self.finetunes, self.has_new_parameters = False, False
        self.has_new_charges = False  # charges that know nothing yet, of a model that does
        self.new_types: list[int] = []
        self.requested_nl = NeighborListOptions(cutoff=cutoff, full_list=True, strict=True)

        self.short_range = ShortRange(hypers, len(self.atomic_types))
        self.backbone = backbones.build_backbone(hypers, dataset_info, backbone)
        spin = "spin_multiplicity" in self.requested_inputs()
        if "spin_multiplicity" in dataset_info.extra_data and not spin:
            raise ValueError("extra_data: spin_multiplicity is not supported; remove it")
        self.charge_equilibration: torch.nn.Module | None = None
        self.equilibrates_last: bool = equilibrates_last(hypers)
        # without the block the total charge acts on the features that everything starts from
        self.charge_embedding: torch.nn.Module | None = None
        self.long_range: torch.nn.Module | None = None
        angstrom, vacuum = unit_conversion_factor("angstrom", unit or "angstrom"), cutoff
        if hypers["charge_equilibration"]["enable"]:
            self.charge_equilibration = ChargeEquilibration(hypers, self.atomic_types, unit)
            vacuum = max(vacuum, self.charge_equilibration.least_vacuum)
            logging.info(self.charge_equilibration.describe(unit or "Å"))
            if not self.conditional:
                logging.info(
                    "Charge equilibration without `extra_data: charge`: all structures are taken "
                    "as neutral"
                )
        elif self.conditional:
            d = int(hypers["num_features"])
            self.charge_embedding = MLP([1, d, d])
        self.partial_charges: torch.nn.Module | None = None
        if has_partial_charges(hypers):
            self.partial_charges = PartialCharges(hypers, angstrom)
        elif hypers["long_range"]["enable"]:
            self.long_range = LongRange(hypers, angstrom)
        for block in (self.partial_charges, self.long_range):
            if block is not None:
                logging.info(block.describe(unit or "Å"))
        electrostatics = hypers["long_range"]["enable"] or hypers["charge_equilibration"]["enable"]
        self.graph = GraphBuilder(
            self.atomic_types,
            self.requested_nl,
            Vacuum(least=vacuum, angstrom=angstrom) if electrostatics else None,
            spin,
        )
        num_stages = len(stage_names(hypers))
        self.last_layer_feature_size = num_stages * int(hypers["num_features"])  # for LLPR
        self.readout = Readout(hypers, dataset_info, num_stages)
        self.outputs = self.readout.outputs
        self.additive_models = torch.nn.ModuleList(baseline_models(hypers, dataset_info))
        self.scaler = Scaler(get_default_hypers("scaler")["model"], dataset_info)
        if backbone is None and self.backbone is not None and self.backbone.energies:
            backbones.take_over_energies(self)

    def supported_outputs(self) -> dict[str, ModelOutput]:
        return self.outputs

    def requested_inputs(self) -> dict[str, ModelOutput]:
        inputs = {"charge": ModelOutput(unit="e", sample_kind="system")} if self.conditional else {}
        # the units must be those that the backbone says, which metatomic asks too
        return inputs if self.backbone is None else {**inputs, **self.backbone.inputs()}

    def requested_neighbor_lists(self) -> list[NeighborListOptions]:
        lists = [self.requested_nl]
        return lists if self.backbone is None else lists + self.backbone.neighbor_lists()

    @property
    def last_layer_parameter_names(self) -> dict[str, list[str]]:
        """For LLPR: the parameters that map last-layer features to each target."""
        weight = "readout.heads.{}.invariants.last_layer.weight"
        return {name: [weight.format(name)] for name in self.readout.heads}

    @property
    def unscaled_targets(self) -> list[str]:
        """Targets without baseline and scale: charges, and what is made of them."""
        return unscaled_targets(self.dataset_info, self.hypers)

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Evaluate the model.

        :param systems: structures with the requested neighbour list
        :param outputs: what to return, per atom or per system
        :param selected_atoms: atoms to return or to sum; all others still act on them
        :return: the outputs
        :raises ValueError: for structures that can't be evaluated (see :mod:`.graph` and
            :mod:`.electrostatics`)
        """
        requested, outputs = outputs, self.readout.resolve(outputs)
        gradients, derives = torch.is_grad_enabled(), self.readout.derives(outputs)
        systems = tracked(systems) if derives else systems
        with record_function("lorem::graph"):
            warn_of_built_in_charge(self.built_in_charge)
            known = self.total_charge_range
            total = total_charges(systems, self.conditional, self.total_charge, known.dtype)
            graph = self.graph(systems, total, known)
        with record_function("lorem::short_range"):
            stages, spherical = self.short_range(graph, self.conditioning(graph))
        energies: Dict[str, torch.Tensor] = {}
        if self.backbone is not None:
            with record_function("lorem::backbone"):
                x, spherical, energies = self.backbone(
                    systems, graph, stages[-1], spherical, list(outputs.keys())
                )
                stages.append(x)
        charges: Optional[Charges] = None
        if not self.equilibrates_last:
            charges = self.equilibrated(stages, graph)
        field: Optional[torch.Tensor] = None
        if self.long_range is not None:
            with record_function("lorem::long_range"):
                x, field = self.long_range(stages[-1], spherical, graph)
                stages.append(x)
            if self.equilibrates_last:
                charges = self.equilibrated(stages, graph)
        elif self.partial_charges is not None:
            with record_function("lorem::long_range"):
                charges = self.partial_charges(stages[-1], graph)
        with record_function("lorem::readout"):
            features = Features(stages=stages, spherical=spherical, field=field)
            values = self.readout(features, charges, graph, list(outputs.keys()))
            if derives:
                q = self.atomic_charges(systems, features, charges, graph)
                values.update(self.readout.respond(q, features, charges, graph, outputs))
        with record_function("lorem::outputs"):
            unscaled = self.readout.energies(energies, charges, outputs)
            predicted = [values, unscaled]
            results = self.collected(systems, outputs, selected_atoms, graph, predicted)
            if torch.jit.is_scripting() and charges is not None:
                results = with_response(results, self.readout.energy_units, charges, graph)
            if derives and not gradients:
                results = without_gradients(results)
        return self.readout.rename(results, requested)

    def equilibrated(self, stages: List[torch.Tensor], graph: Graph) -> Optional[Charges]:
        """Charges, where a block equilibrates them, and features that know them as a stage more."""
        charges: Optional[Charges] = None
        if self.charge_equilibration is not None:
            with record_function("lorem::charge_equilibration"):
                species_features = self.short_range.embedding(graph.species)
                x, charges = self.charge_equilibration(stages[-1], species_features, graph)
                stages.append(x)
        return charges

    def atomic_charges(
        self, systems: List[System], features: Features, charges: Optional[Charges], graph: Graph
    ) -> torch.Tensor:
        """Those of a head, with the scales of older versions, if no block makes them."""
        if charges is not None:
            return charges.charges
        name, dtype = self.readout.atomic_charge, systems[0].positions.dtype
        kind = {name: ModelOutput(sample_kind="atom")}
        values = {name: self.readout.predict(name, features)}
        charge = self.readout.labels(values, graph, kind, None, dtype)
        charge = self.scaled_with_baselines(systems, kind, charge, None)
        return charge[name].block().values.flatten().to(graph.positions.dtype)

    def conditioning(self, graph: Graph) -> Optional[torch.Tensor]:
        """What the total charge adds to the scalar features, without charge equilibration."""
        if self.charge_embedding is None:
            return None
        return self.charge_embedding(graph.total_charge.unsqueeze(1))[graph.system_index]

    def with_baselines(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        results: Dict[str, TensorMap],
        selected_atoms: Optional[Labels],
    ) -> Dict[str, TensorMap]:
        """Multiply by the scales of the targets and add their baselines."""
        if "charge" not in results or self.readout.has_charges:
            return self.scaled_with_baselines(systems, outputs, results, selected_atoms)
        # a prediction for atomic charges, scales of older versions included
        name, charge = self.readout.atomic_charge, results.pop("charge")
        results = self.scaled_with_baselines(systems, outputs, results, selected_atoms)
        kind, scaled = {name: outputs["charge"]}, {name: charge}
        scaled = self.scaled_with_baselines(systems, kind, scaled, selected_atoms)
        results["charge"] = relabeled(scaled[name], "charge")
        return results

    def scaled_with_baselines(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        results: Dict[str, TensorMap],
        selected_atoms: Optional[Labels],
    ) -> Dict[str, TensorMap]:
        targets = self.dataset_info.targets
        scaled: Dict[str, TensorMap] = {}
        for name, result in results.items():
            if name in targets:
                scaled[name] = result
        scaled = self.scaler.apply_scales(
            systems,
            scaled,
            selected_atoms=selected_atoms,
            use_per_target_scales=True,
            use_per_property_scales=True,
        )
        results.update(scaled)
        for name, result in results.items():
            if name in targets and targets[name].is_atomic_basis:
                results[name] = sparsify_atomic_basis_target(systems, result, targets[name].layout)
        for additive_model in self.additive_models:
            wanted = baselines_wanted(outputs, additive_model.outputs, selected_atoms)
            baselines = additive_model(systems, wanted, None)
            results = add_baselines(results, baselines, outputs, selected_atoms)
        return results

    def restart(
        self, dataset_info: DatasetInfo, model_hypers: dict[str, Any] | None = None
    ) -> "Lorem":
        """See :func:`.restart.restart`."""
        return restart.restart(self, dataset_info, model_hypers)

    @classmethod
    def load_checkpoint(
        cls,
        checkpoint: dict[str, Any],
        context: Literal["restart", "finetune", "export"],
    ) -> "Lorem":
        return checkpoints.load(cls, checkpoint, context)

    def get_checkpoint(self) -> dict[str, Any]:
        return checkpoints.save(self)

    @classmethod
    def upgrade_checkpoint(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return checkpoints.upgrade(checkpoint, "model", cls.__checkpoint_version__)

    def interaction_range(self) -> float:
        """See :func:`.exporting.interaction_range`."""
        return exporting.interaction_range(self)

    def export(self, metadata: Optional[ModelMetadata] = None) -> AtomisticModel:
        return exporting.export(self, metadata)
