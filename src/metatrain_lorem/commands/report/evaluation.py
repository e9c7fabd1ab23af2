"""Predictions of a trained model for a test set, beside its labels."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import ase
import numpy as np
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelOutput,
    System,
    systems_to_torch,
    unit_conversion_factor,
)
from metatrain.utils.data import TargetInfo
from metatrain.utils.data.readers.ase import read
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.devices import pick_devices
from metatrain.utils.evaluate_model import evaluate_model
from metatrain.utils.io import load_model
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from metatrain.utils.system_data import get_system_data_transform

from ...inspection import built_in_charge, find_modules, other_charges
from . import labels
from .comparisons import CHARGE, STRESS, Comparison, dipole_output, find_comparisons

logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """Labels and predictions of a test set."""

    composition: np.ndarray
    """``[structures, elements]`` number of atoms of each of ``elements``"""
    elements: list[str]
    charge: np.ndarray
    """``[structures]`` total charge in e, NaN where the file has none"""
    symbol: np.ndarray
    """``[atoms]`` element of each atom"""
    structure: np.ndarray
    """``[atoms]`` structure of each atom"""
    energy: np.ndarray | None = None
    """``[structures]`` reference in eV, NaN where the file has none; None if the model gives no
    energy, or the file has none at all"""
    predicted_energy: np.ndarray | None = None
    baseline: np.ndarray | None = None
    """``[structures]`` sum of the energies per element that the model holds, in eV; None if it
    holds none"""
    forces: np.ndarray | None = None
    """``[atoms, 3]`` reference in eV/Å, as for the energy"""
    predicted_forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    """``[structures, 9]`` reference in eV/Å³, NaN where the file has none; None if it has none at
    all"""
    predicted_stress: np.ndarray | None = None
    atomic_charges: np.ndarray | None = None
    """``[atoms]`` reference in e, NaN where the file has none; None if the model gives none"""
    predicted_atomic_charges: np.ndarray | None = None
    """``[atoms]`` NaN for structures without reference"""
    dipoles: np.ndarray | None = None
    """``[structures, 3]`` reference in e Å, NaN where the file has none; None if the model gives
    none"""
    predicted_dipoles: np.ndarray | None = None
    """``[structures, 3]`` NaN for structures without reference"""
    others: dict[str, Comparison] = field(default_factory=dict)
    """all other targets that both the model and the file have, by the name of the target"""


def evaluate(
    model_path: str | Path,
    test_path: str | Path,
    keys: labels.Keys | None = None,
    any_charge: bool = False,
) -> Evaluation:
    """Predict what a model gives for a test set: energies and forces, the stress of periodic
    structures, atomic charges (output ``charge``), dipole moments (``mtt::dipole_moment``) and all
    other targets, as far as the file has them.

    :param model_path: exported model (``.pt``) or checkpoint (``.ckpt``)
    :param test_path: file with structures, energies in eV and forces in eV/Å, readable by ASE
    :param keys: names of the labels in the file, where they are not the usual ones
    :param any_charge: go on with structures whose total charge differs from the one that is built
        into the model
    :raises FileNotFoundError: if there is no model file
    :raises ValueError: if labels are infinite or of another shape, if model and file have nothing
        to compare, or for other total charges than the model's
    """
    keys = labels.Keys() if keys is None else keys
    if not Path(model_path).is_file():
        raise FileNotFoundError(f"no model file {model_path}")
    structures = read(test_path, ":")
    if len(structures) == 0:
        raise ValueError(f"{test_path} holds no structures")
    model = load_model(model_path)
    if not isinstance(model, AtomisticModel):
        model = model.export()
    capabilities = model.capabilities()
    energy = _energy_output(capabilities)
    energies, forces = np.array([]), []
    if energy is not None:
        energies = labels.energies(structures, str(test_path), keys.energy)
        forces = labels.forces(structures, str(test_path), keys.forces)
    has_energies = not np.isnan(energies).all()
    has_forces = not all(np.isnan(x).all() for x in forces)
    if not any_charge:
        _refuse_other_charges(model, model_path, structures, test_path)
    compared = find_comparisons(capabilities, energy, structures, keys, str(test_path))
    if not has_energies and not has_forces and len(compared) == 0:
        outputs = ", ".join(capabilities.outputs)
        raise ValueError(
            f"{test_path} holds nothing to compare the outputs of {model_path} with: {outputs}"
        )

    systems, dipole = _systems(structures, model, test_path), dipole_output(capabilities)
    predicted_energies, predicted_forces = _predict(model, energy, systems, compared, test_path)
    symbol = np.concatenate([atoms.get_chemical_symbols() for atoms in structures])
    elements = sorted(set(symbol.tolist()))
    counts = [[atoms.get_chemical_symbols().count(x) for x in elements] for atoms in structures]
    evaluation = Evaluation(
        composition=np.array(counts),
        elements=elements,
        charge=np.array(labels.total_charges(structures)),
        symbol=symbol,
        structure=np.repeat(np.arange(len(structures)), [len(atoms) for atoms in structures]),
        others={n: x for n, x in compared.items() if n not in (STRESS, CHARGE, dipole)},
    )
    if has_energies:
        evaluation.energy = energies
        evaluation.predicted_energy = np.array(predicted_energies)
        evaluation.baseline = _baseline(model, energy, systems)
    if has_forces:
        evaluation.forces = np.concatenate(forces)
        evaluation.predicted_forces = np.concatenate(predicted_forces)
    if STRESS in compared:
        evaluation.stress = compared[STRESS].reference
        evaluation.predicted_stress = compared[STRESS].predicted
    if CHARGE in compared:
        evaluation.atomic_charges = compared[CHARGE].reference.flatten()
        evaluation.predicted_atomic_charges = compared[CHARGE].predicted.flatten()
    if dipole in compared:
        evaluation.dipoles = compared[dipole].reference
        evaluation.predicted_dipoles = compared[dipole].predicted
    return evaluation


def _predict(
    model: AtomisticModel,
    energy: str | None,
    systems: list[System],
    compared: dict[str, Comparison],
    path: str | Path,
) -> tuple[list[float], list[np.ndarray]]:
    """Energies in eV and forces in eV/Å, if there is an output to take them from; the predictions
    of the comparisons are filled in."""
    capabilities = model.capabilities()
    device = pick_devices(capabilities.supported_devices)[0]
    dtype = {"float32": torch.float32, "float64": torch.float64}[capabilities.dtype]
    model.to(device)
    neighbor_lists = get_requested_neighbor_lists(model)
    energies: list[float] = []
    forces: list[np.ndarray] = []
    for index, system in enumerate(systems):
        system = get_system_with_neighbor_lists(system, neighbor_lists).to(dtype, device)
        wanted = [n for n, x in compared.items() if not np.isnan(x.references[index]).all()]
        requested: dict[str, TargetInfo | ModelOutput] = {}
        for name in wanted:
            if name != STRESS:
                kind = "atom" if compared[name].per_atom else "system"
                unit = capabilities.outputs[name].unit
                requested[name] = ModelOutput(unit=unit, sample_kind=kind)
        if energy is not None:
            requested[energy] = get_energy_target_info(
                energy, {"unit": "eV"}, True, add_strain_gradients=STRESS in wanted
            )
        outputs = evaluate_model(model, [system], requested, is_training=False)
        if energy is not None:
            block = outputs[energy].block()
            energies.append(block.values.item())
            forces.append(-block.gradient("positions").values.squeeze(-1).cpu().numpy())
        for name, comparison in list(compared.items()):
            reference = comparison.references[index]
            if name not in wanted:
                predicted = np.full_like(reference, np.nan)
            elif name == STRESS:
                virial = block.gradient("strain").values / torch.linalg.det(system.cell).abs()
                predicted = virial.detach().cpu().numpy()
            elif len(outputs[name]) > 1:
                # metatrain can't read such labels from a file of structures either
                logger.warning("%s has several blocks and is not compared", name)
                del compared[name]
                continue
            elif name == dipole_output(capabilities):
                predicted = _dipole(outputs[name].block(), capabilities.outputs[name].unit)
            else:
                predicted = outputs[name].block().values.detach().cpu().numpy()
            if predicted.size != reference.size:
                numbers = "numbers per atom" if comparison.per_atom else "numbers"
                raise ValueError(
                    f"{path}: structure {index}, key {comparison.key!r}: the model's {name!r} has "
                    f"{predicted.size // len(reference)} {numbers}, its label {reference.shape[1]}"
                )
            comparison.predictions.append(predicted.reshape(reference.shape))
    return energies, forces


def _energy_output(capabilities: ModelCapabilities) -> str | None:
    """``energy``, else a variant of it (``energy/pbe``)."""
    names = list(capabilities.outputs)
    variants = [name for name in names if name.startswith("energy/")]
    return "energy" if "energy" in names else variants[0] if variants else None


def _refuse_other_charges(
    model: AtomisticModel, model_path: str | Path, structures: list[ase.Atoms], path: str | Path
) -> None:
    built_in = built_in_charge(model)
    charges = labels.total_charges(structures)
    different = other_charges(charges, built_in)
    if different:
        raise ValueError(
            f"{path}: structure {different[0]} has the total charge {charges[different[0]]:+g} e, "
            f"as {len(different)} of {len(structures)} have another one than {built_in:+g} e, "
            f"which {model_path} takes all structures to have. Use the model that takes total "
            "charges as an input, or compare all the same with --any-charge"
        )


def _dipole(block: TensorBlock, unit: str) -> np.ndarray:
    """In e Å, as x, y, z."""
    values = block.values.detach().cpu().numpy()
    values = values * (unit_conversion_factor(unit, "e*angstrom") if unit else 1.0)
    # spherical components of degree 1 are y, z, x
    return values[:, [2, 0, 1]] if block.components[0].names == ["o3_mu"] else values


def _baseline(model: AtomisticModel, energy: str, systems: list[System]) -> np.ndarray | None:
    """Energies per element that metatrain's models hold, summed ``[structures]``, eV."""
    unit = unit_conversion_factor(model.capabilities().outputs[energy].unit or "eV", "eV")
    output = {energy: ModelOutput(sample_kind="system")}
    for composition in find_modules(model, "CompositionModel"):
        if energy in composition.outputs:
            device = next(model.buffers()).device
            moved = [system.to(device=device) for system in systems]
            values = composition(moved, output, None)[energy].block().values
            return unit * values.detach().cpu().numpy().flatten()
    return None


def _systems(structures: list[ase.Atoms], model: AtomisticModel, path: str | Path) -> list[System]:
    """Systems in float64, with the inputs per system that the model requests."""
    systems = systems_to_torch(structures, dtype=torch.float64)
    for name, requested in model.requested_inputs(use_new_names=True).items():
        if name != "charge" or requested.sample_kind != "system":
            raise ValueError(f"the model requests the input {name!r}, which a report cannot give")
        charges = labels.total_charges(structures)
        if np.isnan(charges).any():
            raise ValueError(
                f"{path}: structure {int(np.argmax(np.isnan(charges)))} has no total charge "
                "`charge`, which the model needs"
            )
        values = torch.tensor(charges, dtype=torch.float64)
        block = TensorBlock(
            values=values.reshape(-1, 1),
            samples=Labels.range("system", len(structures)),
            components=[],
            properties=Labels.single(),
        )
        attach = get_system_data_transform([name])
        attach(systems, {}, {name: TensorMap(Labels.single(), [block])})
    return systems
