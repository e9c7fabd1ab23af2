"""Exported models in double precision and structures that every engine is tested with."""

import os

import ase
import ase.build
import numpy as np
import pytest
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
    of_model = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    if with_dipole:
        name = "mtt::dipole_moment"
        of_model[name] = get_generic_target_info(name, section)
    return of_model


@pytest.fixture(scope="session")
def exported(lorem, tmp_path_factory):
    """Paths of exported models with random weights, by name.

    ``short_range`` and ``long_range``. With charge equilibration and the long-range block, outputs
    ``charge`` and, of isolated structures, ``mtt::dipole_moment``: ``qeq`` and ``qeq_plus1`` with
    the total charges 0 and 1 built in, ``qeq_conditional``, which asks for the total charge, and
    ``qeq_iterative``, which is ``qeq`` but for the way to solve for the charges.
    """
    folder = tmp_path_factory.mktemp("exported")

    def export(name, total_charge=None, **hypers):
        with_charges = "charge_equilibration" in hypers
        model = lorem.new_model(targets(with_charges), atomic_types=ATOMIC_TYPES, **hypers)
        if total_charge is not None:
            # as `set-charge` does
            model.conditional = False
            model.total_charge = total_charge
        path = folder / f"{name}.pt"
        model.export().save(path)
        return path

    iterative = {"charge_equilibration": {"enable": True, "solver": "iterative"}}
    return {
        "short_range": export("short_range", **SHORT),
        "long_range": export("long_range"),
        "qeq": export("qeq", **QEQ),
        "qeq_conditional": export("qeq_conditional", conditional=True, **QEQ),
        "qeq_plus1": export("qeq_plus1", total_charge=1.0, conditional=True, **QEQ),
        "qeq_iterative": export("qeq_iterative", **iterative),
    }


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


@pytest.fixture
def structures() -> dict[str, ase.Atoms]:
    """One structure of each kind of boundary; ``charged`` and ``ion`` have ``info["charge"]`` 1."""
    ion = molecule() + ase.Atoms("Na", [[-1.9, 1.8, 0.9]])
    ion.info["charge"] = 1.0
    return {
        "crystal": rattled(rocksalt((2, 1, 1))),
        "large": rattled(rocksalt(2)),
        "charged": charged_crystal(),
        "triclinic": triclinic(),
        "slab": slab(),
        "molecule": molecule(),
        "ion": ion,
    }


SITECUSTOMIZE = '''
"""Python as it starts where neither this package nor metatrain is installed."""

import sys

FORBIDDEN = ("metatrain", "metatrain_lorem", "_metatrain_lorem_registration", "sphericart")


class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(name + " is blocked")


for name in FORBIDDEN:
    sys.modules.pop(name, None)
sys.meta_path = [f for f in sys.meta_path if f.__module__ != "_metatrain_lorem_registration"]
sys.meta_path.insert(0, Blocker)
'''


@pytest.fixture
def away(tmp_path):
    """Environment variables for programs that can't import this package, metatrain or sphericart.

    Give them to :func:`subprocess.run` with an exported file copied to a folder of its own.
    """
    folder = tmp_path / "python"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1"}
