"""Errors of a trained model on a test set, also per element and per total charge."""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import AtomisticModel, System, systems_to_torch
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

logger = logging.getLogger(__name__)

COLUMNS = (
    "group",
    "structures",
    "atoms",
    "energy RMSE (meV/atom)",
    "energy MAE (meV/atom)",
    "force RMSE (meV/Å)",
    "force MAE (meV/Å)",
)


@dataclass
class Evaluation:
    """Labels and predictions of S structures with N atoms in all."""

    composition: np.ndarray
    """[S, elements] number of atoms of each of ``elements``"""
    elements: list[str]
    charge: np.ndarray
    """[S] total charge in e, NaN where the file has none"""
    symbol: np.ndarray
    """[N] element of each atom"""
    structure: np.ndarray
    """[N] structure of each atom"""
    energy: np.ndarray
    """[S] reference in eV"""
    predicted_energy: np.ndarray
    forces: np.ndarray
    """[N, 3] reference in eV/Å"""
    predicted_forces: np.ndarray


def evaluate(
    model_path: str | Path,
    test_path: str | Path,
    energy_key: str = "energy",
    forces_key: str = "forces",
) -> Evaluation:
    """Predict energies and forces of a test set.

    :param model_path: exported model (``.pt``) or checkpoint (``.ckpt``)
    :param test_path: file with structures, energies in eV and forces in eV/Å, readable by ASE
    :param energy_key: name of the energy in the file
    :param forces_key: name of the forces in the file
    :raises FileNotFoundError: if there is no model file
    :raises ValueError: if labels are missing or the model predicts no energy
    """
    if not Path(model_path).is_file():
        raise FileNotFoundError(f"no model file {model_path}")
    structures = read(test_path, ":")
    _require_labels(structures, str(test_path), energy_key, forces_key)
    model = load_model(model_path)
    if not isinstance(model, AtomisticModel):
        model = model.export()
    capabilities = model.capabilities()
    if "energy" not in capabilities.outputs:
        outputs = ", ".join(capabilities.outputs)
        raise ValueError(f"{model_path} predicts no 'energy', only: {outputs}")
    device = pick_devices(capabilities.supported_devices)[0]
    dtype = {"float32": torch.float32, "float64": torch.float64}[capabilities.dtype]
    model.to(device)

    target = {
        "energy": get_energy_target_info("energy", {"unit": "eV"}, add_position_gradients=True)
    }
    neighbor_lists = get_requested_neighbor_lists(model)
    energies, forces = [], []
    for system in _systems(structures, model):
        system = get_system_with_neighbor_lists(system, neighbor_lists).to(dtype, device)
        block = evaluate_model(model, [system], target, is_training=False)["energy"].block()
        energies.append(block.values.item())
        forces.append(-block.gradient("positions").values.squeeze(-1).cpu().numpy())

    symbol = np.concatenate([atoms.get_chemical_symbols() for atoms in structures])
    elements = sorted(set(symbol.tolist()))
    counts = [[atoms.get_chemical_symbols().count(x) for x in elements] for atoms in structures]
    return Evaluation(
        composition=np.array(counts),
        elements=elements,
        charge=np.array([float(atoms.info.get("charge", np.nan)) for atoms in structures]),
        symbol=symbol,
        structure=np.repeat(np.arange(len(structures)), [len(atoms) for atoms in structures]),
        energy=np.array([float(atoms.info[energy_key]) for atoms in structures]),
        predicted_energy=np.array(energies),
        forces=np.concatenate([atoms.arrays[forces_key] for atoms in structures]),
        predicted_forces=np.concatenate(forces),
    )


def errors(evaluation: Evaluation) -> list[dict[str, str | int | float]]:
    """Rows of the table: all structures, each element (forces), each total charge.

    :return: one dictionary per row with the keys ``COLUMNS``; missing (NaN) labels are left out
    """
    num_atoms = evaluation.composition.sum(axis=1)
    energy_error = 1e3 * (evaluation.predicted_energy - evaluation.energy) / num_atoms
    force_error = 1e3 * (evaluation.predicted_forces - evaluation.forces)

    everything = np.ones(len(num_atoms), dtype=bool)
    groups = [("all", everything, everything[evaluation.structure])]
    for element in evaluation.elements:
        groups.append((element, None, evaluation.symbol == element))
    for charge in np.unique(evaluation.charge[~np.isnan(evaluation.charge)]):
        chosen = evaluation.charge == charge
        groups.append((f"charge {charge:+g}", chosen, chosen[evaluation.structure]))

    rows = []
    for name, chosen_structures, chosen_atoms in groups:
        # the energy of a structure cannot be split between its elements
        energies = np.array([]) if chosen_structures is None else energy_error[chosen_structures]
        num_structures = len(np.unique(evaluation.structure[chosen_atoms]))
        numbers = (
            *_rmse_and_mae(energies),
            *_rmse_and_mae(force_error[chosen_atoms]),
        )
        values = (name, num_structures, int(chosen_atoms.sum()), *numbers)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _rmse_and_mae(differences: np.ndarray) -> tuple[float, float]:
    known = differences[~np.isnan(differences)]
    if len(known) == 0:
        return np.nan, np.nan
    return float(np.sqrt(np.mean(known**2))), float(np.mean(np.abs(known)))


def format_table(rows: list[dict[str, str | int | float]]) -> str:
    """The rows of :func:`errors` as a Markdown table."""

    def cell(value: str | int | float) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.2f}"
        return str(value)

    lines = [list(COLUMNS)] + [[cell(row[column]) for column in COLUMNS] for row in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(COLUMNS))]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    padded = ([text.rjust(width) for text, width in zip(x, widths, strict=True)] for x in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def write_csv(rows: list[dict[str, str | int | float]], path: str | Path) -> None:
    """The rows of :func:`errors` as comma-separated values."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _require_labels(
    structures: list[ase.Atoms], path: str, energy_key: str, forces_key: str
) -> None:
    if len(structures) == 0:
        raise ValueError(f"{path} holds no structures")
    for index, atoms in enumerate(structures):
        for option, key, known in (
            ("--energy-key", energy_key, atoms.info),
            ("--forces-key", forces_key, atoms.arrays),
        ):
            if key not in known:
                raise ValueError(
                    f"{path}: structure {index} has no {key!r}, only: {', '.join(known)}; "
                    f"name the right one with {option}"
                )


def _systems(structures: list[ase.Atoms], model: AtomisticModel) -> list[System]:
    """Systems in float64, with the inputs per system that the model requests."""
    systems = systems_to_torch(structures, dtype=torch.float64)
    for name, requested in model.requested_inputs(use_new_names=True).items():
        if name != "charge" or requested.sample_kind != "system":
            raise ValueError(f"the model requests the input {name!r}, which a report cannot give")
        charges = [float(atoms.info.get("charge", np.nan)) for atoms in structures]
        missing = int(np.isnan(charges).sum())
        if missing:
            logger.warning("%d structures have no total charge 'charge', 0 is taken", missing)
        values = torch.tensor(charges, dtype=torch.float64).nan_to_num(0.0)
        block = TensorBlock(
            values=values.reshape(-1, 1),
            samples=Labels.range("system", len(structures)),
            components=[],
            properties=Labels.single(),
        )
        attach = get_system_data_transform([name])
        attach(systems, {}, {name: TensorMap(Labels.single(), [block])})
    return systems
