"""LOREM as a metatrain model."""

import copy
import logging
from typing import Any, Dict, List, Literal, Optional

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
    unit_conversion_factor,
)
from metatrain.composition import CompositionModel
from metatrain.scaler import Scaler
from metatrain.utils.abc import ModelInterface
from metatrain.utils.additive import ZBL
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.data.atom_pair_helpers import check_no_atom_pair_targets
from metatrain.utils.data.atomic_basis_helpers import (
    densify_atomic_basis_dataset_info,
    sparsify_atomic_basis_target,
)
from metatrain.utils.dtype import dtype_to_str
from metatrain.utils.hypers import get_hypers_diff, raise_hypers_mismatch
from metatrain.utils.metadata import merge_metadata

from . import checkpoints
from .documentation import ModelHypers, check_hypers
from .electrostatics.charge_equilibration import ChargeEquilibration, Equilibrium
from .electrostatics.multipoles import LongRange
from .extension import stage_names, with_blocks
from .heads.charges import (
    ATOMIC_CHARGE,
    DIPOLE_MOMENT,
    ChargeDipole,
    charge_outputs,
    check_charge_targets,
    is_atomic_charge,
    is_energy,
)
from .heads.target import TargetHead
from .nn.mlp import MLP
from .nn.neighbors import block_and_portion, count_pairs, occurrences, sort_pairs
from .nn.short_range import ShortRange
from .nn.tensor_dense import TensorProduct
from .outputs import add_baseline, charge_maps, collect, feature_map, scalar_map
from .system_inputs import check_batch, concatenate_systems, total_charges

LARGEST_ATOMIC_TYPE = 255


class Lorem(ModelInterface[ModelHypers]):
    """LOREM (arXiv 2507.19382): local equivariant features, equivariant charges, their Coulomb
    potentials back into the features, residual energies.

    :param hypers: see :class:`ModelHypers`
    :param dataset_info: species, targets and units
    :raises ValueError: for hypers out of range and targets that the model can't have
    """

    __checkpoint_version__ = 2
    __supported_devices__ = ["cuda", "cpu"]
    __supported_dtypes__ = [torch.float32, torch.float64]
    __default_metadata__ = ModelMetadata(
        references={
            "architecture": ["LOREM: https://arxiv.org/abs/2507.19382"],
            "implementation": ["P3M: https://doi.org/10.1063/1.477414"],
        }
    )

    __jit_unused_properties__ = ["unscaled_targets"]
    # for TorchScript, which can't infer the types of empty containers
    last_layer_parameter_names: Dict[str, List[str]]
    energy_units: Dict[str, float]
    key_labels: Dict[str, Labels]
    component_labels: Dict[str, List[List[Labels]]]
    property_labels: Dict[str, List[Labels]]

    def __init__(self, hypers: ModelHypers, dataset_info: DatasetInfo) -> None:
        super().__init__(hypers, dataset_info, self.__default_metadata__)
        check_no_atom_pair_targets(dataset_info.targets, "lorem")
        check_hypers(hypers)
        if "spin_multiplicity" in dataset_info.extra_data:
            raise ValueError(
                "extra_data: spin_multiplicity is not supported; remove it from the options"
            )
        equilibrate = bool(hypers["charge_equilibration"]["enable"])
        if equilibrate:
            check_charge_targets(dataset_info)
        if dataset_info.length_unit.lower() not in ("angstrom", "a", ""):
            logging.warning(
                f"lengths are in {dataset_info.length_unit}: so is architecture.model.cutoff, "
                f"{hypers['cutoff']}"
            )
        self.atomic_types = sorted(dataset_info.atomic_types)
        if self.atomic_types[0] < 0 or self.atomic_types[-1] > LARGEST_ATOMIC_TYPE:
            raise ValueError(
                f"atomic types must be between 0 and {LARGEST_ATOMIC_TYPE}: {self.atomic_types}"
            )
        types_to_species = torch.full((LARGEST_ATOMIC_TYPE + 2,), -1)
        types_to_species[self.atomic_types] = torch.arange(len(self.atomic_types))
        self.register_buffer("types_to_species", types_to_species, persistent=False)
        self.requested_nl = NeighborListOptions(
            cutoff=float(hypers["cutoff"]), full_list=True, strict=True
        )

        d, s, max_degree = (
            int(hypers["num_features"]),
            int(hypers["num_spherical_features"]),
            int(hypers["max_degree"]),
        )
        self.short_range = ShortRange(
            atomic_types=self.atomic_types,
            cutoff=float(hypers["cutoff"]),
            cutoff_function=hypers["cutoff_function"],
            radial_basis=hypers["radial_basis"],
            num_radial=int(hypers["num_radial"]),
            num_features=d,
            num_species_features=int(hypers["num_species_features"]),
            num_spherical_features=s,
            max_degree=max_degree,
            num_message_passing=int(hypers["num_message_passing"]),
            equivariant_message_passing=hypers["equivariant_message_passing"],
            initialize_node_features=hypers["initialize_node_features"],
        )
        self.charge_equilibration: torch.nn.Module | None = None
        # without the block the total charge acts on the features that everything starts from
        self.charge_embedding: torch.nn.Module | None = None
        self.conditional: bool = "charge" in dataset_info.extra_data
        self.total_charge: float = 0.0
        self.register_buffer("total_charge_range", torch.tensor([torch.inf, -torch.inf]))
        if equilibrate:
            unit = dataset_info.length_unit or "A"
            self.charge_equilibration = ChargeEquilibration(
                self.atomic_types,
                d,
                int(hypers["num_species_features"]),
                float(hypers["cutoff"]),
                dataset_info.length_unit,
                hypers["charge_equilibration"]["energy"],
                hypers["charge_equilibration"]["learn_widths"],
                hypers["charge_equilibration"]["solver"],
                float(hypers["charge_equilibration"]["accuracy"]),
                hypers["charge_equilibration"]["tolerance"],
                int(hypers["charge_equilibration"]["max_iterations"]),
            )
            logging.info(self.charge_equilibration.describe(unit))
            if not self.conditional:
                logging.info(
                    "Charge equilibration without `extra_data: charge`: all structures are taken "
                    "as neutral"
                )
        elif self.conditional:
            self.charge_embedding = MLP([1, d, d])
        self.long_range: torch.nn.Module | None = None
        if hypers["long_range"]["enable"]:
            self.long_range = LongRange(
                d,
                s,
                max_degree,
                int(hypers["long_range"]["max_degree"]),
                float(hypers["cutoff"]),
                float(hypers["long_range"]["accuracy"]),
            )
            logging.info(self.long_range.coulomb.describe(dataset_info.length_unit or "A"))
        self.num_stages = len(stage_names(hypers))
        self.last_layer_feature_size = self.num_stages * d  # for LLPR

        self.outputs = {
            "feature": ModelOutput(sample_kind="atom", description="scalar features of atoms")
        }
        self.outputs.update(charge_outputs(dataset_info, equilibrate))
        self.energy_units = {}
        self.charge_dipole: torch.nn.Module | None = None
        self.heads = torch.nn.ModuleDict()
        self.last_layer_parameter_names = {}  # for LLPR
        self.key_labels = {}
        self.component_labels = {}
        self.property_labels = {}
        for name, target in densify_atomic_basis_dataset_info(dataset_info).targets.items():
            self._add_target(name, target)

        composition = CompositionModel.from_valid_targets(dataset_info, self.atomic_types)
        additive_models: list[torch.nn.Module] = [composition]
        if hypers["zbl"]:
            targets = {
                name: target
                for name, target in dataset_info.targets.items()
                if ZBL.is_valid_target(name, target)
            }
            info = DatasetInfo(dataset_info.length_unit, self.atomic_types, targets)
            additive_models.append(ZBL({}, info))
        self.additive_models = torch.nn.ModuleList(additive_models)
        self.scaler = Scaler(get_default_hypers("scaler")["model"], dataset_info)

    def _add_target(self, name: str, target: TargetInfo) -> None:
        """Register a target, atomic bases densified."""
        of_charges = self.charge_equilibration is not None and name == ATOMIC_CHARGE
        if self.charge_equilibration is not None:
            if is_energy(name, target):
                self.energy_units[name] = unit_conversion_factor("eV", target.unit or "eV")
            if name == DIPOLE_MOMENT:
                length_unit = self.dataset_info.length_unit
                self.charge_dipole = ChargeDipole(target, self.atomic_types, length_unit)
                of_charges = not self.hypers["charge_equilibration"]["atomic_dipoles"]
        if not of_charges:
            self.heads[name] = TargetHead(
                name,
                target,
                int(self.hypers["num_features"]),
                self.num_stages,
                int(self.hypers["max_degree"]),
                int(self.hypers["num_spherical_features"]),
                self.long_range is not None,
            )
            last_layer = f"heads.{name}.invariants.last_layer.weight"
            self.last_layer_parameter_names[name] = [last_layer]
            self.outputs[_last_layer_features_name(name)] = ModelOutput(
                sample_kind="atom", description=f"last-layer features of {name}"
            )
        self.key_labels[name] = target.layout.keys
        self.component_labels[name] = [block.components for block in target.layout.blocks()]
        self.property_labels[name] = [block.properties for block in target.layout.blocks()]
        self.outputs[name] = ModelOutput(
            unit=target.unit, sample_kind="atom", description=target.description
        )

    def supported_outputs(self) -> dict[str, ModelOutput]:
        return self.outputs

    def requested_inputs(self) -> dict[str, ModelOutput]:
        if self.conditional:
            return {"charge": ModelOutput(unit="e", sample_kind="system")}
        return {}

    @property
    def unscaled_targets(self) -> list[str]:
        """Targets without baseline and scale: charges, and what is made of them."""
        targets = self.dataset_info.targets
        names: list[str] = []
        if ATOMIC_CHARGE in targets and is_atomic_charge(targets[ATOMIC_CHARGE]):
            names.append(ATOMIC_CHARGE)
        if DIPOLE_MOMENT in targets and self.charge_equilibration is not None:
            names.append(DIPOLE_MOMENT)
        return names

    def requested_neighbor_lists(self) -> list[NeighborListOptions]:
        return [self.requested_nl]

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
        :raises ValueError: for structures that can't be evaluated (see
            :mod:`metatrain_lorem.system_inputs` and :mod:`metatrain_lorem.electrostatics`)
        """
        if len(outputs) == 0:
            return {}
        batch = concatenate_systems(systems, self.requested_nl)
        species = self.types_to_species[batch.types.clamp(-1, self.types_to_species.shape[0] - 1)]
        total_charge = total_charges(systems, self.conditional, self.total_charge)
        num_species = len(self.atomic_types)
        known = species.clamp(min=0)
        block_size, portion_size = block_and_portion(species.device)
        counts = check_batch(
            batch,
            species,
            total_charge,
            self.total_charge_range,
            count_pairs(
                known, batch.centers, batch.neighbors, num_species, block_size, portion_size
            ),
        )
        pairs = sort_pairs(
            species,
            batch.centers,
            batch.neighbors,
            num_species,
            counts,
            block_size,
            portion_size,
        )
        vectors = batch.vectors.index_select(0, pairs.order)
        distances = batch.distances.index_select(0, pairs.order)

        conditioning: torch.Tensor | None = None
        if self.charge_embedding is not None:
            conditioning = self.charge_embedding(total_charge.unsqueeze(1))[batch.system_index]
        stages, spherical = self.short_range(species, vectors, distances, pairs, conditioning)
        equilibrium: Equilibrium | None = None
        if self.charge_equilibration is not None:
            x, equilibrium = self.charge_equilibration(
                stages[-1],
                species,
                self.short_range.embedding(species),
                total_charge,
                batch.positions,
                batch.cells,
                batch.pbc,
                batch.system_index,
                pairs.centers,
                pairs.neighbors,
                distances,
            )
            stages.append(x)
        field: torch.Tensor | None = None
        if self.long_range is not None:
            x, field = self.long_range(
                stages[-1],
                spherical,
                batch.positions,
                batch.cells,
                batch.pbc,
                batch.system_index,
                pairs.centers,
                pairs.neighbors,
                distances,
            )
            stages.append(x)

        samples = Labels(
            ["system", "atom"],
            torch.stack([batch.system_index, batch.atom_index], dim=1),
            assume_unique=True,
        )
        results: dict[str, TensorMap] = {}
        per_atom: dict[str, TensorMap] = {}
        if "feature" in outputs:
            per_atom["feature"] = feature_map(stages[-1], samples)
        self._move_labels(samples.device)
        values: dict[str, list[torch.Tensor]] = {}
        for name, head in self.heads.items():
            features_name = _last_layer_features_name(name)
            if name in outputs or features_name in outputs:
                features = head.last_layer_features(stages)
                if features_name in outputs:
                    per_atom[features_name] = feature_map(features, samples)
                if name in outputs:
                    values[name] = head(features, spherical, field)
            if name == "mtt::atomic_charge" and "charge" in outputs:
                charges = head(head.last_layer_features(stages), spherical, field)[0]
                results["charge"] = self._charges_of_head(
                    charges, samples, systems, outputs["charge"], selected_atoms
                )
        if equilibrium is not None:
            if self.charge_dipole is not None and "mtt::dipole_moment" in outputs:
                dipoles = self.charge_dipole(
                    equilibrium.charges, batch.positions, species, batch.pbc, batch.system_index
                )
                if "mtt::dipole_moment" in values:
                    dipoles = dipoles + values["mtt::dipole_moment"][0]
                values["mtt::dipole_moment"] = [dipoles]
            if "mtt::atomic_charge" in outputs:
                values["mtt::atomic_charge"] = [equilibrium.charges.unsqueeze(1)]
            per_atom.update(charge_maps(equilibrium, outputs, samples))
        for name, of_target in values.items():
            blocks: list[TensorBlock] = []
            for i, components in enumerate(self.component_labels[name]):
                properties = self.property_labels[name][i]
                blocks.append(TensorBlock(of_target[i], samples, components, properties))
            per_atom[name] = TensorMap(self.key_labels[name], blocks)

        # the energy of the charges is in eV, whatever the scales
        offsets: dict[str, TensorMap] = {}
        if equilibrium is not None:
            for name, unit in self.energy_units.items():
                if name in outputs:
                    block = per_atom[name].block()
                    energies = (unit * equilibrium.energies).unsqueeze(1).expand_as(block.values)
                    block = TensorBlock(energies, samples, block.components, block.properties)
                    offsets[name] = TensorMap(self.key_labels[name], [block])
        results.update(collect(per_atom, outputs, selected_atoms))
        offsets = collect(offsets, outputs, selected_atoms)

        # during training the trainer removes baselines and scales from the targets instead
        if self.training:
            offsets = self.scaler.apply_scales(
                systems, offsets, remove=True, selected_atoms=selected_atoms
            )
        else:
            results = self._add_baselines_and_scales(systems, outputs, results, selected_atoms)
        for name, offset in offsets.items():
            results[name] = mts.add(results[name], offset)

        if torch.jit.is_scripting() and equilibrium is not None:
            if len(equilibrium.structures) > 0:
                results = self._with_response(results, equilibrium)
        return results

    def _with_response(
        self, results: dict[str, TensorMap], equilibrium: Equilibrium
    ) -> dict[str, TensorMap]:
        """Where charges were solved iteratively in TorchScript: the derivatives of energies become
        exact, everything else that depends on charges loses its derivatives.

        Energies of atoms have the derivatives of their sum over the structure, each an equal part
        of the response; any other combination of them gets derivatives too large to go unnoticed.
        """
        new: dict[str, TensorMap] = {}
        for name, result in results.items():
            new[name] = mts.detach(result)
            if name in self.energy_units and self.charge_equilibration is not None:
                block = result.block()
                response = self.charge_equilibration.response(block.values.sum(), equilibrium)
                system = block.samples.column("system").to(torch.long)
                share = (response / occurrences(system, response.shape[0]).clamp(min=1))[system]
                if "atom" in block.samples.names:
                    # zero, and so are its derivatives if those of neighbouring rows are equal
                    same = (system[1:] == system[:-1]).to(response.dtype)
                    numbers = torch.arange(1, len(system), device=system.device)
                    alarm = 1e30 * numbers * same * response[system[1:]]
                    after = torch.nn.functional.pad(alarm, [0, 1])
                    before = torch.nn.functional.pad(alarm, [1, 0])
                    share = share + (after - before)
                values = block.values + share.unsqueeze(1) / block.values.size(1)
                block = TensorBlock(values, block.samples, block.components, block.properties)
                new[name] = TensorMap(result.keys, [block])
        return new

    def _charges_of_head(
        self,
        charges: torch.Tensor,
        samples: Labels,
        systems: List[System],
        output: ModelOutput,
        selected_atoms: Optional[Labels],
    ) -> TensorMap:
        """The output ``charge`` of a model without charge equilibration: what it predicts for the
        target of reference charges, scales of older versions included."""
        properties = self.property_labels["mtt::atomic_charge"][0]
        block = TensorBlock(charges, samples, [], properties)
        maps = {"mtt::atomic_charge": TensorMap(self.key_labels["mtt::atomic_charge"], [block])}
        as_target = {"mtt::atomic_charge": output}
        maps = collect(maps, as_target, selected_atoms)
        if not self.training:
            maps = self._add_baselines_and_scales(systems, as_target, maps, selected_atoms)
        block = maps["mtt::atomic_charge"].block()
        return scalar_map(block.values, "charge", block.samples)

    def _add_baselines_and_scales(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        results: dict[str, TensorMap],
        selected_atoms: Optional[Labels],
    ) -> dict[str, TensorMap]:
        scaled: dict[str, TensorMap] = {}
        for name, result in results.items():
            if name in self.key_labels:
                scaled[name] = result
        scaled = self.scaler.apply_scales(
            systems,
            scaled,
            selected_atoms=selected_atoms,
            use_per_target_scales=True,
            use_per_property_scales=True,
        )
        results.update(scaled)
        targets = self.dataset_info.targets
        for name, result in results.items():
            if name in targets and targets[name].is_atomic_basis:
                results[name] = sparsify_atomic_basis_target(systems, result, targets[name].layout)
        for additive_model in self.additive_models:
            requested: dict[str, ModelOutput] = {}
            for name, output in outputs.items():
                if name in additive_model.outputs:
                    requested[name] = output
            baselines = additive_model(systems, requested, selected_atoms)
            for name, baseline in baselines.items():
                results[name] = add_baseline(results[name], baseline)
        return results

    def _move_labels(self, device: torch.device) -> None:
        for name, keys in self.key_labels.items():
            if keys.device != device:
                self.key_labels[name] = keys.to(device)
                self.property_labels[name] = [p.to(device) for p in self.property_labels[name]]
                components: list[list[Labels]] = []
                for of_block in self.component_labels[name]:
                    components.append([c.to(device) for c in of_block])
                self.component_labels[name] = components

    def restart(
        self, dataset_info: DatasetInfo, model_hypers: dict[str, Any] | None = None
    ) -> "Lorem":
        """Prepare the model for more training, perhaps with new targets or a long-range block.

        :param dataset_info: of the new data
        :param model_hypers: of the new run. They must equal the model's own, but for
            ``long_range``, which may be switched on: the new block then starts without any
            effect on the outputs
        :return: the model, or its extended copy
        :raises ValueError: for other hypers, and for species that the model does not know
        """
        if model_hypers is not None:
            defaults = get_default_hypers("lorem")["model"]
            self._take_solver(model_hypers.get("charge_equilibration", {}))
            changes = get_hypers_diff(self.hypers, model_hypers, default_hypers=defaults)
            new_blocks = {}
            for block in ("charge_equilibration", "long_range"):
                old, new = changes.get(block, ({"enable": True}, {}))
                if new.get("enable", False) and not old["enable"]:
                    new_blocks[block] = new
            new_input = "charge" in dataset_info.extra_data and not self.conditional
            if new_blocks or new_input:
                extra_data = {**self.dataset_info.extra_data, **dataset_info.extra_data}
                extended = with_blocks(self, new_blocks, extra_data)
                if not new_input:
                    extended.conditional = self.conditional
                    extended.total_charge = self.total_charge
                return extended.restart(dataset_info, model_hypers)
            raise_hypers_mismatch(changes)

        merged = self.dataset_info.union(dataset_info)
        unknown = sorted(set(merged.atomic_types) - set(self.atomic_types))
        if len(unknown) > 0:
            raise ValueError(
                f"new atomic types {unknown} in the dataset: the model knows {self.atomic_types} "
                "and can't learn others; train a new one"
            )
        new_targets = [name for name in merged.targets if name not in self.dataset_info.targets]
        for name in new_targets:
            target = densify_atomic_basis_dataset_info(dataset_info).targets[name]
            self._add_target(name, target)
        # the optimiser's state does not fit new parameters
        self.has_new_targets = len(new_targets) > 0 or getattr(self, "has_new_block", False)

        self.dataset_info = merged
        targets = {
            name: target
            for name, target in dataset_info.targets.items()
            if CompositionModel.is_valid_target(name, target)
        }
        self.additive_models[0] = self.additive_models[0].restart(
            DatasetInfo(dataset_info.length_unit, self.atomic_types, targets)
        )
        self.scaler = self.scaler.restart(dataset_info)
        return self

    def _take_solver(self, hypers: dict[str, Any]) -> None:
        """Take over how charges are solved for, which no weight depends on."""
        for key in ("solver", "tolerance", "max_iterations"):
            old = self.hypers["charge_equilibration"][key]
            if self.charge_equilibration is not None and hypers.get(key, old) != old:
                logging.info(f"charge_equilibration.{key} was {old}, now {hypers[key]}")
                self.hypers["charge_equilibration"][key] = hypers[key]
                check_hypers(self.hypers)
                value = 0.0 if key == "tolerance" and hypers[key] is None else hypers[key]
                setattr(self.charge_equilibration, key, value)

    @classmethod
    def load_checkpoint(
        cls,
        checkpoint: dict[str, Any],
        context: Literal["restart", "finetune", "export"],
    ) -> "Lorem":
        if context == "restart":
            logging.info(f"Using latest model from epoch {checkpoint['epoch']}")
            state = checkpoint["model_state_dict"]
        elif context in ("finetune", "export"):
            logging.info(f"Using best model from epoch {checkpoint['best_epoch']}")
            state = checkpoint["best_model_state_dict"]
            if state is None:
                state = checkpoint["model_state_dict"]
        else:
            raise ValueError(f"unknown context {context!r} for loading a checkpoint")

        data = checkpoint["model_data"]
        model = cls(data["model_hypers"], data["dataset_info"])
        if data.get("total_charge") is not None:
            model.conditional = False
            model.total_charge = float(data["total_charge"])
        model.to(state["short_range.embedding.weight"].dtype).load_state_dict(state)
        model.additive_models[0].sync_tensor_maps()
        model.scaler.sync_tensor_maps()
        model.metadata = merge_metadata(model.metadata, checkpoint.get("metadata"))
        return model

    def get_checkpoint(self) -> dict[str, Any]:
        return {
            "architecture_name": "lorem",
            "model_ckpt_version": self.__checkpoint_version__,
            "metadata": self.metadata,
            "model_data": {
                "model_hypers": self.hypers,
                "dataset_info": self.dataset_info,
                # built in, where the model would ask for it otherwise
                "total_charge": None if self.conditional else self.total_charge,
            },
            "epoch": None,
            "best_epoch": None,
            "model_state_dict": self.state_dict(),
            "best_model_state_dict": self.state_dict(),
        }

    @classmethod
    def upgrade_checkpoint(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return checkpoints.upgrade(checkpoint, "model", cls.__checkpoint_version__)

    def interaction_range(self) -> float:
        """Distance in Å beyond which atoms can't feel each other: infinite with the long-range
        block or charge equilibration, else the receptive field."""
        if self.long_range is not None or self.charge_equilibration is not None:
            return torch.inf
        ranges = [float(self.hypers["cutoff"]) * (1 + int(self.hypers["num_message_passing"]))]
        for additive_model in self.additive_models:
            if hasattr(additive_model, "cutoff_radius"):
                ranges.append(float(additive_model.cutoff_radius))
        return max(ranges)

    def export(self, metadata: Optional[ModelMetadata] = None) -> AtomisticModel:
        dtype = next(self.parameters()).dtype
        if dtype not in self.__supported_dtypes__:
            raise ValueError(f"lorem can't be exported in {dtype}")
        # after training the additive models may still be in float64
        self.to(dtype)
        self.additive_models[0].weights_to(torch.device("cpu"), torch.float64)
        capabilities = ModelCapabilities(
            outputs=self.outputs,
            atomic_types=self.atomic_types,
            interaction_range=self.interaction_range(),
            length_unit=self.dataset_info.length_unit,
            supported_devices=self.__supported_devices__,
            dtype=dtype_to_str(dtype),
        )
        # what depends on weights only is evaluated here, in a copy that is never trained
        model = copy.deepcopy(self.eval())
        for module in model.modules():
            if isinstance(module, TensorProduct):
                module.fold()
        return AtomisticModel(model, merge_metadata(self.metadata, metadata), capabilities)


def _last_layer_features_name(target: str) -> str:
    return "mtt::aux::" + target.replace("mtt::", "") + "_last_layer_features"
