"""All heads: from the features of all stages to the values of each output, on plain tensors."""

from typing import Final, NamedTuple

import torch
from metatrain.utils.data import TargetInfo

from ..blocks.charge_equilibration import Charges
from ..documentation import ModelHypers
from ..graph import Graph
from .charges import ATOMIC_CHARGE, DIPOLE_MOMENT, ChargeDipole
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
    """Heads of the targets, and outputs that are charges or made of them.

    :param hypers: of the model
    :param atomic_types: atomic numbers of the species
    :param num_stages: stages of scalar features
    """

    # TorchScript can't infer types of empty containers, and knows no strings of other modules
    feature_names: dict[str, str]
    atomic_charge: Final[str]
    dipole_moment: Final[str]

    def __init__(self, hypers: ModelHypers, atomic_types: list[int], num_stages: int) -> None:
        super().__init__()
        self.hypers = hypers
        self.atomic_types = atomic_types
        self.num_stages = num_stages
        self.atomic_charge = ATOMIC_CHARGE
        self.dipole_moment = DIPOLE_MOMENT
        self.equilibrated: bool = hypers["charge_equilibration"]["enable"]
        self.heads = torch.nn.ModuleDict()
        self.feature_names = {}
        self.charge_dipole: torch.nn.Module | None = None

    def add(self, name: str, target: TargetInfo, length_unit: str) -> bool:
        """Register a target.

        :param name: of the target
        :param target: its description, atomic bases densified
        :param length_unit: of positions
        :return: whether it has a head, and is not made of the charges alone
        """
        has_head = True
        if self.equilibrated and name == ATOMIC_CHARGE:
            has_head = False
        if self.equilibrated and name == DIPOLE_MOMENT:
            self.charge_dipole = ChargeDipole(target, self.atomic_types, length_unit)
            has_head = self.hypers["charge_equilibration"]["atomic_dipoles"]
        if has_head:
            self.heads[name] = TargetHead(name, target, self.hypers, self.num_stages)
            self.feature_names[name] = last_layer_features_name(name)
        return has_head

    def forward(
        self, features: Features, charges: Charges | None, graph: Graph, outputs: list[str]
    ) -> dict[str, list[torch.Tensor]]:
        """
        :param features: of the atoms
        :param charges: of charge equilibration
        :param graph: of the batch
        :param outputs: names of what to evaluate
        :return: per output one array per block, ``[atoms, components ..., properties]``; without
            charge equilibration the output ``charge`` is what is predicted for atomic charges
        """
        values: dict[str, list[torch.Tensor]] = {}
        if "feature" in outputs:
            values["feature"] = [features.stages[-1]]
        for name, head in self.heads.items():
            as_charge = name == self.atomic_charge and "charge" in outputs
            if name in outputs or self.feature_names[name] in outputs or as_charge:
                hidden = head.last_layer_features(features.stages)
                if self.feature_names[name] in outputs:
                    values[self.feature_names[name]] = [hidden]
                if name in outputs or as_charge:
                    predicted = head(hidden, features.spherical, features.field)
                    if name in outputs:
                        values[name] = predicted
                    if as_charge:
                        values["charge"] = predicted
        if charges is not None:
            if self.charge_dipole is not None and self.dipole_moment in outputs:
                dipoles = self.charge_dipole(charges.charges, graph)
                if self.dipole_moment in values:
                    dipoles = dipoles + values[self.dipole_moment][0]
                values[self.dipole_moment] = [dipoles]
            for name in outputs:
                if name == "charge" or name == self.atomic_charge:
                    values[name] = [charges.charges.unsqueeze(1)]
                elif name == "mtt::aux::electronegativity":
                    values[name] = [charges.electronegativity.unsqueeze(1)]
                elif name == "mtt::aux::hardness":
                    values[name] = [charges.hardness.unsqueeze(1)]
        return values
