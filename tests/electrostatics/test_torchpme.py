"""torch-pme, an independent program, as the oracle of both solvers."""

import ase
import numpy as np
import pytest
import torch
from helpers.batches import tune
from torchpme import CoulombPotential as TorchPMECoulomb
from torchpme import EwaldCalculator, P3MCalculator

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum

CUTOFF = 5.0
CUBIC = np.eye(3) * 9.7
TRICLINIC = np.array([[9.1, 0.4, -0.7], [2.5, 8.3, 0.9], [-1.8, 2.2, 10.4]])


@pytest.mark.parametrize("solver", ["ewald", "mesh"])
@pytest.mark.parametrize(
    "calculator, cell",
    # its P3M is right for orthorhombic cells only
    [(EwaldCalculator, CUBIC), (EwaldCalculator, TRICLINIC), (P3MCalculator, CUBIC)],
)
def test_potentials(batch, solver, calculator, cell):
    generator = np.random.default_rng(3)
    atoms = ase.Atoms("X24", scaled_positions=generator.random((24, 3)), cell=cell, pbc=True)
    charges = generator.normal(size=(24, 3))  # none of the channels is neutral
    structure = batch([atoms], [charges], CUTOFF)
    module = CoulombSum(CUTOFF, 1e-8)
    tune(module, mesh_threshold=0 if solver == "mesh" else 10**9)

    smearing = module.settings.smearing
    if calculator is EwaldCalculator:
        reference = calculator(
            TorchPMECoulomb(smearing=smearing), lr_wavelength=0.3, full_neighbor_list=True
        )
    else:
        reference = calculator(
            TorchPMECoulomb(smearing=smearing),
            mesh_spacing=0.31,
            interpolation_nodes=5,
            full_neighbor_list=True,
        )
    shifts = structure.shifts @ structure.cells[0]
    vectors = (
        structure.positions[structure.neighbors] - structure.positions[structure.centers] + shifts
    )
    expected = reference.to(torch.float64)(
        structure.charges,
        structure.cells[0],
        structure.positions,
        torch.stack([structure.centers, structure.neighbors], dim=1),
        torch.linalg.vector_norm(vectors, dim=1),
    )
    potentials = structure.potentials(module)
    tolerance = 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(potentials, expected, rtol=0, atol=tolerance)
