"""Crystals: what symmetry makes zero must stay zero, and the potential smooth there."""

import ase.build
import numpy as np
import pytest
import torch
from helpers import models
from metatomic.torch import ModelOutput

CRYSTALS = {
    "bcc": ase.build.bulk("Na", "bcc", 4.29, cubic=True).repeat(2),
    "diamond": ase.build.bulk("C", "diamond", 3.57, cubic=True),
    "CsCl": ase.build.bulk("NaCl", "cesiumchloride", 3.4).repeat(2),
    "rocksalt": ase.build.bulk("NaCl", "rocksalt", 5.64, cubic=True),
}


def new_model(**hypers):
    return models.new_model(
        atomic_types=(6, 8, 11, 17), charge_equilibration={"enable": True}, **hypers
    )


def forces(model, frame, dtype=torch.float64):
    (system,) = models.systems(model, [frame])
    system = system.to(dtype=dtype)
    system.positions.requires_grad_()
    energy = model([system], {"energy": ModelOutput(sample_kind="system")})["energy"]
    return -torch.autograd.grad(energy.block().values.sum(), system.positions)[0].double()


@pytest.mark.parametrize("dtype, largest", [(torch.float32, 2e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("name", CRYSTALS)
def test_no_forces_in_crystals(name, dtype, largest):
    """In any orientation; relative to those of atoms moved by 0.1 Å.

    In single precision what is left comes from the positions, which are rounded by 5e-7 Å. LOREM's
    own norms left forces of any size.
    """
    rng = np.random.default_rng(1)
    crystal = CRYSTALS[name].copy()
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    crystal.set_cell(crystal.cell.array @ rotation)
    crystal.positions = crystal.positions @ rotation + rng.normal(size=3)
    moved = crystal.copy()
    moved.rattle(0.1, seed=2)
    model = new_model()
    scale = forces(model, moved).abs().max()
    assert forces(model.to(dtype), crystal, dtype).abs().max() < largest * scale


@pytest.mark.parametrize("name", CRYSTALS)
def test_force_constants_converge(name):
    """Forces over displacements: differences of second order, where cusps diverge as 1/h."""
    model = new_model()

    def constants(h):
        found = []
        for sign in (1.0, -1.0):
            frame = CRYSTALS[name].copy()
            frame.positions[0] += sign * h * np.array([0.6, 0.0, 0.8])
            found.append(forces(model, frame))
        return (found[0] - found[1]) / (2.0 * h)

    exact = constants(1e-5)
    errors = [(constants(h) - exact).abs().max() / exact.abs().max() for h in (1e-3, 1e-4)]
    # random weights: features change much faster with positions than those of a trained model
    assert errors[1] < 0.1 * errors[0] and errors[1] < 0.02


def test_acoustic_modes_of_rocksalt(tmp_path):
    """Three of them without frequency at the centre of the zone."""
    from ase.phonons import Phonons
    from metatomic_ase import MetatomicCalculator

    path = tmp_path / "model.pt"
    new_model(long_range={"max_degree": 1}).export().save(str(path))
    crystal = ase.build.bulk("NaCl", "rocksalt", 5.64)
    calculator = MetatomicCalculator(path)
    phonons = Phonons(crystal, calculator, supercell=(2, 2, 2), delta=1e-4, name=tmp_path / "ph")
    phonons.run()
    phonons.read(acoustic=False)
    matrix = phonons.get_force_constant().sum(axis=0)
    masses = np.repeat(crystal.get_masses(), 3)
    dynamical = matrix / np.sqrt(np.outer(masses, masses))
    eigenvalues = np.linalg.eigvalsh(0.5 * (dynamical + dynamical.T))
    # eV/Å²/u to THz
    frequencies = np.sqrt(np.abs(eigenvalues)) * 15.633302
    assert np.sort(frequencies)[:3].max() < 0.1
