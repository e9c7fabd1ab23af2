"""Errors of an exported model, printed as JSON: ``python evaluate.py model.pt extensions a.xyz``,
and, of structures in steps, energies and charges: ``--curves b.xyz``.

A process of its own per model: exported models bring libraries that can be loaded only once.
"""

import argparse
import json
import warnings

import ase.io
import torch
from errors import errors
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

CHARGE, DIPOLE = "charge", "mtt::dipole_moment"


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


def curves(model: str, extensions: str, path: str) -> dict[str, dict[str, list[float]]]:
    """Name of the curve -> coordinates (Å), energies (eV) and, of models that have charges, the
    charge of the part that moves (e).

    :param model: exported file
    :param extensions: folder of the libraries it needs
    :param path: structures, their ``info`` as in ``datasets.CURVES``
    """
    calculator = MetatomicCalculator(model, extensions_directory=extensions, device="cpu")
    outputs = calculator._model.capabilities().outputs
    found: dict[str, dict[str, list[float]]] = {}
    for atoms in ase.io.read(path, ":"):
        curve = found.setdefault(atoms.info["curve"], {"coordinate": [], "energy": []})
        curve["coordinate"].append(float(atoms.info["coordinate"]))
        atoms.calc = calculator
        curve["energy"].append(round(atoms.get_potential_energy(), 5))
        if CHARGE in outputs:
            wanted = {CHARGE: ModelOutput(unit="e", sample_kind="atom")}
            charges = calculator.run_model(atoms, wanted)[CHARGE].block().values
            part = float(charges[atoms.info["part"] :].sum())
            curve.setdefault("charge", []).append(round(part, 5))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("extensions")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--curves")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # compiling takes longer than some hundred structures
    torch._C._set_graph_executor_optimize(False)
    files = arguments.model, arguments.extensions
    tests = [evaluate(*files, path) for path in arguments.tests]
    steps = curves(*files, arguments.curves) if arguments.curves else {}
    print(json.dumps({"tests": tests, "curves": steps}))


if __name__ == "__main__":
    main()
