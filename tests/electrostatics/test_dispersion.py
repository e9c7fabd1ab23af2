"""The sum of 1/r⁶ against direct sums over images, and against torch-pme's own functions."""

import ase
import numpy as np
import pytest
import torch
from helpers.batches import tune
from scipy.special import gammainc
from torchpme import InversePowerLawPotential

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum
from metatrain_lorem.electrostatics.kernels import SmoothDispersion

CUTOFF = 5.0
CELLS = {
    "triclinic": [[6.1, 0.4, -0.7], [1.5, 5.3, 0.9], [-1.8, 1.2, 6.4]],
    "left-handed": [[0.3, 5.9, 0.0], [6.3, 0.2, 0.1], [1.0, -1.0, 6.0]],
    "small": [[2.5, 0.0, 0.0], [0.4, 3.1, 0.0], [-0.6, 0.3, 2.8]],
}


def kernel(r, smearing):
    return gammainc(3.0, 0.5 * (r / smearing) ** 2) / r**6


def direct_sum(atoms, charges, smearing, radius=80.0, moves=False):
    """All images within a radius, and the mean of those beyond it.

    :param moves: for differences: the same images wherever the atoms are
    """
    cell = np.array(atoms.cell)
    images = [np.zeros(3)]
    if atoms.pbc.all():
        bounds = np.ceil(radius * np.linalg.norm(np.linalg.inv(cell), axis=0)).astype(int)
        grids = np.meshgrid(*[np.arange(-b, b + 1) for b in bounds], indexing="ij")
        images = np.stack(grids, -1).reshape(-1, 3) @ cell
        if moves:
            images = images[np.linalg.norm(images, axis=1) < radius]
    result = np.zeros_like(charges)
    for i, position in enumerate(atoms.positions):
        for j, other in enumerate(atoms.positions):
            r = np.linalg.norm(other - position + images, axis=-1)
            r = r[(r > 1e-10) & (moves | (r < radius))]
            result[i] += kernel(r, smearing).sum() * charges[j]
    if atoms.pbc.all():
        beyond = 4.0 * np.pi / 3.0 / radius**3 / abs(np.linalg.det(cell))
        result += beyond * charges.sum(axis=0)
    return 0.5 * result


@pytest.mark.parametrize("mesh", [False, True], ids=["k-vectors", "mesh"])
@pytest.mark.parametrize("cell", CELLS)
def test_periodic(batch, random_structure, random_charges, cell, mesh):
    """Values, and derivatives by positions as differences of the direct sum."""
    atoms = random_structure(4, [True] * 3, 3, CELLS[cell])
    charges = random_charges(4, 2, 4) + 0.5
    module = CoulombSum(CUTOFF, 1e-10, exponent=6)
    tune(module, mesh_threshold=0 if mesh else 10**15)
    smearing = float(module.potential.smearing)
    data = batch([atoms], [charges], CUTOFF)
    positions = data.positions.clone().requires_grad_()
    potentials = data.potentials(module, positions=positions)
    expected = direct_sum(atoms, charges, smearing)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(potentials.detach(), expected, rtol=0.0, atol=1e-7 * scale)

    weights = torch.tensor(np.random.default_rng(5).normal(size=(4, 2)))
    (gradient,) = torch.autograd.grad((potentials * weights).sum(), positions)
    step = 1e-3
    for index in [(0, 0), (2, 1)]:
        values = []
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.positions[index] += sign * step
            sums = direct_sum(moved, charges, smearing, moves=True)
            values.append((sums * weights.numpy()).sum())
        difference = (values[0] - values[1]) / (2.0 * step)
        assert gradient[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-5 * scale)


def test_isolated(batch, random_structure, random_charges):
    atoms = random_structure(7, [False] * 3, 6)
    atoms.positions[1] = atoms.positions[0] + [0.01, 0.0, 0.02]
    charges = random_charges(7, 2, 7)
    module = CoulombSum(CUTOFF, 1e-6, exponent=6)
    data = batch([atoms], [charges], CUTOFF)
    expected = direct_sum(atoms, charges, float(module.potential.smearing))
    np.testing.assert_allclose(data.potentials(module), expected, rtol=1e-9)


def test_distant_atoms_feel_the_inverse_sixth_power(batch):
    for distance in (6.0, 9.0, 14.0):
        atoms = ase.Atoms("H2", positions=[[0.0, 0.0, 0.0], [0.0, 0.0, distance]])
        data = batch([atoms], [[[1.0], [3.0]]], CUTOFF)
        potentials = data.potentials(CoulombSum(CUTOFF, 1e-6, exponent=6))
        expected = torch.tensor([[1.5], [0.5]], dtype=torch.float64) / distance**6
        torch.testing.assert_close(potentials, expected, rtol=1e-5, atol=0.0)


def test_supercell_and_batch(batch, random_structure, random_charges):
    """The term of k = 0, in all ways of summing."""
    atoms = random_structure(5, [True] * 3, 8)
    charges = random_charges(5, 1, 9) + 1.0
    module = CoulombSum(CUTOFF, 1e-8, exponent=6)
    one = batch([atoms, atoms.repeat((2, 1, 2))], [charges, np.tile(charges, (4, 1))], CUTOFF)
    explicit = one.potentials(module)
    torch.testing.assert_close(explicit[5:], explicit[:5].repeat(4, 1), rtol=1e-7, atol=1e-10)
    tune(module, mesh_threshold=0)
    torch.testing.assert_close(one.potentials(module), explicit, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_of_torch_pme(dtype):
    """The same interaction, where torch-pme evaluates it without overflow."""
    own = SmoothDispersion(1.1).to(dtype)
    other = InversePowerLawPotential(6, smearing=1.1, prefactor=0.5).to(torch.float64)
    r = torch.linspace(0.3, 12.0, 40, dtype=dtype)
    k_squared = torch.linspace(0.01, 30.0, 40, dtype=dtype)
    tolerance = {"rtol": 2e-5 if dtype == torch.float32 else 1e-10, "check_dtype": False}
    torch.testing.assert_close(
        own.from_dist(r), other.lr_from_dist(r.double()), atol=0, **tolerance
    )
    torch.testing.assert_close(
        own.lr_from_k_sq(k_squared),
        other.lr_from_k_sq(k_squared.double()),
        atol=1e-6 if dtype == torch.float32 else 1e-13,
        **tolerance,
    )
    torch.testing.assert_close(
        own.self_contribution(), other.self_contribution(), atol=0, **tolerance
    )
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(
        -2.0 * own.background_correction(), other.lr_from_k_sq(zero), atol=0, **tolerance
    )


@pytest.mark.parametrize("pbc", [[False] * 3, [True, True, False], [True] * 3])
def test_scripted_and_second_derivatives(batch, random_structure, random_charges, pbc):
    atoms = random_structure(3, pbc, 11)
    data = batch([atoms], [random_charges(3, 1, 12)], 3.0)
    module = CoulombSum(3.0, 1e-2, exponent=6)
    scripted = torch.jit.script(module)
    for _ in range(3):
        torch.testing.assert_close(data.potentials(scripted), data.potentials(module))

    def potentials(charges, positions, strain):
        return data.potentials(module, charges, positions, strain)

    arguments = (
        data.charges.clone().requires_grad_(),
        data.positions.clone().requires_grad_(),
        torch.zeros(3, 3, dtype=torch.float64, requires_grad=True),
    )
    torch.autograd.gradcheck(potentials, arguments, atol=1e-7)
    torch.autograd.gradgradcheck(potentials, arguments, atol=1e-6)
