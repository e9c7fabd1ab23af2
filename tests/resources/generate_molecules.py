"""Make ``molecules.xyz``: 100 small molecules of H, C, N and O with their energy ``U0``.

Needs the package ``tblite``. Energies are those of GFN2-xTB (J. Chem. Theory Comput. 15, 1652
(2019)) in eV, with an arbitrary zero. Run in this folder: ``python generate_molecules.py``.
"""

import ase.io
import numpy as np
from ase.build import molecule
from ase.collections import g2
from tblite.ase import TBLite

NUM_STRUCTURES = 100
DISPLACEMENT = 0.05
"""Standard deviation of the displacement of each coordinate, Å."""


def closed_shells() -> list[str]:
    """Names of the molecules of the G2 set that have the right elements and paired electrons."""
    names = []
    for name in g2.names:
        numbers = molecule(name).numbers
        if len(numbers) > 2 and set(numbers) <= {1, 6, 7, 8} and sum(numbers) % 2 == 0:
            names.append(name)
    return names


def main() -> None:
    rng = np.random.default_rng(0)
    names = closed_shells()
    frames = []
    for i in range(NUM_STRUCTURES):
        frame = molecule(names[i % len(names)])
        frame.set_initial_magnetic_moments(None)
        frame.set_initial_charges(None)
        frame.positions += rng.normal(scale=DISPLACEMENT, size=frame.positions.shape)
        frame.positions = frame.positions.round(6)
        calculator = TBLite(method="GFN2-xTB", verbosity=0)
        energy = calculator.get_potential_energy(frame)
        frame.calc = None
        frame.info = {"U0": energy}
        frames.append(frame)
    ase.io.write("molecules.xyz", frames, columns=["symbols", "positions"])


if __name__ == "__main__":
    main()
