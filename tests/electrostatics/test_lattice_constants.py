"""Known lattice sums."""

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, make_supercell
from helpers.batches import tune

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum

# (lattice, Madelung constant for the distance of neighbours, that distance / lattice constant);
# Borwein, Borwein and Taylor, J. Math. Phys. 26, 2999 (1985)
MADELUNG = [
    ("rocksalt", 1.747564594633182, 0.5),
    ("cesiumchloride", 1.762674773070992, np.sqrt(3.0) / 2.0),
    ("zincblende", 1.638055053388790, np.sqrt(3.0) / 4.0),
]


def tight(mesh=False):
    module = CoulombSum(cutoff=6.0, accuracy=1e-10)
    tune(module, mesh_threshold=0 if mesh else 10**15)
    return module


@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
@pytest.mark.parametrize("supercell", ["primitive", "cubic", "skewed"])
@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("lattice, constant, ratio", MADELUNG)
def test_madelung_constants(batch, lattice, constant, ratio, scale, supercell, mesh):
    a = 4.0 * scale
    if supercell == "cubic" and lattice != "cesiumchloride":
        atoms = bulk("NaCl", lattice, a=a, cubic=True)
    else:
        atoms = bulk("NaCl", lattice, a=a)
    if supercell == "skewed":
        atoms = make_supercell(atoms, [[1, 1, 0], [0, 1, 0], [-1, 0, 2]])
    charges = np.where(atoms.symbols == "Na", 1.0, -1.0)[:, None]
    data = batch([atoms], [charges], 6.0)
    energy = (data.charges * data.potentials(tight(mesh))).sum()
    num_units = len(atoms) // 2
    assert energy.item() / num_units == pytest.approx(-constant / (ratio * a), rel=1e-7)


@pytest.mark.parametrize("length", [2.5, 4.0, 9.0])
@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
def test_charge_in_neutralising_background(batch, length, mesh):
    """One charge per cubic cell: the constant of the simple cubic Wigner lattice."""
    atoms = ase.Atoms("H", positions=[[0.4, 0.1, 0.7]], cell=np.eye(3) * length, pbc=True)
    data = batch([atoms], [[[1.0]]], 6.0)
    potential = data.potentials(tight(mesh)).item()
    assert potential == pytest.approx(-0.5 * 2.837297479480620 / length, rel=1e-7)


@pytest.mark.parametrize("length", [2.5, 4.0, 9.0])
def test_charged_layer(batch, length):
    """One charge per square: the constant of the square lattice of charges (Bonsall and Maradudin,
    Phys. Rev. B 15, 1959 (1977)), whose background lies in the plane."""
    atoms = ase.Atoms("H", cell=np.diag([length, length, 0.0]), pbc=[True, True, False])
    data = batch([atoms], [[[1.0]]], 6.0)
    potential = data.potentials(tight()).item()
    assert potential == pytest.approx(-0.5 * 3.900264920001956 / length, rel=1e-7)


@pytest.mark.parametrize("distance", [8.0, 15.0, 27.0, 50.0])
def test_isolated_charges_act_at_any_distance(batch, distance):
    atoms = ase.Atoms("HH", positions=[[1.0, -2.0, 0.5], [1.0, -2.0, 0.5 + distance]])
    data = batch([atoms], [[[1.0], [-0.7]]], 5.0)
    expected = torch.tensor([[-0.35 / distance], [0.5 / distance]], dtype=torch.float64)
    torch.testing.assert_close(data.potentials(tight()), expected, rtol=1e-14, atol=0.0)
