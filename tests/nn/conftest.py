"""Directions, rotations and graphs for the tests of the neural building blocks."""

from dataclasses import dataclass

import pytest
import torch
from helpers.graphs import Graph

from metatrain_lorem.nn.spherical import SphericalHarmonics


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unit_vectors(generator):
    vectors = torch.randn(200, 3, dtype=torch.float64, generator=generator)
    return vectors / vectors.norm(dim=-1, keepdim=True)


@dataclass
class Rotation:
    matrix: torch.Tensor
    components: torch.Tensor
    """of spherical tensors up to degree 6: harmonics of rotated vectors are harmonics @ this"""


@pytest.fixture
def rotation(unit_vectors, generator):
    """A random rotation and its representation, fitted to the harmonics themselves."""
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    matrix = matrix * torch.sign(torch.linalg.det(matrix))
    harmonics = SphericalHarmonics(6)
    before = harmonics(unit_vectors)
    after = harmonics(unit_vectors @ matrix)
    components = torch.zeros(49, 49, dtype=torch.float64)
    for degree in range(7):
        rows = slice(degree**2, (degree + 1) ** 2)
        fit = torch.linalg.lstsq(before[:, rows], after[:, rows]).solution
        assert torch.allclose(before[:, rows] @ fit, after[:, rows], rtol=0, atol=1e-12)
        components[rows, rows] = fit
    return Rotation(matrix, components)


@pytest.fixture
def graph(generator):
    """Six atoms of three species, the last atom without neighbours; degrees up to 2."""
    vectors = torch.randn(17, 3, dtype=torch.float64, generator=generator)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    return Graph(
        species=torch.tensor([2, 0, 0, 1, 2, 1]),
        centers=torch.randint(0, 5, (17,), generator=generator),
        neighbors=torch.randint(0, 5, (17,), generator=generator),
        radial=torch.rand(17, 4, dtype=torch.float64, generator=generator),
        harmonics=SphericalHarmonics(2)(vectors),
    )
