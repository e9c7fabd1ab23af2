"""Forces, stresses, derivatives by charges, and second derivatives."""

import numpy as np
import pytest
import torch
from helpers.batches import slab_height, tune

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum

CUTOFF = 5.0


def energy(data, module, positions, strain):
    """A nonlinear function of the potentials, so that second derivatives by charges matter."""
    potentials = data.potentials(module, data.charges, positions, strain)
    return (potentials.square() * data.charges).sum() + (potentials * data.charges).sum()


@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
@pytest.mark.parametrize("chunks", [False, True], ids=["whole", "chunks"])
@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
@pytest.mark.parametrize(
    "pbc",
    [[False] * 3, [True, True, False], [True, False, True], [False, True, True], [True] * 3],
    ids=["FFF", "TTF", "TFT", "FTT", "TTT"],
)
def test_forces_and_stress(batch, random_structure, random_charges, pbc, mesh, chunks, scripted):
    """Central differences; the k-vectors and the mesh stay the same under these small steps."""
    atoms = random_structure(7, pbc, 41)
    data = batch([atoms], [random_charges(7, 3, 42)], CUTOFF)
    module = CoulombSum(CUTOFF, accuracy=1e-6)
    tune(module, mesh_threshold=0 if mesh else 10**15)
    tune(module, max_terms=100 if chunks else module.settings.max_terms)
    if scripted:
        module = torch.jit.script(module)
    positions = data.positions.clone().requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(energy(data, module, positions, strain), [positions, strain])

    step = 1e-4
    with torch.no_grad():
        for variable, gradient in zip([positions, strain], gradients, strict=True):
            differences = torch.zeros_like(gradient)
            for index in np.ndindex(*gradient.shape):
                values = []
                for sign in [1.0, -1.0]:
                    variable[index] += sign * step
                    values.append(energy(data, module, positions, strain))
                    variable[index] -= sign * step
                differences[index] = (values[0] - values[1]) / (2.0 * step)
            error = (differences - gradient).abs().max()
            assert error < 1e-6 * gradient.square().mean().sqrt()


@pytest.mark.parametrize("chunks", [False, True], ids=["whole", "chunks"])
@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
@pytest.mark.parametrize(
    "pbc", [[False] * 3, [True, False, True], [True] * 3], ids=["FFF", "TFT", "TTT"]
)
def test_first_and_second_derivatives(
    batch, random_structure, random_charges, pbc, mesh, chunks, monkeypatch
):
    atoms = random_structure(3, pbc, 43)
    data = batch([atoms], [random_charges(3, 2, 44)], 3.0)
    # few k-vectors: derivatives are exact whatever the accuracy
    module = CoulombSum(3.0, accuracy=1e-2)
    tune(module, mesh_threshold=0 if mesh else 10**15)
    tune(module, max_terms=10 if chunks else module.settings.max_terms)
    if any(pbc) and not all(pbc):
        slab_height(monkeypatch, 8.0)

    def potentials(charges, positions, strain):
        return data.potentials(module, charges, positions, strain)

    arguments = (
        data.charges.clone().requires_grad_(),
        data.positions.clone().requires_grad_(),
        torch.zeros(3, 3, dtype=torch.float64, requires_grad=True),
    )
    torch.autograd.gradcheck(potentials, arguments, atol=1e-6)
    torch.autograd.gradgradcheck(potentials, arguments, atol=1e-5)


def test_training_on_forces(batch, mixed_structures):
    """A loss on forces gives finite derivatives for every kind of structure in a batch."""
    rng = np.random.default_rng(45)
    charges = [rng.normal(size=(len(a), 2)) for a in mixed_structures]
    data = batch(mixed_structures, charges, CUTOFF)
    module = torch.jit.script(CoulombSum(CUTOFF, accuracy=1e-6))
    data.charges.requires_grad_()
    data.positions.requires_grad_()
    potentials = data.potentials(module)
    (forces,) = torch.autograd.grad(
        (data.charges * potentials).sum(), data.positions, create_graph=True
    )
    forces.square().sum().backward()
    assert torch.isfinite(data.charges.grad).all()
    assert torch.isfinite(data.positions.grad).all()
    lonely = torch.bincount(data.system_index) == 1
    assert torch.all(data.charges.grad[~lonely[data.system_index]] != 0.0)
