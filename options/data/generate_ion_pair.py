"""Make ``nacl-dimer.xyz``: a sodium and a chlorine atom at growing distance, neutral and as cation.

Run ``python options/data/generate_ion_pair.py`` (needs ``tblite``; a second). Labels are those of
``generate.py``. Beyond 5 Å the charges of GFN2-xTB no longer converge.
"""

from pathlib import Path

import numpy as np
from ase import Atoms
from generate import labelled, write

DISTANCES = np.linspace(1.9, 5.0, 32)  # Å
CHARGES = (0, 1)  # e

if __name__ == "__main__":
    pairs = [
        labelled(Atoms("NaCl", [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]), charge, [])
        for charge in CHARGES
        for distance in DISTANCES
    ]
    write(Path(__file__).parent / "nacl-dimer.xyz", pairs)
