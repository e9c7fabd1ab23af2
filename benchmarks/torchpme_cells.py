"""torch-pme's P3M beside what would change it: error in cells of several shapes, and parts of it.

    pip install torch-pme
    OMP_NUM_THREADS=1 python benchmarks/torchpme_cells.py

The table has errors of the potentials of random charges (root mean square, relative) against
torch-pme's own Ewald sum, in double precision, at the smearing and mesh spacing that metatrain's
models have by default, and at half this spacing. torch-pme takes twice as many points as
``mesh_spacing`` says and rounds them up to a power of two: the cell vectors are such that 1.33 Å
means 0.62 Å, or 0.46 Å along the long ones. The first column is ``P3MCalculator`` as it is; the
second has the phases of the waves along the cell vectors in its filter; the third is
``PMECalculator`` (Lagrange interpolation) with as many nodes. Below are the error of the real-space
part in single precision, and the time of spreading ten channels of charges on the mesh.
"""

import argparse
import math
import time
from collections.abc import Callable

import ase
import numpy as np
import torch
from ase.neighborlist import neighbor_list
from torchpme import CoulombPotential, EwaldCalculator, P3MCalculator, PMECalculator
from torchpme.lib import MeshInterpolator, P3MKSpaceFilter

SMEARING = 1.4  # Å, metatrain's default
MESH_SPACING = 1.33  # Å, metatrain's default
NODES = 5
CUTOFF = 10.0  # Å, of the pairs: erfc(10 / 1.4 √2) = 1e-12
A, C = 9.9, 14.85  # Å


class PhaseFilter(P3MKSpaceFilter):
    """Influence function from the phases k·a/n along the cell vectors: right in any cell."""

    def _compute_influence(self, kvectors: torch.Tensor) -> torch.Tensor:
        phases = kvectors @ self.cell.T / self.ns_mesh
        return 1.0 / self._charge_assignment(phases)


def rotation(angle: float) -> np.ndarray:
    """Rotation about z by an angle in degrees, [3, 3]."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


ORTHORHOMBIC = np.diag([A, C, A])
CELLS = {
    "cubic": np.eye(3) * A,
    "orthorhombic, 1 : 1.5": ORTHORHOMBIC,
    "the same, rotated by 45°": ORTHORHOMBIC @ rotation(45.0),
    "the same, left-handed": ORTHORHOMBIC[[1, 0, 2]],
    "hexagonal": np.array([[A, 0, 0], [-A / 2, A * np.sqrt(0.75), 0], [0, 0, C]]),
    "fcc, primitive": np.array([[0, A, A], [A, 0, A], [A, A, 0]]) / np.sqrt(2.0),
}


def errors(cell: np.ndarray, mesh_spacing: float) -> list[float]:
    """Relative errors of P3M, of P3M with the other filter, and of PME.

    :param cell: cell vectors in rows, [3, 3], Å
    :param mesh_spacing: as torch-pme takes it, Å
    """
    generator = np.random.default_rng(0)
    atoms = ase.Atoms("X32", scaled_positions=generator.random((32, 3)), cell=cell, pbc=True)
    first, second, distances = neighbor_list("ijd", atoms, CUTOFF)
    structure = (
        torch.tensor(generator.normal(size=(32, 4))),  # none of the four channels is neutral
        torch.tensor(cell),
        torch.tensor(atoms.positions),
        torch.tensor(np.stack([first, second], axis=1)),
        torch.tensor(distances),
    )

    def potentials(calculator: torch.nn.Module) -> torch.Tensor:
        return calculator.to(torch.float64)(*structure)

    coulomb = CoulombPotential(smearing=SMEARING)
    kwargs = {"full_neighbor_list": True}
    exact = potentials(EwaldCalculator(coulomb, lr_wavelength=SMEARING / 2, **kwargs))
    p3m = P3MCalculator(coulomb, mesh_spacing, NODES, **kwargs)
    changed = P3MCalculator(coulomb, mesh_spacing, NODES, **kwargs)
    changed.kspace_filter = PhaseFilter(
        torch.eye(3), torch.ones(3, dtype=torch.long), NODES, coulomb, "backward", "forward"
    )
    pme = PMECalculator(coulomb, mesh_spacing, NODES, **kwargs)
    return [float((potentials(c) - exact).norm() / exact.norm()) for c in (p3m, changed, pme)]


def real_space_errors(distance: float) -> tuple[float, float]:
    """Largest relative errors of the real-space part in single precision, near a distance.

    :param distance: Å
    :return: of 1/r - erf/r, as torch-pme has it, and of erfc/r; at LOREM's default smearing
    """
    smearing = 1.022
    r = torch.linspace(distance - 0.05, distance + 0.05, 10001, dtype=torch.float64)
    scale = math.sqrt(2.0) * smearing
    exact = torch.erfc(r / scale) / r
    difference = CoulombPotential(smearing=smearing).to(torch.float32).sr_from_dist(r.float())
    direct = torch.erfc(r.float() / scale) / r.float()
    return tuple(float((value / exact - 1.0).abs().max()) for value in (difference, direct))


def milliseconds(work: Callable) -> float:
    """Shortest of eight calls."""
    times = []
    for _ in range(8):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def spreading(atoms: int, points: int, channels: int = 10) -> tuple[float, float]:
    """Milliseconds to spread charges and to differentiate: one channel after the other, as
    torch-pme does, and all in one ``index_add``.

    :param atoms: number of atoms
    :param points: of the mesh along each axis
    :param channels: of charges
    """
    cell = 0.53 * points * torch.eye(3)
    charges = torch.randn(atoms, channels, requires_grad=True)
    mesh = MeshInterpolator(cell, torch.tensor([points] * 3), NODES, "P3M")
    mesh.compute_weights(torch.rand(atoms, 3) @ cell)

    def all_channels() -> torch.Tensor:
        x, y, z = mesh.interpolation_weights.unbind(dim=2)
        weights = x[mesh.x_shifts] * y[mesh.y_shifts] * z[mesh.z_shifts]
        index = (mesh.x_indices * points + mesh.y_indices) * points + mesh.z_indices
        shares = (weights.unsqueeze(2) * charges).flatten(0, 1)
        values = torch.zeros(points**3, channels).index_add(0, index.flatten(), shares)
        return values.T.reshape(channels, points, points, points)

    torch.testing.assert_close(all_channels(), mesh.points_to_mesh(charges))
    work = (lambda: mesh.points_to_mesh(charges), all_channels)
    return tuple(milliseconds(lambda w=w: w().square().sum().backward()) for w in work)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for mesh_spacing in (MESH_SPACING, MESH_SPACING / 2):
        print(f"mesh_spacing {mesh_spacing} Å\n{'':26}{'P3M':>10}{'phases':>10}{'PME':>10}")
        for name, cell in CELLS.items():
            print(f"{name:26}" + "".join(f"{e:10.1e}" for e in errors(cell, mesh_spacing)))

    print("relative error of the real-space part, single precision: 1/r - erf/r, erfc/r")
    for distance in (2.0, 3.0, 4.0, 5.0):
        print(f"{distance} Å" + "".join(f"{e:10.1e}" for e in real_space_errors(distance)))
    print("spreading ten channels, with derivatives (ms): channel by channel, together")
    for atoms, points in ((216, 32), (1728, 64)):
        print(f"{atoms} atoms" + "".join(f"{t:8.1f}" for t in spreading(atoms, points)))
