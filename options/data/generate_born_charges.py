"""Make ``nacl-born-charges.xyz``: clusters Na4Cl4 and Na5Cl4+ with Born charges from GFN2-xTB.

Run ``python options/data/generate_born_charges.py`` (needs ``tblite``; some minutes on one core).
Born charges are central differences of dipole moments about a fixed point, in nine columns: the
polarisation along x, y and z for a displacement along x, then for one along y and z. The sum rule
holds to the step of the differences; positions have five decimals.
"""

import numpy as np
from ase import Atoms
from generate import FOLDER, decimals, sample_hot, starting_clusters, xtb

COUNTS = {"Na4Cl4": 30, "Na5Cl4+": 20}
STEP = 0.01  # Å


def born_charges(atoms: Atoms, charge: int) -> np.ndarray:
    """
    :param atoms: a cluster of N atoms
    :param charge: total charge in e
    :return: ``[N, displacement, polarisation]``, e
    """
    born = np.zeros((len(atoms), 3, 3))
    displaced = atoms.copy()
    displaced.calc = xtb(charge)
    displaced.calc.set(accuracy=0.01)  # by default, dipole moments are noisier than differences
    for i in range(len(atoms)):
        for direction in range(3):
            for sign in (-1, 1):
                displaced.positions = atoms.positions
                displaced.positions[i, direction] += sign * STEP
                born[i, direction] += sign * displaced.get_dipole_moment() / (2 * STEP)
    return born


def main() -> None:
    rng = np.random.default_rng(20)
    clusters = starting_clusters()
    lines: list[list[str]] = []
    for name, count in COUNTS.items():
        cluster, charge = clusters[name]
        for positions in sample_hot(cluster, charge, count, rng):
            atoms = Atoms(cluster.symbols, positions.round(5))
            born = born_charges(atoms, charge)
            excess = born.sum(axis=0) - charge * np.eye(3)
            print(f"{name}: sum rule to {np.abs(excess).max():.4f} e")
            header = "Properties=species:S:1:pos:R:3:born_effective_charge:R:9"
            lines.append([str(len(atoms)), f'{header} charge={charge} pbc="F F F"'])
            for symbol, position, matrix in zip(atoms.symbols, positions, born, strict=True):
                numbers = f"{decimals(position)} {decimals(matrix.flat)}"
                lines[-1].append(f"{symbol} {numbers}")
    text = "\n".join(line for i in rng.permutation(len(lines)) for line in lines[i])
    (FOLDER / "nacl-born-charges.xyz").write_text(text + "\n")


if __name__ == "__main__":
    main()
