"""Batches of structures as the Coulomb module sees them."""

import ase
import numpy as np
import pytest
from helpers.batches import make_batch, make_random_charges, make_random_structure


@pytest.fixture
def batch():
    return make_batch


@pytest.fixture
def random_structure():
    return make_random_structure


@pytest.fixture
def random_charges():
    return make_random_charges


@pytest.fixture
def three_species(random_structure):
    """Hydrogen, oxygen and sodium, in turn, in a cell of any shape and orientation."""

    def make(num_atoms, pbc, seed=3):
        atoms = random_structure(num_atoms, pbc, seed)
        atoms.numbers = [[1, 8, 11][i % 3] for i in range(num_atoms)]
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
        return ase.Atoms(
            atoms.numbers, atoms.positions @ rotation, cell=atoms.cell @ rotation, pbc=pbc
        )

    return make


@pytest.fixture
def mixed_structures():
    """Isolated, slab, periodic; one atom and none among them; similar and different sizes."""
    return [
        make_random_structure(7, [True] * 3, 1),
        make_random_structure(12, [False] * 3, 2),
        ase.Atoms("H", positions=[[1.0, 2.0, 3.0]]),
        make_random_structure(5, [True, False, True], 3),
        ase.Atoms(pbc=True, cell=np.eye(3) * 4.0),
        make_random_structure(25, [True] * 3, 4),
        make_random_structure(3, [False] * 3, 5),
        ase.Atoms("H", positions=[[0.3, 0.2, 0.1]], pbc=True, cell=np.eye(3) * 3.0),
        make_random_structure(9, [True, True, False], 6),
        make_random_structure(10, [False] * 3, 7),
        make_random_structure(6, [True] * 3, 8),
        make_random_structure(8, [True] * 3, 9),
    ]
