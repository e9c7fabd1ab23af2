"""Potentials against sums written out in NumPy from the textbook formulas."""

import numpy as np
import pytest
import torch
from helpers.batches import slab_height, tune
from scipy.special import erf, erfc

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum

CUTOFF = 5.0
SLAB_AXES = [[True, True, False], [True, False, True], [False, True, True]]


def direct_sum(positions, charges):
    r = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(r, np.inf)
    return 0.5 * (1.0 / r) @ charges


def lattice_points(vectors, radius):
    """Integer combinations of the rows of ``vectors``, all within the radius and some beyond."""
    inverse = np.linalg.pinv(vectors)
    bounds = np.ceil(radius * np.linalg.norm(inverse, axis=0)).astype(int)
    grids = np.meshgrid(*[np.arange(-b, b + 1) for b in bounds], indexing="ij")
    return np.stack(grids, -1).reshape(-1, len(vectors)) @ vectors


def real_space(positions, charges, images, alpha):
    total = np.zeros_like(charges)
    for image in images:
        r = np.linalg.norm(positions[:, None] - positions[None] + image, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = np.where(r > 1e-10, erfc(alpha * r) / r, 0.0)
        total += weight @ charges
    return total - 2.0 * alpha / np.sqrt(np.pi) * charges


def ewald_3d(positions, charges, cell, alpha):
    """Ewald sum with a neutralising background, another splitting and longer sums than ours."""
    volume = abs(np.linalg.det(cell))
    total = real_space(positions, charges, lattice_points(cell, 6.5 / alpha), alpha)
    for k in lattice_points(2.0 * np.pi * np.linalg.inv(cell).T, 13.0 * alpha):
        k2 = k @ k
        if k2 > 1e-10:
            wave = np.exp(1j * positions @ k)
            factor = 4.0 * np.pi / volume * np.exp(-k2 / (4.0 * alpha**2)) / k2
            total += factor * (wave[:, None] * (wave.conj() @ charges)).real
    total -= np.pi / (volume * alpha**2) * charges.sum(axis=0)
    return 0.5 * total


def ewald_2d(positions, charges, vectors, alpha):
    """Two-dimensional Ewald sum: Parry, Surf. Sci. 49, 433 (1975); de Leeuw and Perram,
    Mol. Phys. 37, 1313 (1979)."""
    normal = np.cross(*vectors)
    area = np.linalg.norm(normal)
    normal = normal / area
    total = real_space(positions, charges, lattice_points(vectors, 6.5 / alpha), alpha)
    difference = positions[:, None] - positions[None]
    z = difference @ normal
    reciprocal = 2.0 * np.pi * np.linalg.pinv(vectors).T
    for g in lattice_points(reciprocal, 13.0 * alpha):
        length = np.linalg.norm(g)
        if 1e-5 < length < 13.0 * alpha:
            profile = np.exp(length * z) * erfc(alpha * z + length / (2.0 * alpha))
            profile += np.exp(-length * z) * erfc(-alpha * z + length / (2.0 * alpha))
            total += np.pi / (area * length) * (np.cos(difference @ g) * profile) @ charges
    average = np.exp(-((alpha * z) ** 2)) / alpha + np.sqrt(np.pi) * z * erf(alpha * z)
    total -= 2.0 * np.sqrt(np.pi) / area * average @ charges
    return 0.5 * total


def tight(mesh=False):
    module = CoulombSum(CUTOFF, accuracy=1e-11)
    tune(module, mesh_threshold=0 if mesh else 10**15)
    return module


def test_isolated(batch, random_structure, random_charges):
    atoms = random_structure(30, [False] * 3, 0)
    charges = random_charges(30, 3, 0)
    data = batch([atoms], [charges], CUTOFF)
    expected = torch.tensor(direct_sum(atoms.positions, charges))
    torch.testing.assert_close(data.potentials(tight()), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
@pytest.mark.parametrize(
    "num_atoms, cell",
    [
        (12, None),
        (1, None),
        # smaller than the cutoff along every vector
        (2, [[2.5, 0.0, 0.0], [0.4, 3.1, 0.0], [-0.6, 0.3, 2.8]]),
        # very long, left-handed
        (8, [[0.3, 2.9, 0.0], [3.3, 0.2, 0.1], [1.0, -2.0, 26.0]]),
        # strongly skewed
        (5, [[4.0, 0.0, 0.0], [9.0, 4.0, 0.0], [-3.0, 7.0, 4.5]]),
    ],
    ids=["triclinic", "one-atom", "small", "long", "skewed"],
)
def test_periodic(batch, random_structure, random_charges, num_atoms, cell, mesh):
    atoms = random_structure(num_atoms, [True] * 3, 7, cell)
    charges = random_charges(num_atoms, 3, 1) + 0.3
    data = batch([atoms], [charges], CUTOFF)
    expected = torch.tensor(ewald_3d(atoms.positions, charges, np.array(atoms.cell), alpha=0.8))
    torch.testing.assert_close(data.potentials(tight(mesh)), expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
@pytest.mark.parametrize("pbc", SLAB_AXES, ids=["TTF", "TFT", "FTT"])
def test_slab(batch, random_structure, random_charges, pbc, mesh):
    """Random orientation and angle of the periodic vectors, any non-periodic axis, net charges."""
    rng = np.random.default_rng(3)
    cell = rng.normal(size=(3, 3)) + 3.0 * np.linalg.qr(rng.normal(size=(3, 3)))[0]
    atoms = random_structure(6, pbc, 8, cell)
    charges = random_charges(6, 3, 2)
    data = batch([atoms], [charges], CUTOFF)
    vectors = np.array(atoms.cell)[np.array(pbc)]
    expected = torch.tensor(ewald_2d(atoms.positions, charges, vectors, alpha=0.8))
    torch.testing.assert_close(data.potentials(tight(mesh)), expected, rtol=0.0, atol=1e-9)


def test_potentials_of_the_original_program(batch, shared, monkeypatch):
    """Charges and potentials recorded from lorem-jax, with its settings of the sum."""
    import ase.io

    reference = np.load(shared / "golden" / "small_reference.npz")
    structures = ase.io.read(shared / "golden" / "structures.xyz", ":")
    names = [atoms.info["name"] for atoms in structures]
    charges = [reference[f"{name}/mid/charges"] for name in names]
    expected = np.concatenate([reference[f"{name}/mid/potentials"] for name in names])
    module = CoulombSum(cutoff=5.0, accuracy=1e-6)
    tune(module, smearing=1.25, k_cutoff=6.5)
    slab_cell = np.load(shared / "golden" / "slab_effective_cell.npz")["effective_cell"]
    slab_height(monkeypatch, slab_cell[2, 2])
    result = batch(structures, charges, 5.0).potentials(module)
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-9, atol=1e-10)
