"""Errors of a model on NaCl clusters without those whose labels have a step nearby.

    python benchmarks/accuracy/label_steps.py model.pt extensions

GFN2-xTB's dispersion weighs reference systems of an element by its coordination number, and near
some numbers these weights change places: in these clusters the energy then rises or falls by
some 0.03 eV within 0.05 Å, with forces of 0.5 eV/Å that come and go. Forces of the label method
(needs ``tblite``) at slightly displaced atoms tell where, whatever a model says.
"""

import argparse
import tempfile
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import Calculator
from datasets import DATASETS, load
from evaluate import evaluate

DISPLACEMENT = 0.02  # Å, of each atom
DIRECTIONS = 3
LARGEST = 0.05  # eV/Å; its median over all clusters is 0.018. Covalent bonds are stiffer.


def largest_step(atoms: ase.Atoms, calculator: Calculator, rng: np.random.Generator) -> float:
    """How far forces are from linear, along a few random displacements of all atoms.

    :param atoms: structure
    :param calculator: of the labels
    :param rng: of the displacements
    :return: the largest second difference of the force on an atom, eV/Å
    """
    found = 0.0
    for _ in range(DIRECTIONS):
        direction = rng.normal(size=(len(atoms), 3))
        direction *= DISPLACEMENT / np.linalg.norm(direction, axis=1, keepdims=True)
        forces = []
        for sign in (-1, 0, 1):
            moved = atoms.copy()
            moved.positions += sign * direction
            moved.calc = calculator
            forces.append(moved.get_forces())
        second = forces[0] - 2 * forces[1] + forces[2]
        found = max(found, float(np.linalg.norm(second, axis=1).max()))
    return found


def label_method(charge: float) -> Calculator:
    from tblite.ase import TBLite

    # finer than labels need, as small differences are taken
    return TBLite(method="GFN2-xTB", charge=charge, accuracy=0.1, verbosity=0)


def without_steps(structures: list[ase.Atoms]) -> list[ase.Atoms]:
    """Those whose forces are smooth at every atom.

    :param structures: their ``info`` has the total charge
    """
    rng = np.random.default_rng(0)
    return [
        atoms
        for atoms in structures
        if largest_step(atoms, label_method(atoms.info["charge"]), rng) <= LARGEST
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="exported file")
    parser.add_argument("extensions", help="folder of the libraries it needs")
    arguments = parser.parse_args()
    tested = load(DATASETS["nacl-clusters"], Path())["test"]
    for what, structures in (("all", tested), ("without steps", without_steps(tested))):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/structures.xyz"
            ase.io.write(path, structures)
            found = evaluate(arguments.model, arguments.extensions, path)
        energy, forces = found["energy"], found["forces"]
        print(
            f"{what}: {len(structures)} structures, RMSE (MAE) {energy['rmse']:.2f} "
            f"({energy['mae']:.2f}) meV/atom, {forces['rmse']:.1f} ({forces['mae']:.1f}) meV/Å"
        )


if __name__ == "__main__":
    main()
