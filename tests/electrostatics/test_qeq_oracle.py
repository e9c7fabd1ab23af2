"""The oracle of charge equilibration against itself by other routes and against closed forms."""

import numpy as np
import pytest
from helpers import qeq_oracle as oracle
from helpers.qeq_cases import BOUNDARIES, NAMES

CELL = np.array([[5.2, 0.3, -0.4], [1.6, 4.7, 0.5], [-0.9, 1.1, 5.8]])
FRACTIONS = np.array(
    [
        [0.03, 0.05, 0.07],
        [0.52, 0.11, 0.22],
        [0.14, 0.57, 0.31],
        [0.47, 0.55, 0.48],
        [0.09, 0.18, 0.61],
        [0.61, 0.43, 0.85],
    ]
)
POSITIONS = FRACTIONS @ CELL
# covalent radii of hydrogen, oxygen and sodium
WIDTHS = np.array([0.31, 0.66, 1.66, 0.31, 0.66, 1.66])
HARDNESS = np.array([1.2, 0.9, 0.4, 1.2, 0.9, 0.4])
ELECTRONEGATIVITY = np.array([0.11, 0.35, -0.22, 0.08, 0.41, -0.17])


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


@pytest.mark.parametrize("smearing", [0.5, 0.9, 1.7])
def test_two_routes(smearing):
    direct = oracle.periodic_matrix(POSITIONS, CELL, WIDTHS)
    other = oracle.periodic_matrix_point_charges(POSITIONS, CELL, WIDTHS, smearing)
    np.testing.assert_allclose(other, direct, rtol=0.0, atol=2e-13)


def test_background_of_gaussians_matters():
    """Left out, charges of a charged cell change, for unequal widths."""
    direct = oracle.periodic_matrix(POSITIONS, CELL, WIDTHS)
    wrong = oracle.periodic_matrix_point_charges(POSITIONS, CELL, WIDTHS, 0.9, background=False)
    volume = abs(np.linalg.det(CELL))
    missing = 2.0 * np.pi * oracle.variances(WIDTHS) / volume
    np.testing.assert_allclose(direct - wrong, missing, rtol=0.0, atol=2e-13)
    right, other = [oracle.solve(m, HARDNESS, ELECTRONEGATIVITY, 1.0)[0] for m in (direct, wrong)]
    assert abs(right - other).max() > 1e-2


def test_converged_in_k():
    more = oracle.periodic_matrix(POSITIONS, CELL, WIDTHS, 1.2 * oracle.REACH / WIDTHS.min())
    np.testing.assert_allclose(
        oracle.periodic_matrix(POSITIONS, CELL, WIDTHS), more, rtol=0.0, atol=1e-14
    )


def test_periodic_matrix_is_positive_semidefinite():
    direct = oracle.periodic_matrix(POSITIONS, CELL, WIDTHS)
    assert np.linalg.eigvalsh(direct).min() > 0.0


def test_narrow_gaussians_are_point_charges():
    """The neutral sum without the charges' own energies, against ions of rocksalt."""
    # per pair of ions, for their distance; Borwein, Borwein and Taylor, J. Math. Phys. 26, 2999
    madelung = 1.747564594633182
    distance = 2.8
    cell = distance * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    positions = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
    charges = np.array([1.0, -1.0])
    # at less than a twelfth of the distance erf(a r) is one
    widths = np.array([0.2, 0.15])
    matrix = oracle.periodic_matrix(positions, cell, widths)
    own = 0.5 * (charges**2 / (widths * np.sqrt(np.pi))).sum()
    zero = np.zeros(2)
    energy = oracle.energies(matrix, zero, zero, charges, "celli").sum() - own
    assert energy * distance == pytest.approx(-madelung, abs=1e-12)


def test_isolated_is_the_transform():
    """(2/π) ∫ exp(-w k²/2) sin(kr)/(kr) dk, by the trapezoidal rule, which is exact here."""
    k, step = np.linspace(0.0, 20.0, 4001, retstep=True)
    r = np.linalg.norm(POSITIONS[:, None] - POSITIONS, axis=-1)[..., None]
    w = oracle.variances(WIDTHS)[..., None]
    values = np.exp(-0.5 * w * k**2) * np.sinc(k * r / np.pi)
    integral = 2.0 / np.pi * step * (values.sum(axis=-1) - 0.5 * values[..., 0])
    matrix = oracle.isolated_matrix(POSITIONS, WIDTHS)
    np.testing.assert_allclose(matrix, integral, rtol=0.0, atol=1e-14)


def test_large_cells_become_isolated():
    """Differences of elements, since the periodic ones have zero mean; L^-3 is left."""
    differences = []
    for length in [60.0, 120.0]:
        positions = POSITIONS - POSITIONS.mean(axis=0)
        matrix = oracle.periodic_matrix(positions, length * np.eye(3), np.full(6, 1.66))
        isolated = oracle.isolated_matrix(positions, np.full(6, 1.66))
        change = matrix - isolated
        # the interaction of two charges far apart in the lattice; Madelung constant of the cube
        np.testing.assert_allclose(change.mean(), -2.837297 / length, rtol=0.0, atol=4e-3)
        differences.append(abs(change - change[0, 0]).max())
    assert differences[1] / differences[0] == pytest.approx(1.0 / 8.0, rel=0.02)


@pytest.mark.parametrize("pbc", BOUNDARIES[1:4], ids=NAMES[1:4])
def test_slab_against_padded_cell(pbc):
    """
    A periodic sum along the normal, height H, is 2π/A (H/6 - |z| + z²/H) for planes of point
    charges; averaged over Gaussians and taken off, -2π|z|/A is left.
    """
    height = 60.0
    rotated, cell = POSITIONS @ rotation(3), CELL @ rotation(3)
    (free,) = np.flatnonzero(~np.array(pbc))
    normal = np.cross(cell[free - 2], cell[free - 1])
    normal /= np.linalg.norm(normal)
    padded = cell.copy()
    padded[free] = height * normal
    z = (rotated[:, None] - rotated) @ normal
    volume = abs(np.linalg.det(padded))
    expected = oracle.periodic_matrix(rotated, padded, WIDTHS)
    expected -= 2.0 * np.pi / volume * (z**2 + oracle.variances(WIDTHS) + height**2 / 6.0)
    # the vector along the free direction must not matter
    cell[free] = 0.0
    matrix = oracle.slab_matrix(rotated, cell, pbc, WIDTHS)
    np.testing.assert_allclose(matrix, expected, rtol=0.0, atol=1e-11)


def test_slab_far_apart():
    """Thick slabs: no overflow, and planes of charge act by their distance only."""
    positions = np.array([[0.0, 0.0, 0.0], [0.7, 0.2, 90.0]])
    cell = np.diag([4.0, 5.0, 0.0])
    matrix = oracle.slab_matrix(positions, cell, [True, True, False], np.array([0.31, 1.66]))
    assert matrix[0, 1] == pytest.approx(-2.0 * np.pi * 90.0 / 20.0, abs=1e-12)
    assert np.isfinite(matrix).all()


@pytest.mark.parametrize("pbc", BOUNDARIES, ids=NAMES)
@pytest.mark.parametrize("total_charge", [0.0, 1.0, -0.37])
def test_two_atoms(pbc, total_charge):
    """q_1 = (χ_2 - χ_1 + Q (J_2 + C_22 - C_12)) / (J_1 + J_2 + C_11 + C_22 - 2 C_12)."""
    matrix = oracle.coulomb_matrix(POSITIONS[1:3], CELL, pbc, WIDTHS[1:3])
    j1, j2 = HARDNESS[1:3]
    chi1, chi2 = ELECTRONEGATIVITY[1:3]
    (c11, c12), (_, c22) = matrix
    expected = chi2 - chi1 + total_charge * (j2 + c22 - c12)
    expected /= j1 + j2 + c11 + c22 - 2.0 * c12
    charges, mu = oracle.solve(matrix, HARDNESS[1:3], ELECTRONEGATIVITY[1:3], total_charge)
    np.testing.assert_allclose(charges, [expected, total_charge - expected], rtol=1e-12)
    assert mu == pytest.approx(-(chi1 + j1 * expected + matrix[0] @ charges), abs=1e-12)


@pytest.mark.parametrize("pbc", BOUNDARIES, ids=NAMES)
def test_charges_minimise_the_energy(pbc):
    matrix = oracle.coulomb_matrix(POSITIONS, CELL, pbc, WIDTHS)
    charges, _ = oracle.solve(matrix, HARDNESS, ELECTRONEGATIVITY, 1.0)
    assert charges.sum() == pytest.approx(1.0, abs=1e-12)
    lowest = oracle.energies(matrix, HARDNESS, ELECTRONEGATIVITY, charges).sum()
    shifts = np.random.default_rng(0).normal(size=(20, 6), scale=1e-2)
    for shift in shifts - shifts.mean(axis=1, keepdims=True):
        changed = charges + shift
        energy = oracle.energies(matrix, HARDNESS, ELECTRONEGATIVITY, changed).sum()
        # exactly quadratic around the minimum
        second_order = 0.5 * shift @ (matrix + np.diag(HARDNESS)) @ shift
        assert second_order > 0.0
        assert energy - lowest == pytest.approx(second_order, abs=1e-13)


def test_central_difference():
    """Exact for polynomials of fourth degree."""
    powers = np.arange(1, 5)[:, None]
    result = oracle.central_difference(lambda x: ((1.0 + x) ** powers).sum(), (2,))
    np.testing.assert_allclose(result, 1.0 + 2.0 + 3.0 + 4.0, rtol=1e-11)


@pytest.mark.parametrize("pbc", BOUNDARIES, ids=NAMES)
def test_derivatives(pbc):
    """
    In the variational mode charges need not follow (their energy is stationary); in the other one
    they must. No net force, no torque: the derivative by the strain is symmetric.
    """
    cell = CELL * np.array(pbc)[:, None]
    others = (pbc, WIDTHS, HARDNESS, ELECTRONEGATIVITY, 1.0)
    matrix = oracle.coulomb_matrix(POSITIONS, cell, pbc, WIDTHS)
    charges, _ = oracle.solve(matrix, HARDNESS, ELECTRONEGATIVITY, 1.0)

    def frozen(displacement):
        moved = oracle.coulomb_matrix(POSITIONS + displacement, cell, pbc, WIDTHS)
        return oracle.energies(moved, HARDNESS, ELECTRONEGATIVITY, charges).sum()

    partial = -oracle.central_difference(frozen, POSITIONS.shape)
    for mode, stationary in [("variational", True), ("celli", False)]:
        forces, strain = oracle.forces_and_strain_derivative(POSITIONS, cell, *others, mode)
        np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-9)
        np.testing.assert_allclose(strain, strain.T, atol=1e-9)
        assert (abs(forces - partial).max() < 1e-9) == stationary
