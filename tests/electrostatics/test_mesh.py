"""Pieces of the mesh solver."""

import math

import pytest
import torch
from helpers.batches import tune
from scipy.interpolate import BSpline

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum
from metatrain_lorem.electrostatics.mesh import smooth_size
from metatrain_lorem.electrostatics.splines import axis_influence, spline_weights


@pytest.mark.parametrize("order", [2, 4, 7, 12])
def test_spline_weights(order):
    offsets = torch.linspace(0.0, 0.99, 12, dtype=torch.float64)
    weights = spline_weights(offsets, order)
    spline = BSpline.basis_element(range(order + 1), extrapolate=False)
    expected = spline(offsets.unsqueeze(1) + torch.arange(order))
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-12, atol=1e-14)


def test_axis_influence():
    """Against the sum over aliases of the Fourier transform of the spline, written out."""
    size, order = 10, 7
    integers = torch.tensor([0.0, 1.0, -3.0, 5.0], dtype=torch.float64)
    aliases = integers.unsqueeze(1) / size + torch.arange(-60, 61)
    squared = torch.sinc(aliases) ** (2 * order)
    own = torch.sinc(integers / size) ** (2 * order)
    torch.testing.assert_close(
        axis_influence(integers, size, order), own / squared.sum(dim=1) ** 2, rtol=1e-12, atol=0.0
    )


def test_smooth_sizes():
    smooth = {2**a * 3**b * 5**c for a in range(9) for b in range(6) for c in range(4)}
    for minimum in [0.3, 1.0, 6.5, 7.0, 11.2, 49.0, 121.5, 250.0]:
        assert smooth_size(minimum) == min(n for n in smooth if n >= math.ceil(minimum))


def test_mesh_must_save_work(batch, random_structure, random_charges):
    """An accuracy that would fill the vacuum of a small slab with mesh points takes k-vectors."""
    structure = batch(
        [random_structure(60, [True, True, False], 1)], [random_charges(60, 1, 2)], 4.0
    )
    module = CoulombSum(4.0, 1e-12)
    expected = structure.potentials(module)
    tune(module, mesh_threshold=10**15)
    assert torch.equal(structure.potentials(module), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_channels_beside_large_ones(batch, random_structure, random_charges, dtype):
    """Two channels share a transform; the rounding errors of one must not reach the other."""
    charges = random_charges(20, 3, 5)
    data = batch([random_structure(20, [True] * 3, 4)], [charges], 4.0).to(dtype)
    module = CoulombSum(4.0, 1e-6)
    tune(module, mesh_threshold=0)
    expected = data.potentials(module)
    sizes = torch.tensor([1.0, 1e-12, 1e-24], dtype=dtype)
    data.charges = data.charges * sizes
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        data.potentials(module) / sizes, expected, rtol=tolerance, atol=tolerance
    )


C, S = math.cos(math.pi / 3), math.sin(math.pi / 3)
CELLS = {
    "hexagonal": [[9.0, 0.0, 0.0], [-9.0 * C, 9.0 * S, 0.0], [0.0, 0.0, 11.0]],
    "fcc primitive": [[0.0, 7.5, 7.5], [7.5, 0.0, 7.5], [7.5, 7.5, 0.0]],
    "rotated orthorhombic": [[5.7, 5.7, 0.0], [-8.5, 8.5, 0.0], [0.0, 0.0, 9.0]],
    "left-handed": [[0.0, 9.0, 0.0], [8.0, 0.0, 0.0], [0.0, 0.0, 10.0]],
}


@pytest.mark.parametrize("accuracy", [1e-4, 1e-6])
@pytest.mark.parametrize("cell", CELLS)
def test_mesh_in_cells_of_any_shape(batch, random_structure, random_charges, cell, accuracy):
    """torch-pme's own influence function misses by some percent in all but axis-aligned cells."""
    atoms = random_structure(40, [True] * 3, 6, CELLS[cell])
    data = batch([atoms], [random_charges(40, 3, 7)], 5.0)
    module = CoulombSum(5.0, accuracy)
    tune(module, mesh_threshold=10**15)
    expected = data.potentials(module)
    tune(module, mesh_threshold=0)
    error = (data.potentials(module) - expected).square().mean().sqrt()
    assert error < 2.0 * accuracy * expected.square().mean().sqrt()
