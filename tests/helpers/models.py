"""Small models, their outputs, and structures of each kind of boundary."""

import copy
import warnings

import ase
import numpy as np
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, System, systems_to_torch
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)

from metatrain_lorem.model import Lorem
from metatrain_lorem.nn.tensor_dense import TensorProduct

SMALL = {
    "cutoff": 4.0,
    "num_radial": 8,
    "num_features": 16,
    "num_spherical_features": 4,
    "max_degree": 3,
}


def new_model(
    targets: dict[str, TargetInfo] | None = None,
    long_range=(),
    charge_equilibration=(),
    conditional: bool = False,
    length_unit: str = "angstrom",
    atomic_types=(1, 6, 7, 8),
    scale: bool = True,
    extra_data=(),
    **hypers,
) -> Lorem:
    """A small model with reproducible random weights, for evaluation in double precision.

    :param targets: targets, an energy by default
    :param long_range: entries of ``long_range`` that differ from the defaults
    :param charge_equilibration: entries of ``charge_equilibration`` that differ from the defaults
    :param conditional: whether the model takes total charges
    :param length_unit: of the data
    :param atomic_types: four of them, with charge equilibration by electronegativity
    :param scale: whether tensor products are brought to values around one
    :param extra_data: descriptions of inputs
    :param hypers: other hyperparameters that differ from ``SMALL`` and the defaults
    """
    if targets is None:
        targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    all_hypers = copy.deepcopy(get_default_hypers("lorem")["model"])
    all_hypers.update(SMALL)
    all_hypers.update(hypers)
    all_hypers["long_range"].update(long_range)
    all_hypers["charge_equilibration"].update(charge_equilibration)
    extra_data = {"charge": total_charge_info()} if conditional else dict(extra_data)
    torch.manual_seed(0)
    model = Lorem(all_hypers, DatasetInfo(length_unit, list(atomic_types), targets, extra_data))
    model.to(torch.float64).eval()
    if model.backbone is not None and not model.backbone.energies:
        # which starts at zero
        torch.nn.init.normal_(model.backbone.gate.weight, std=0.1)
    if model.charge_equilibration is not None:
        # charges of some 0.1 e, and a hardness of each species
        with torch.no_grad():
            electronegativity = torch.tensor([-3.0, -1.0, 1.0, 3.0])
            model.charge_equilibration.species_electronegativity += electronegativity
            model.charge_equilibration.raw_hardness += torch.tensor([0.2, -0.1, 0.1, -0.3])
            if model.charge_equilibration.local_hardness is not None:
                model.charge_equilibration.local_hardness[2].weight *= 10.0
    if scale:
        frame = bulk()
        frame.numbers = np.array(model.atomic_types)[[1, 2, 3, 0, 0, 1]]
        if model.readout.charge_dipole is not None:
            # of isolated structures only
            frame.pbc = False
        scale_tensor_products(model, frame)
    return model


def total_charge_info() -> TargetInfo:
    """What metatrain's reader knows of ``extra_data: charge``."""
    section = {"quantity": "", "unit": "e", "type": "scalar", "sample_kind": "system"}
    return get_generic_target_info("charge", {**section, "num_subtargets": 1, "description": ""})


def with_charge(system: System, charge: float) -> System:
    """Give a total charge to a system."""
    return with_input(system, "charge", charge)


def with_input(system: System, name: str, value: float) -> System:
    """Give a number to a system, in place of an earlier one."""
    block = TensorBlock(
        torch.tensor([[value]], dtype=system.positions.dtype),
        Labels(["system"], torch.tensor([[0]])),
        [],
        Labels([name], torch.tensor([[0]])),
    )
    tensor = TensorMap(Labels(["_"], torch.tensor([[0]])), [block])
    system.add_data(name, tensor, override=name in system.known_data())
    return system


def scale_tensor_products(model: Lorem, frame: ase.Atoms) -> None:
    """Bring every tensor product to values around one for the atoms of a structure.

    Fresh weights make it as small as its factors multiplied: the long-range field starts at 1e-9,
    after a step of message passing at 1e-19, and tests would not see it.
    """

    def scale(module, inputs, output):
        factor = output.pow(2).mean().rsqrt()
        module.weight.data *= factor
        return output * factor

    modules = [module for module in model.modules() if isinstance(module, TensorProduct)]
    hooks = [module.register_forward_hook(scale) for module in modules]
    outputs = {name: ModelOutput(sample_kind="atom") for name in model.dataset_info.targets}
    with torch.no_grad():
        model(systems(model, [frame]), outputs)
    for hook in hooks:
        hook.remove()


def systems(model, frames: list[ase.Atoms]) -> list[System]:
    """Structures with the neighbour lists that a model asks for.

    If it takes total charges, they are ``info["charge"]``, zero by default.
    """
    with warnings.catch_warnings():
        # ASE keeps the vectors of directions that are not periodic, metatomic drops them
        warnings.filterwarnings("ignore", message=".*cell vectors will be set to zero")
        converted = systems_to_torch(frames, dtype=torch.float64)
    lists = get_requested_neighbor_lists(model)
    converted = [get_system_with_neighbor_lists(system, lists) for system in converted]
    if hasattr(model, "requested_inputs") and "charge" in model.requested_inputs():
        for system, frame in zip(converted, frames, strict=True):
            with_charge(system, frame.info.get("charge", 0.0))
    return converted


def values(
    model,
    frames: list[ase.Atoms],
    output: str = "energy",
    sample_kind: str = "system",
    selected_atoms=None,
) -> torch.Tensor:
    """One output, which must have one block."""
    outputs = {output: ModelOutput(sample_kind=sample_kind)}
    with torch.no_grad():
        return model(systems(model, frames), outputs, selected_atoms)[output].block().values


def bulk() -> ase.Atoms:
    """Six atoms in a triclinic cell about as long as the cutoff."""
    cell = [[5.3, 0.2, -0.3], [0.9, 4.9, 0.4], [-0.5, 0.6, 5.1]]
    frame = ase.Atoms("CNOHHC", scaled_positions=spread(6), cell=cell, pbc=True)
    return with_close_pair(frame)


def slab() -> ase.Atoms:
    """Five atoms in a slab that is not periodic along its first, slanted vector."""
    cell = [[9.0, 2.0, -1.0], [0.5, 4.7, 0.6], [-0.4, 0.3, 5.2]]
    frame = ase.Atoms("OCNHH", scaled_positions=spread(5) * [0.4, 1, 1], cell=cell)
    frame.pbc = [False, True, True]
    return with_close_pair(frame)


def molecule() -> ase.Atoms:
    """Six atoms, one of them beyond the cutoff of all others."""
    positions = 4.5 * spread(6)
    positions[5] += [8.0, 0.0, 0.0]
    return with_close_pair(ase.Atoms("NCOHHC", positions))


def spread(count: int) -> np.ndarray:
    """Points in the unit cube without symmetry, none close to another."""
    sites = np.array(list(np.ndindex(2, 2, 2)))[:count] * 0.5 + 0.1
    return sites + np.random.default_rng(count).uniform(-0.08, 0.08, size=(count, 3))


def with_close_pair(frame: ase.Atoms) -> ase.Atoms:
    """Bring the third atom near the second, into the range of ZBL."""
    frame.positions[2] = frame.positions[1] + [0.7, 0.5, -0.6]
    return frame
