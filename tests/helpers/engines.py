"""Models and structures that every engine is tested with."""

import ase
import ase.build
import numpy as np
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info

ATOMIC_TYPES = [1, 8, 11, 17]
QEQ = {"charge_equilibration": {"enable": True}}
SHORT = {"long_range": {"enable": False}}


def targets(with_dipole: bool) -> dict:
    """An energy, and the dipole moment of isolated structures."""
    section = {
        "quantity": "",
        "unit": "e*A",
        "type": {"cartesian": {"rank": 1}},
        "num_subtargets": 1,
        "sample_kind": "system",
    }
    targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    if with_dipole:
        name = "mtt::dipole_moment"
        targets[name] = get_generic_target_info(name, section)
    return targets


def rattled(frame: ase.Atoms, size: float = 0.1) -> ase.Atoms:
    """Away from symmetric sites, where norms of the features have cusps.

    :param frame: structure, changed in place
    :param size: standard deviation of the displacements, Å
    """
    frame.positions += size * np.random.default_rng(len(frame)).normal(size=(len(frame), 3))
    return frame


def rocksalt(repeat) -> ase.Atoms:
    """Rock salt.

    :param repeat: conventional cells of eight atoms along each direction
    """
    return ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)


def charged_crystal() -> ase.Atoms:
    """A cubic cell of 15 atoms, one chlorine missing, of total charge 1."""
    frame = rocksalt((2, 1, 1))
    del frame[int(np.flatnonzero(frame.numbers == 17)[0])]
    frame.info["charge"] = 1.0
    return rattled(frame)


def slab() -> ase.Atoms:
    """Two layers of 16 atoms, periodic along the first two vectors, which are not orthogonal."""
    frame = rocksalt((2, 1, 1))
    frame.set_cell(frame.cell.array + [[0, 0, 0], [0.3, 0, 0], [0, 0, 0]], scale_atoms=True)
    frame.cell[2, 2] += 14.0
    frame.pbc = [True, True, False]
    return rattled(frame)


def triclinic() -> ase.Atoms:
    """16 atoms in a skewed cell, its matrix lower triangular as some engines want it."""
    frame = rocksalt((2, 1, 1))
    cell = frame.cell.array + [[0, 0, 0], [0.9, 0, 0], [-0.7, 0.6, 0]]
    frame.set_cell(cell, scale_atoms=True)
    return rattled(frame)


def molecule() -> ase.Atoms:
    """NaCl and a water molecule beyond the cutoff of each other, neutral."""
    positions = [[0.1, 0.0, 0.2], [2.4, 0.3, -0.1], [1.2, 4.9, 0.3], [1.9, 5.4, 0.0]]
    positions.append([0.4, 5.5, 0.6])
    return ase.Atoms("NaClOHH", positions)
