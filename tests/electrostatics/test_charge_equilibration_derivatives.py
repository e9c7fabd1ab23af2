"""Forces, stresses and second derivatives of energies whose charges respond."""

import numpy as np
import pytest
import torch
from helpers import qeq_oracle as oracle
from helpers.qeq_cases import BOUNDARIES, K_E, Energy, Structures, make_module


@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
@pytest.mark.parametrize("energy", ["variational", "celli"])
@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("pbc", [BOUNDARIES[i] for i in (0, 2, 4)], ids=["FFF", "TFT", "TTT"])
def test_forces_and_stress(batch, three_species, pbc, solver, energy, scripted):
    """Finite differences of the oracle with charges solved again."""
    data = Structures(batch, [three_species(6, pbc)], [1.0])
    module = make_module(solver, energy)
    total = Energy(module)
    if scripted:
        total = torch.jit.script(total)
    positions = data.data.positions.clone().requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    value = total(*data.arguments(positions, strain))
    by_positions, by_strain = torch.autograd.grad(value, [positions, strain])
    expected = oracle.forces_and_strain_derivative(*data.expected(module, 0), energy)
    for got, wanted in zip([-by_positions, by_strain], expected, strict=True):
        atol = 1e-6 * K_E * np.sqrt((wanted**2).mean())
        np.testing.assert_allclose(got.numpy(), K_E * wanted, rtol=0.0, atol=atol)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("pbc", [BOUNDARIES[i] for i in (0, 2, 4)], ids=["FFF", "TFT", "TTT"])
def test_second_derivatives(batch, three_species, pbc, solver):
    """By positions, cell, electronegativities, hardness and widths, of energies and charges."""
    data = Structures(batch, [three_species(4, pbc)], [1.0])
    # central differences feel the tolerance of the solver, not that of the sums
    module = make_module(solver, accuracy=1e-6, learn_widths=True, tolerance=1e-14)
    hardness = module.hardness()[data.species] + torch.tensor([0.1, -0.2, 0.3, 0.0])
    weights = torch.tensor([0.3, -0.8, 0.5, 1.1], dtype=torch.float64)

    def function(positions, strain, chi, hardness, raw_widths):
        data.hardness = hardness
        parameters = {"raw_widths": raw_widths}
        with torch.nn.utils.stateless._reparametrize_module(module, parameters):
            result = data.solve(module, positions=positions, strain=strain, chi=chi)
        return result.energies.sum() + (result.charges**2 * weights).sum()

    inputs = [
        data.data.positions,
        torch.zeros(3, 3, dtype=torch.float64),
        data.data.charges[:, 0],
        hardness.detach(),
        module.raw_widths.detach(),
    ]
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(
        function, inputs, eps=1e-5, atol=1e-5, rtol=1e-5, fast_mode=True
    )
