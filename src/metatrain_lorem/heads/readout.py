"""All heads: from the features of all stages to the values of each output, on plain tensors."""

import logging
from typing import Final, NamedTuple

import torch
from metatensor.torch import TensorMap
from metatomic.torch import ModelOutput, unit_conversion_factor
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.data.atomic_basis_helpers import densify_atomic_basis_dataset_info

from ..blocks.charge_equilibration import Charges
from ..documentation import ModelHypers, has_charges, has_partial_charges
from ..graph import Graph
from ..outputs import OutputLabels
from .born import MatrixHead
from .charges import (
    ATOMIC_CHARGE,
    DIPOLE_MOMENT,
    ChargeDipole,
    charge_outputs,
    check_charge_targets,
    is_energy,
)
from .response import (
    BORN_CHARGE,
    BORN_EXCESS,
    COMPONENTS,
    POLARIZABILITY,
    ChargeResponse,
    born_outputs,
    check_born_target,
    check_polarizability_target,
    obey_sum_rule,
    response_outputs,
)
from .target import TargetHead


class Features(NamedTuple):
    """What the blocks make of the atoms."""

    stages: list[torch.Tensor]  # scalar features after each stage, each [atoms, d]
    spherical: torch.Tensor  # [atoms, (L + 1)**2, s]
    field: torch.Tensor | None  # of the long-range block, the same shape


def last_layer_features_name(target: str) -> str:
    """Name of the output with the last-layer features of a target, as metatrain's LLPR wants it."""
    return "mtt::aux::" + target.replace("mtt::", "") + "_last_layer_features"


class Readout(torch.nn.Module):
    """Heads of the targets, outputs that are charges or made of them, and the labels of all.

    :param hypers: of the model
    :param dataset_info: of the model
    :param num_stages: stages of scalar features
    :raises ValueError: for targets that the model can't have
    """

    # TorchScript can't infer types of empty containers, and knows no strings of other modules
    outputs: dict[str, ModelOutput]
    feature_names: dict[str, str]
    aliases: dict[str, str]
    energy_units: dict[str, float]
    atomic_charge: Final[str]
    dipole_moment: Final[str]
    born_charge: Final[str]
    born_excess: Final[str]
    derived: list[str]

    def __init__(self, hypers: ModelHypers, dataset_info: DatasetInfo, num_stages: int) -> None:
        super().__init__()
        self.hypers = hypers
        self.dataset_info = dataset_info
        self.num_stages = num_stages
        self.num_features = int(hypers["num_features"])
        self.atomic_charge = ATOMIC_CHARGE
        self.dipole_moment = DIPOLE_MOMENT
        self.born_charge = BORN_CHARGE
        self.born_excess = BORN_EXCESS
        self.has_charges: bool = has_charges(hypers)
        self.partial: bool = has_partial_charges(hypers)
        self.equilibrated: bool = hypers["charge_equilibration"]["enable"]
        self.heads = torch.nn.ModuleDict()
        self.charge_dipole: torch.nn.Module | None = None
        self.derived = []  # outputs that are made of charges, by derivatives most of them
        self.response: torch.nn.Module | None = None
        self.born_head: torch.nn.Module | None = None
        self.predicts_born: bool = False
        self.feature_names = {}
        self.aliases = {}  # second names of outputs, in exported models
        self.energy_units = {}
        self.outputs = {}
        self.labels = OutputLabels()
        if self.has_charges:
            check_charge_targets(dataset_info)
        self._declare("feature", "scalar features of atoms")
        self.labels.add_array("feature", "feature", self.num_features)
        charges = charge_outputs(dataset_info, self.has_charges, self.equilibrated)
        for name, output in charges.items():
            self.outputs[name] = output
            self.labels.add_array(name, name.split("::")[-1])
        for name, target in densify_atomic_basis_dataset_info(dataset_info).targets.items():
            self.add_target(name, target)
        self.add_response()
        local = [name for name in self.heads if name not in self.energy_units]
        if self.partial and local:
            logging.warning(
                f"targets {local} know nothing beyond the cutoff: partial charges "
                "(long_range.energy: charges) act on energies and what is made of charges"
            )

    def add_response(self) -> None:
        """Register what charges tell about polarisation, and the excess of Born charges.

        :raises ValueError: for Born charges that are defined twice
        """
        predicted = BORN_CHARGE in self.heads or self.born_head is not None
        self.predicts_born = predicted
        if predicted and "charge" in self.outputs:
            raise ValueError(
                f"target '{BORN_CHARGE}': Born charges would be predicted as well as derived from "
                f"the target '{ATOMIC_CHARGE}'. Leave one of them out, or switch on "
                "architecture.model.charge_equilibration (or long_range.energy: charges), whose "
                "charges both then train"
            )
        if "charge" in self.outputs:
            epsilon = self.hypers["charge_equilibration"]["epsilon_infinity"]
            types = sorted(self.dataset_info.atomic_types)
            self.response = ChargeResponse(types, epsilon if self.equilibrated else 1.0)
        targets = self.dataset_info.targets
        for name, output in self.polarization_outputs().items():
            trained = name == BORN_CHARGE or (name == POLARIZABILITY and self.partial)
            if not predicted and (name not in targets or trained):
                self.derived.append(name)
            if name not in targets:
                self.outputs[name] = output
                self.labels.add_tensor(name, COMPONENTS[name])

    def polarization_outputs(self) -> dict[str, ModelOutput]:
        """:return: outputs of polarisation and its derivatives that charges or a target make"""
        if self.response is not None:
            return response_outputs(self.has_charges, self.dataset_info.length_unit)
        return born_outputs() if self.predicts_born else {}

    def _declare(self, name: str, description: str, unit: str = "") -> None:
        self.outputs[name] = ModelOutput(unit=unit, sample_kind="atom", description=description)

    def add_target(self, name: str, target: TargetInfo) -> None:
        """Register a target.

        :param name: of the target
        :param target: its description, atomic bases densified
        :raises ValueError: for a target that the model can't have
        """
        self._declare(name, target.description, target.unit)
        self.labels.add_target(name, target)
        if name.split("/")[0] == BORN_CHARGE:
            check_born_target(name, target)
        if is_energy(name, target):
            self.energy_units[name] = unit_conversion_factor("eV", target.unit or "eV")
        if name == POLARIZABILITY and self.partial:
            check_polarizability_target(target, self.dataset_info.length_unit)
            return
        if self.has_charges:
            if name in (ATOMIC_CHARGE, BORN_CHARGE):
                return
            if name == DIPOLE_MOMENT:
                types, unit = sorted(self.dataset_info.atomic_types), self.dataset_info.length_unit
                self.charge_dipole = ChargeDipole(target, types, unit)
                options = self.hypers["charge_equilibration"]
                if not (self.equilibrated and options["atomic_dipoles"]):
                    return
        if name == BORN_CHARGE and self.hypers["norms"] == "lorem-jax":
            self.born_head = MatrixHead(self.hypers)
            return
        self.heads[name] = TargetHead(name, target, self.hypers, self.num_stages)
        features = last_layer_features_name(name)
        self.feature_names[name] = features
        self._declare(features, f"last-layer features of {name}")
        self.labels.add_array(features, "feature", self.num_stages * self.num_features)
        if name == ATOMIC_CHARGE and "charge" in self.outputs:
            # what is predicted for the target, until baselines and scales are applied
            self.labels.add_target("charge", target)

    def forward(
        self, features: Features, charges: Charges | None, graph: Graph, outputs: list[str]
    ) -> dict[str, list[torch.Tensor]]:
        """
        :param features: of the atoms
        :param charges: of a block
        :param graph: of the batch
        :param outputs: names of what to evaluate
        :return: per output one array per block, ``[atoms, components ..., properties]``; without
            a block for charges the output ``charge`` is what is predicted for atomic charges
        """
        if graph.field is not None and (charges is None or self.dipole_moment in self.heads):
            raise ValueError(
                "an electric field is given to a model whose charges do not answer to it: it needs "
                "charge_equilibration, without atomic_dipoles, or long_range.energy: charges"
            )
        values: dict[str, list[torch.Tensor]] = {}
        if "feature" in outputs:
            values["feature"] = [features.stages[-1]]
        for name, head in self.heads.items():
            as_charge = name == self.atomic_charge and "charge" in outputs
            if name in outputs or self.feature_names[name] in outputs or as_charge:
                hidden = head.last_layer_features(features.stages)
                if self.feature_names[name] in outputs:
                    values[self.feature_names[name]] = [hidden]
                if (name in outputs and name != self.born_charge) or as_charge:
                    predicted = head(hidden, features.spherical, features.field)
                    if name in outputs:
                        values[name] = predicted
                    if as_charge:
                        values["charge"] = predicted
        if self.predicts_born and (self.born_charge in outputs or self.born_excess in outputs):
            born, excess = obey_sum_rule(self.predicted_born_charges(features), graph)
            if self.born_charge in outputs:
                values[self.born_charge] = [born.unsqueeze(3)]
            if self.born_excess in outputs:
                values[self.born_excess] = [excess.unsqueeze(3)]
        if charges is not None:
            if self.charge_dipole is not None and self.dipole_moment in outputs:
                dipoles = self.charge_dipole(charges.charges, graph)
                if self.dipole_moment in values:
                    dipoles = dipoles + values[self.dipole_moment][0]
                values[self.dipole_moment] = [dipoles]
            electronegativity, hardness = charges.electronegativity, charges.hardness
            for name in outputs:
                if name == "charge" or name == self.atomic_charge:
                    values[name] = [charges.charges.unsqueeze(1)]
                elif name == "mtt::aux::electronegativity" and electronegativity is not None:
                    values[name] = [electronegativity.unsqueeze(1)]
                elif name == "mtt::aux::hardness" and hardness is not None:
                    values[name] = [hardness.unsqueeze(1)]
        return values

    def derives(self, outputs: dict[str, ModelOutput]) -> bool:
        """
        :param outputs: what is asked for
        :return: whether any of it is made of charges, perhaps by derivatives
        """
        for name in self.derived:
            if name in outputs:
                return True
        return False

    def predict(self, target: str, features: Features) -> list[torch.Tensor]:
        """
        :param target: name of a target
        :param features: of the atoms
        :return: what its head predicts, one array per block, none if it has no head
        """
        values: list[torch.Tensor] = []
        for name, head in self.heads.items():
            if name == target:
                hidden = head.last_layer_features(features.stages)
                values = head(hidden, features.spherical, features.field)
        return values

    def predicted_born_charges(self, features: Features) -> torch.Tensor:
        """
        :param features: of the atoms
        :return: before the sum rule ``[atoms, 3, 3]``, e
        """
        if self.born_head is not None:
            return self.born_head(features.spherical, features.field)
        return self.predict(self.born_charge, features)[0].squeeze(3)

    def respond(
        self,
        q: torch.Tensor,
        features: Features,
        charges: Charges | None,
        graph: Graph,
        outputs: dict[str, ModelOutput],
    ) -> dict[str, list[torch.Tensor]]:
        """
        :param q: charges ``[atoms]``, e
        :param features: of the atoms
        :param charges: of a block, if they are its
        :param graph: of the batch, tracked
        :param outputs: what is asked for
        :return: what follows from charges, see :class:`.response.ChargeResponse`
        """
        values: dict[str, list[torch.Tensor]] = {}
        dipoles: torch.Tensor | None = None
        if self.charge_dipole is not None:
            predicted = self.predict(self.dipole_moment, features)
            if len(predicted) > 0:
                dipoles = self.charge_dipole.in_charges(predicted[0])
        asked: list[str] = []
        for name in outputs:
            if name in self.derived:
                asked.append(name)
        if self.response is not None:
            values = self.response(q, dipoles, charges, graph, asked)
        return values

    def energies(
        self,
        backbone: dict[str, torch.Tensor],
        charges: Charges | None,
        outputs: dict[str, ModelOutput],
    ) -> dict[str, list[torch.Tensor]]:
        """
        :param backbone: energies of the backbone ``[atoms, 1]``, by target
        :param charges: of a block
        :param outputs: what is asked for
        :return: energies that no scale applies to, in the unit of each target that is an energy
        """
        values: dict[str, list[torch.Tensor]] = {}
        for name, energy in backbone.items():
            values[name] = [energy]
        if charges is not None:
            for name, unit in self.energy_units.items():
                if name in outputs:
                    size = len(self.labels.properties[name][0])
                    energy = (unit * charges.energies).unsqueeze(1).expand(-1, size)
                    if name in values:
                        energy = energy + values[name][0]
                    values[name] = [energy]
        return values

    def default_outputs(self) -> dict[str, str]:
        """
        :return: names that engines look for, and the output to be had by each besides its own name:
            ``energy``, for the only variant of a model without a default
        """
        variants = [name for name in self.outputs if name.startswith("energy/")]
        if len(variants) == 1 and "energy" not in self.outputs:
            return {"energy": variants[0]}
        return {}

    def resolve(self, outputs: dict[str, ModelOutput]) -> dict[str, ModelOutput]:
        """
        :param outputs: what is asked for
        :return: the same by the names of the model
        :raises ValueError: for one output by both names, per atom and per structure
        """
        resolved: dict[str, ModelOutput] = {}
        for name, output in outputs.items():
            name = self.aliases.get(name, name)
            if name in resolved and resolved[name].sample_kind != output.sample_kind:
                raise ValueError(f"{name} is asked for per atom and per structure at once")
            resolved[name] = output
        return resolved

    def rename(
        self, results: dict[str, TensorMap], outputs: dict[str, ModelOutput]
    ) -> dict[str, TensorMap]:
        """
        :param results: by the names of the model
        :param outputs: what was asked for
        :return: the results by the names that were asked for
        """
        renamed: dict[str, TensorMap] = {}
        for name in outputs:
            own_name = self.aliases.get(name, name)
            if own_name in results:
                renamed[name] = results[own_name]
        return renamed
