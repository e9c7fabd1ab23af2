"""Make ``water.xyz``: single water molecules and hydrogen-bonded pairs, hot ones.

Run ``python options/data/generate_water.py`` (needs ``tblite``; a minute). Labels are those of
``generate.py``.
"""

from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from generate import labelled, write, xtb

TIME_STEP = 0.5  # fs
STEPS_BETWEEN_FRAMES = 40
RATTLE = 0.03  # Å; dynamics alone moves bonds too little to tell how dipole moments follow
# temperatures in K and numbers of structures at each
MOLECULES = {300.0: 20, 1000.0: 20}
PAIRS = {50.0: 20, 150.0: 50, 300.0: 40}


def pair() -> Atoms:
    """A hydrogen-bonded pair in its minimum."""
    donor, acceptor = molecule("H2O"), molecule("H2O")
    donor.rotate(donor.positions[1] - donor.positions[0], "x", center=donor.positions[0])
    # its oxygen towards the donor
    acceptor.rotate("z", "-x", center=acceptor.positions[0])
    acceptor.positions += donor.positions[0] - acceptor.positions[0] + [2.9, 0.0, 0.0]
    atoms = donor + acceptor
    atoms.calc = xtb(0)
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=300)
    return atoms


def sampled(atoms: Atoms, temperature: float, count: int, rng: np.random.Generator) -> list[Atoms]:
    """
    :param atoms: start, with calculator
    :param temperature: in K
    :param count: number of structures
    :param rng: random numbers
    :return: structures with labels
    """
    atoms = atoms.copy()
    atoms.calc = xtb(0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        TIME_STEP * units.fs,
        temperature_K=temperature,
        friction=0.02 / units.fs,
        rng=rng,
        fixcm=False,
    )
    frames = []
    for _ in range(count):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        positions = atoms.positions - atoms.positions.mean(axis=0)
        positions += rng.normal(scale=RATTLE, size=positions.shape)
        frames.append(labelled(Atoms(atoms.symbols, positions), 0, []))
    return frames


def main() -> None:
    rng = np.random.default_rng(30)
    structures = []
    for start, counts in ((molecule("H2O"), MOLECULES), (pair(), PAIRS)):
        for temperature, count in counts.items():
            structures += sampled(start, temperature, count, rng)
    order = rng.permutation(len(structures))
    write(Path(__file__).parent / "water.xyz", [structures[i] for i in order])


if __name__ == "__main__":
    main()
