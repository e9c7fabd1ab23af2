"""Predictions of a trained model for a test set, beside its labels."""

import logging
from dataclasses import dataclass
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
    energy: np.ndarray
    """``[structures]`` reference in eV"""
    predicted_energy: np.ndarray
    forces: np.ndarray
    """``[atoms, 3]`` reference in eV/Å"""
    predicted_forces: np.ndarray
    atomic_charges: np.ndarray | None = None
    """``[atoms]`` reference in e, NaN where the file has none; None if the model gives none"""
    predicted_atomic_charges: np.ndarray | None = None
    """``[atoms]`` NaN for structures without reference"""
    dipoles: np.ndarray | None = None
    """``[structures, 3]`` reference in e Å, NaN where the file has none; None if the model gives
    none"""
    predicted_dipoles: np.ndarray | None = None
    """``[structures, 3]`` NaN for structures without reference"""


def evaluate(
    model_path: str | Path,
    test_path: str | Path,
    energy_key: str = "energy",
    forces_key: str = "forces",
    charges_key: str = "atomic_charge",
) -> Evaluation:
    """Predict energies and forces of a test set, with atomic charges and dipole moments if the
    model has them (outputs ``charge`` and ``mtt::dipole_moment``) and the file too.

    :param model_path: exported model (``.pt``) or checkpoint (``.ckpt``)
    :param test_path: file with structures, energies in eV and forces in eV/Å, readable by ASE
    :param energy_key: name of the energy in the file
    :param forces_key: name of the forces in the file
    :param charges_key: name of the atomic charges in the file; dipole moments: ``dipole_moment``
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

    targets = {
        "energy": get_energy_target_info("energy", {"unit": "eV"}, add_position_gradients=True)
    }
    # labels per structure of what both the model and the file have
    labels: dict[str, list[np.ndarray]] = {}
    for name, key, read_labels in (
        ("charge", charges_key, _atomic_charges),
        ("mtt::dipole_moment", "dipole_moment", _dipoles),
    ):
        if name in capabilities.outputs:
            values = read_labels(structures, key)
            if all(np.isnan(x).all() for x in values):
                logger.info("%s: no %r to compare the model's %r with", test_path, key, name)
            else:
                labels[name] = values
    neighbor_lists = get_requested_neighbor_lists(model)
    energies, forces = [], []
    predictions: dict[str, list[np.ndarray]] = {name: [] for name in labels}
    for index, system in enumerate(_systems(structures, model)):
        system = get_system_with_neighbor_lists(system, neighbor_lists).to(dtype, device)
        wanted = [name for name, values in labels.items() if not np.isnan(values[index]).all()]
        requested = targets | {name: _output(capabilities, name) for name in wanted}
        outputs = evaluate_model(model, [system], requested, is_training=False)
        block = outputs["energy"].block()
        energies.append(block.values.item())
        forces.append(-block.gradient("positions").values.squeeze(-1).cpu().numpy())
        for name, values in labels.items():
            missing = np.full_like(values[index], np.nan)
            predictions[name].append(
                _in_standard_form(outputs[name].block(), capabilities.outputs[name].unit).reshape(
                    missing.shape
                )
                if name in wanted
                else missing
            )

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
        atomic_charges=_joined(labels, "charge"),
        predicted_atomic_charges=_joined(predictions, "charge"),
        dipoles=_joined(labels, "mtt::dipole_moment"),
        predicted_dipoles=_joined(predictions, "mtt::dipole_moment"),
    )


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


def _atomic_charges(structures: list[ase.Atoms], key: str) -> list[np.ndarray]:
    """Per structure ``[atoms]`` in e, NaN where there are none."""
    charges = []
    for index, atoms in enumerate(structures):
        values = np.asarray(atoms.arrays.get(key, np.full(len(atoms), np.nan)))
        if values.dtype.kind not in "iuf" or values.size != len(atoms):
            raise ValueError(f"structure {index}: {key!r} is not one number per atom")
        charges.append(values.astype(float).flatten())
    return charges


def _output(capabilities: ModelCapabilities, name: str) -> ModelOutput:
    """What to ask for: charges per atom, dipole moments per structure."""
    kind = "atom" if name == "charge" else "system"
    return ModelOutput(unit=capabilities.outputs[name].unit, sample_kind=kind)


def _in_standard_form(block: TensorBlock, unit: str) -> np.ndarray:
    """Values in e and e Å, vectors as x, y, z."""
    values = block.values.detach().cpu().numpy()
    if len(block.components) > 0:
        values = values * (unit_conversion_factor(unit, "e*angstrom") if unit else 1.0)
        if block.components[0].names == ["o3_mu"]:
            # spherical components of degree 1 are y, z, x
            values = values[:, [2, 0, 1]]
    return values


def _dipoles(structures: list[ase.Atoms], key: str) -> list[np.ndarray]:
    """Per structure ``[1, 3]`` in e Å, NaN where there is none.

    Those of periodic structures depend on the choice of the cell and count as missing.
    """
    missing = np.full(3, np.nan)
    dipoles = []
    for index, atoms in enumerate(structures):
        dipole = np.asarray(missing if atoms.pbc.any() else atoms.info.get(key, missing))
        if dipole.dtype.kind not in "iuf" or dipole.shape != (3,):
            raise ValueError(f"structure {index}: {key!r} is not three numbers")
        dipoles.append(dipole.astype(float)[None])
    return dipoles


def _joined(values: dict[str, list[np.ndarray]], name: str) -> np.ndarray | None:
    return np.concatenate(values[name]) if name in values else None


def _systems(structures: list[ase.Atoms], model: AtomisticModel) -> list[System]:
    """Systems in float64, with the inputs per system that the model requests."""
    systems = systems_to_torch(structures, dtype=torch.float64)
    for name, requested in model.requested_inputs(use_new_names=True).items():
        if name != "charge" or requested.sample_kind != "system":
            raise ValueError(f"the model requests the input {name!r}, which a report cannot give")
        charges = [float(atoms.info.get("charge", np.nan)) for atoms in structures]
        if np.isnan(charges).any():
            raise ValueError(
                f"structure {int(np.argmax(np.isnan(charges)))} has no total charge `charge`, "
                "which the model needs"
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
