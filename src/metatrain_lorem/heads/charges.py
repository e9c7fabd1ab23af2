r"""Targets and outputs that are charges of atoms, or made of them."""

import ase.data
import torch
from metatomic.torch import ModelOutput, unit_conversion_factor
from metatrain.utils.data import DatasetInfo, TargetInfo

from ..documentation import ModelHypers, has_charges, has_partial_charges
from ..graph import Graph
from ..nn.spherical import CARTESIAN, SPHERICAL
from .response import BORN_CHARGE, POLARIZABILITY, from_center_of_mass

ATOMIC_CHARGE = "mtt::atomic_charge"
"""Target of reference charges: ``charge`` is the name of the total charge in data sets."""

DIPOLE_MOMENT = "mtt::dipole_moment"
"""Target that is made of the charges, where a block makes these."""


def is_atomic_charge(target: TargetInfo) -> bool:
    """
    :param target: description of a target
    :return: whether it can be the charges of atoms: one scalar per atom, in e or without unit
    """
    return (
        target.is_scalar
        and target.sample_kind == "atom"
        and len(target.layout.keys) == 1
        and len(target.layout.block(0).properties) == 1
        and target.unit in ("", "e")
    )


def is_energy(name: str, target: TargetInfo) -> bool:
    """
    metatrain gives the quantity energy to every target whose options name none; the unit tells.

    :param name: of the target
    :param target: its description
    :return: whether the energy of the charges belongs to it
    """
    if not target.is_scalar or target.quantity != "energy":
        return False
    if name.split("/")[0] == "energy":
        return True
    try:
        unit_conversion_factor("eV", target.unit)
    except (RuntimeError, ValueError):
        return False
    return target.unit != ""


def unscaled_targets(dataset_info: DatasetInfo, hypers: ModelHypers) -> list[str]:
    """
    :param dataset_info: of the model
    :param hypers: of the model
    :return: targets without baseline and scale: charges, and what is made of them
    """
    targets = dataset_info.targets
    names: list[str] = []
    if ATOMIC_CHARGE in targets and is_atomic_charge(targets[ATOMIC_CHARGE]):
        names.append(ATOMIC_CHARGE)
    if DIPOLE_MOMENT in targets and has_charges(hypers):
        names.append(DIPOLE_MOMENT)
    if BORN_CHARGE in targets:
        names.append(BORN_CHARGE)
    if POLARIZABILITY in targets and has_partial_charges(hypers):
        names.append(POLARIZABILITY)
    return names


def check_charge_targets(dataset_info: DatasetInfo) -> None:
    """Refuse targets that a model whose charges a block makes can't have.

    :param dataset_info: targets of the model
    :raises ValueError: for reference charges under the name of the total charge, and for others
        than one scalar per atom
    """
    for name in ("charge", "charges", "mtt::charge"):
        if name in dataset_info.targets:
            raise ValueError(
                f"target '{name}': reference charges of atoms train under '{ATOMIC_CHARGE}', as "
                "`charge` is the total charge (`extra_data: charge`)"
            )
    target = dataset_info.targets.get(ATOMIC_CHARGE)
    if target is not None and not is_atomic_charge(target):
        raise ValueError(
            f"target '{ATOMIC_CHARGE}' must be one scalar per atom in e: `sample_kind: atom`, "
            "`unit: e`"
        )


def charge_outputs(
    dataset_info: DatasetInfo, charged: bool, equilibrated: bool
) -> dict[str, ModelOutput]:
    """
    :param dataset_info: targets of the model
    :param charged: whether a block makes charges
    :param equilibrated: whether this is charge equilibration
    :return: outputs besides the targets: ``charge``, and what charges follow from; their values are
        filled in by the readout
    """
    outputs: dict[str, ModelOutput] = {}
    target = dataset_info.targets.get(ATOMIC_CHARGE)
    if charged or (target is not None and is_atomic_charge(target)):
        outputs["charge"] = ModelOutput(unit="e", sample_kind="atom", description="atomic charges")
    if equilibrated:
        outputs["mtt::aux::electronegativity"] = ModelOutput(
            unit="eV/e", sample_kind="atom", description="electronegativities"
        )
        outputs["mtt::aux::hardness"] = ModelOutput(
            unit="eV/e^2", sample_kind="atom", description="hardness"
        )
    return outputs


class ChargeDipole(torch.nn.Module):
    r"""Dipole moments of isolated structures, :math:`\sum_i q_i (r_i - r_0)` about the centre of
    mass :math:`r_0` (with ASE's masses), which makes it invariant to translation also for ions.

    :param target: description of the target
    :param atomic_types: atomic numbers of the species
    :param length_unit: of positions
    :raises ValueError: if the target is no vector per structure or atom, or its unit no dipole's
    """

    def __init__(self, target: TargetInfo, atomic_types: list[int], length_unit: str) -> None:
        super().__init__()
        block = target.layout.block(0)
        if (
            len(target.layout.keys) != 1
            or len(block.components) != 1
            or len(block.components[0]) != 3
            or len(block.properties) != 1
            or (target.is_spherical and int(target.layout.keys["o3_sigma"][0]) != 1)
        ):
            raise ValueError(
                f"target '{DIPOLE_MOMENT}': it is made of the charges of this model "
                "and must be one vector per structure, `type: cartesian: rank: 1`"
            )
        self.cartesian: bool = bool(target.is_cartesian)
        try:
            self.factor: float = unit_conversion_factor(
                f"e*{length_unit or 'angstrom'}", target.unit or "e*angstrom"
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"target '{DIPOLE_MOMENT}': its unit '{target.unit}' is none of a dipole moment; "
                "e*A and debye are examples"
            ) from error
        masses = torch.tensor(ase.data.atomic_masses[atomic_types])
        self.register_buffer("masses", masses, persistent=False)
        self.register_buffer("order", torch.tensor(SPHERICAL), persistent=False)
        self.register_buffer("xyz", torch.tensor(CARTESIAN), persistent=False)

    def forward(self, charges: torch.Tensor, graph: Graph) -> torch.Tensor:
        """
        :param charges: ``[atoms]``, e
        :param graph: of the batch
        :return: contributions of the atoms in the unit of the target ``[atoms, 3, 1]``; in training
            zero for periodic structures, which have no labels
        :raises ValueError: for a periodic structure, except in training
        """
        for i, dimension in enumerate(graph.boundaries.dimensions):
            if dimension > 0 and not self.training:
                raise ValueError(
                    f"structure {i} of the batch is periodic: its dipole moment depends on the "
                    "choice of the cell. Ask for dipole moments of isolated structures only"
                )
        offsets = from_center_of_mass(self.masses, graph)
        dipoles = self.factor * charges.unsqueeze(1) * offsets
        isolated = torch.logical_not(graph.pbc.any(dim=1))
        dipoles = dipoles * isolated[graph.system_index].unsqueeze(1)
        if not self.cartesian:
            dipoles = dipoles.index_select(1, self.order)
        return dipoles.unsqueeze(2)

    def in_charges(self, predicted: torch.Tensor) -> torch.Tensor:
        """
        :param predicted: dipole moments of atoms in the unit and order of the target
            ``[atoms, 3, 1]``
        :return: along x, y and z ``[atoms, 3]``, e length
        """
        dipoles = predicted.squeeze(2)
        if not self.cartesian:
            dipoles = dipoles.index_select(1, self.xyz)
        return dipoles / self.factor
