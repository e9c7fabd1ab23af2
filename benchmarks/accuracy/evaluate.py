"""Errors of an exported model, printed as JSON: ``python evaluate.py model.pt extensions a.xyz``.

A process of its own per model: exported models bring libraries that can be loaded only once.
"""

import json
import sys
import warnings
from collections.abc import Iterable

import ase.io
import numpy as np
import torch
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

CHARGE, DIPOLE = "charge", "mtt::dipole_moment"


def errors(predicted: Iterable, reference: Iterable, unit: float) -> dict[str, float]:
    """Root mean square and mean of the error, and root mean square of the labels.

    :param predicted: numbers or arrays, one per structure
    :param reference: the same
    :param unit: of the result, in units of the labels
    """
    labels = np.concatenate([np.ravel(x) for x in reference]) / unit
    difference = np.concatenate([np.ravel(x) for x in predicted]) / unit - labels
    return {
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "mae": float(np.abs(difference).mean()),
        "label_rms": float(np.sqrt(np.mean(labels**2))),
    }


def evaluate(model: str, extensions: str, path: str) -> dict:
    """Errors of all labels that the model predicts.

    :param model: exported file
    :param extensions: folder of the libraries it needs
    :param path: structures
    """
    calculator = MetatomicCalculator(model, extensions_directory=extensions, device="cpu")
    outputs = calculator._model.capabilities().outputs
    structures = ase.io.read(path, ":")
    energies, forces, charges, dipoles = [], [], [], []
    for atoms in structures:
        atoms = atoms.copy()
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy() / len(atoms))
        forces.append(atoms.get_forces())
        wanted = {}
        if CHARGE in outputs and "atomic_charge" in atoms.arrays:
            wanted[CHARGE] = ModelOutput(unit="e", sample_kind="atom")
        if DIPOLE in outputs and "dipole_moment" in atoms.info:
            wanted[DIPOLE] = ModelOutput(unit="e*A", sample_kind="system")
        values = calculator.run_model(atoms, wanted) if wanted else {}
        if CHARGE in values:
            charges.append(values[CHARGE].block().values.detach().numpy())
        if DIPOLE in values:
            dipoles.append(values[DIPOLE].block().values.detach().numpy())
    result = {
        "structures": len(structures),
        "energy": errors(
            energies, [atoms.get_potential_energy() / len(atoms) for atoms in structures], 1e-3
        ),
        "forces": errors(forces, [atoms.get_forces() for atoms in structures], 1e-3),
    }
    if charges:
        result["charges"] = errors(charges, [a.arrays["atomic_charge"] for a in structures], 1e-3)
    if dipoles:
        result["dipoles"] = errors(dipoles, [a.info["dipole_moment"] for a in structures], 1e-3)
    return result


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    # compiling takes longer than some hundred structures
    torch._C._set_graph_executor_optimize(False)
    model, extensions, *paths = sys.argv[1:]
    print(json.dumps([evaluate(model, extensions, path) for path in paths]))
