"""Batches of structures as the Coulomb module sees them."""

from dataclasses import dataclass

import ase
import numpy as np
import torch
from ase.neighborlist import neighbor_list

from metatrain_lorem import graph, systems
from metatrain_lorem.electrostatics import boundaries


@dataclass
class Batch:
    """Structures, one set of charges for each, and their pairs within the cutoff."""

    charges: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor
    pbc: torch.Tensor
    system_index: torch.Tensor
    centers: torch.Tensor
    neighbors: torch.Tensor
    shifts: torch.Tensor

    def to(self, dtype):
        floats = {k: v.to(dtype) for k, v in vars(self).items() if v.is_floating_point()}
        return Batch(**{**vars(self), **floats})

    def potentials(self, module, charges=None, positions=None, strain=None, least_vacuum=0.0):
        """Potentials, of other charges or positions or of the cell under a strain if given."""
        charges = self.charges if charges is None else charges
        return module(charges, self.graph(positions, strain, least_vacuum))

    def graph(
        self,
        positions=None,
        strain=None,
        least_vacuum=0.0,
        species=None,
        total_charge=None,
        angstrom=1.0,
    ):
        """What the model makes of the structures."""
        positions = self.positions if positions is None else positions
        cells = self.cells
        if strain is not None:
            deformation = torch.eye(3, dtype=cells.dtype) + strain
            positions, cells = positions @ deformation, cells @ deformation
        if species is None:
            species = torch.zeros_like(self.system_index)
        if total_charge is None:
            total_charge = torch.zeros_like(cells[:, 0, 0])
        data = systems.Batch(
            positions=positions,
            types=species + 1,
            cells=cells,
            pbc=self.pbc,
            counts=torch.bincount(self.system_index, minlength=len(cells)).tolist(),
            pairs=torch.column_stack([self.centers, self.neighbors, self.shifts.long()]),
            total_charge=total_charge,
        )
        builder = graph.GraphBuilder([1, 2, 3], None, boundaries.Vacuum(least_vacuum, angstrom))
        trained = data.positions.new_tensor([torch.inf, -torch.inf])
        return builder.build(data, trained)


def tune(module, **settings):
    """Change parameters of a sum.

    :param module: Coulomb sum, or block with charge equilibration
    :param settings: see ``SumParameters``
    """
    module.settings = module.settings._replace(**settings)
    if "smearing" in settings:
        module.potential.smearing.fill_(settings["smearing"])
        module.potential.width = settings["smearing"]


def slab_height(monkeypatch, height):
    """Give all slabs cells of one height in Å."""
    monkeypatch.setattr(boundaries, "slab_cell_height", lambda *_: float(height))


def make_batch(structures, charges, cutoff):
    """
    :param structures: ase.Atoms, rows of the cell along non-periodic directions are dropped
    :param charges: for each structure an array ``[atoms, channels]``, e
    :param cutoff: radius of the full neighbour list, Å
    """
    no_pairs = np.zeros(0, dtype=int)
    parts = {"centers": [no_pairs], "neighbors": [no_pairs], "shifts": [np.zeros((0, 3))]}
    parts["index"] = []
    start = 0
    for number, atoms in enumerate(structures):
        if len(atoms) > 0:
            centers, neighbors, shifts = neighbor_list("ijS", atoms, cutoff)
            parts["centers"].append(centers + start)
            parts["neighbors"].append(neighbors + start)
            parts["shifts"].append(shifts.reshape(-1, 3))
        parts["index"].append(np.full(len(atoms), number))
        start += len(atoms)
    joined = {key: torch.tensor(np.concatenate(value)) for key, value in parts.items()}
    cells = np.array([np.array(atoms.cell) * atoms.pbc[:, None] for atoms in structures])
    return Batch(
        charges=torch.tensor(np.concatenate(charges), dtype=torch.float64),
        positions=torch.tensor(np.concatenate([atoms.positions for atoms in structures])),
        cells=torch.tensor(cells),
        pbc=torch.tensor(np.array([atoms.pbc for atoms in structures])),
        system_index=joined["index"].long(),
        centers=joined["centers"].long(),
        neighbors=joined["neighbors"].long(),
        shifts=joined["shifts"].double(),
    )


def make_random_structure(num_atoms, pbc, seed, cell=None):
    """Atoms on a jittered grid, about 0.1 per Å³ unless a cell is given."""
    rng = np.random.default_rng(seed)
    if cell is None:
        cell = np.eye(3) + rng.uniform(-0.25, 0.25, (3, 3))
        cell *= (10.0 * num_atoms / abs(np.linalg.det(cell))) ** (1 / 3)
    cell = np.array(cell, dtype=float)
    if not all(pbc) and any(pbc):
        # atoms of a slab fill a layer along its normal
        (axis,) = np.flatnonzero(~np.array(pbc))
        normal = np.cross(cell[axis - 2], cell[axis - 1])
        cell[axis] = np.linalg.norm(cell[axis]) * normal / np.linalg.norm(normal)
    side = int(np.ceil(num_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[rng.permutation(len(grid))[:num_atoms]]
    fractions = (grid + rng.uniform(-0.25, 0.25, (num_atoms, 3))) / side
    return ase.Atoms(f"H{num_atoms}", positions=fractions @ cell, cell=cell, pbc=pbc)


def make_random_charges(num_atoms, num_channels, seed):
    """Channels of charges with a net charge, except the first one."""
    charges = np.random.default_rng(seed).normal(size=(num_atoms, num_channels))
    charges[:, 0] -= charges[:, 0].mean()
    return charges
