"""Exported models in double precision and structures that every engine is tested with."""

from importlib.util import find_spec
from pathlib import Path

import ase
import pytest
from helpers.backbones import PACKAGES, section
from helpers.engines import (
    ATOMIC_TYPES,
    QEQ,
    SHORT,
    charged_crystal,
    molecule,
    rattled,
    rocksalt,
    slab,
    targets,
    triclinic,
)
from helpers.once import common_folder, locked


@pytest.fixture(scope="session")
def exported(lorem, tmp_path_factory):
    """Paths of exported models with random weights, by name.

    ``short_range`` and ``long_range``. With charge equilibration and the long-range block, outputs
    ``charge`` and, of isolated structures, ``mtt::dipole_moment``: ``qeq`` and ``qeq_plus1`` with
    the total charges 0 and 1 built in, ``qeq_conditional``, which asks for the total charge, and
    ``qeq_iterative``, which is ``qeq`` but for the way to solve for the charges, and ``backbone``,
    which is ``qeq_conditional`` behind PET. That behind SOAP-BPNN and MACE has the name of the
    architecture, and is there where its packages are.
    """
    folder = common_folder(tmp_path_factory, "exported")

    def export(name, total_charge=None, **hypers) -> Path:
        path = folder / f"{name}.pt"
        if not path.exists():
            with_charges = "charge_equilibration" in hypers
            model = lorem.new_model(targets(with_charges), atomic_types=ATOMIC_TYPES, **hypers)
            if total_charge is not None:
                # as `set-charge` does
                model.conditional = False
                model.total_charge = total_charge
            model.export().save(path)
        return path

    iterative = {"charge_equilibration": {"enable": True, "solver": "iterative"}}
    with locked(folder):
        return {
            "short_range": export("short_range", **SHORT),
            "long_range": export("long_range"),
            "qeq": export("qeq", **QEQ),
            "qeq_conditional": export("qeq_conditional", conditional=True, **QEQ),
            "qeq_plus1": export("qeq_plus1", total_charge=1.0, conditional=True, **QEQ),
            "qeq_iterative": export("qeq_iterative", **iterative),
            "backbone": export("backbone", conditional=True, backbone=section("pet"), **QEQ),
            **{
                name: export(name, conditional=True, backbone=section(name), **QEQ)
                for name, package in PACKAGES.items()
                if find_spec(package)
            },
        }


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
