"""Gaussian charges on meshes: one mesh per species, because the widths differ."""

import math
from typing import NamedTuple

import torch

from ..mesh import (
    Stencil,
    gather,
    mesh_shape,
    mesh_waves,
    optimal_influence,
    spread,
    stencil,
)


class Crystal(NamedTuple):
    """Atoms of one periodic structure or slab."""

    positions: torch.Tensor  # [atoms, 3] Å
    present: torch.Tensor  # [species] numbers in the model of the species that occur
    counts: torch.Tensor  # [species] atoms of each, also where a process has some of them only
    species: torch.Tensor  # [atoms] numbers among the species of the structure
    cell: torch.Tensor  # [3, 3] of the sum, vectors in rows, Å
    volume: torch.Tensor  # Å³
    lengths: list[float]  # of the cell vectors, Å


class SpeciesMesh(NamedTuple):
    """One mesh per species: where atoms go, and the filters between species."""

    atoms: Stencil  # its index counts through the meshes of all species
    # from species to species, or [1, species, ...] where each is the product of two factors
    filters: torch.Tensor  # [species, species, *half of the shape]
    shape: list[int]  # mesh points along the cell vectors


def no_mesh(like: torch.Tensor) -> SpeciesMesh:
    """
    :param like: any floating-point tensor
    :return: nothing, for isolated structures
    """
    none = like.flatten()[:0]
    atoms = Stencil(index=none.to(torch.long), weights=none)
    return SpeciesMesh(atoms=atoms, filters=none, shape=[0])


def species_stencil(crystal: Crystal, shape: list[int], order: int) -> Stencil:
    """
    :param crystal: the structure
    :param shape: mesh points along the cell vectors
    :param order: order of the splines
    :return: where each atom goes on the mesh of its species
    """
    atoms = stencil(crystal.positions, torch.linalg.inv_ex(crystal.cell)[0], shape, order)
    first = crystal.species * (shape[0] * shape[1] * shape[2])
    return Stencil(index=atoms.index + first.unsqueeze(1), weights=atoms.weights)


def species_mesh(
    crystal: Crystal,
    pair_variances: torch.Tensor,
    excess: torch.Tensor,
    spacing: float,
    order: int,
) -> SpeciesMesh:
    """
    Mesh of A.

    :param crystal: the structure
    :param pair_variances: w of the pairs of species (see :mod:`.gaussians`)
        ``[species, species]``, Å²
    :param excess: w - v of the pairs of species, whose mean potential is at k = 0
        ``[species, species]``, Å²
    :param spacing: largest distance of mesh points, Å
    :param order: order of the splines
    :return: the mesh
    """
    shape = mesh_shape(crystal.lengths, spacing)
    waves = mesh_waves(crystal.cell, shape, True)
    point = optimal_influence(waves, shape, order) * (4.0 * math.pi / crystal.volume)
    point = point / waves.k_squared
    at_zero = torch.zeros_like(point)
    at_zero[0, 0, 0] = 1.0
    at_zero = at_zero * (-2.0 * math.pi / crystal.volume)
    rows: list[torch.Tensor] = []
    for i in range(pair_variances.size(0)):
        row: list[torch.Tensor] = []
        for j in range(pair_variances.size(0)):
            gaussian = point * torch.exp(-0.5 * pair_variances[i, j] * waves.k_squared)
            row.append(gaussian + at_zero * excess[i, j])
        rows.append(torch.stack(row))
    atoms = species_stencil(crystal, shape, order)
    return SpeciesMesh(atoms=atoms, filters=torch.stack(rows), shape=shape)


def on_mesh(mesh: SpeciesMesh, v: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: the meshes of all species
    :param v: charges ``[atoms]``, e
    :return: on the meshes ``[points of all species]``
    """
    num_points = mesh.filters.size(1) * mesh.shape[0] * mesh.shape[1] * mesh.shape[2]
    return spread(mesh.atoms, v.unsqueeze(1), num_points).flatten()


def transformed(mesh: SpeciesMesh, values: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: the meshes of all species
    :param values: charges on them ``[points of all species]``
    :return: their Fourier transforms as real and imaginary parts
        ``[species, *half of the shape, 2]``
    """
    waves = torch.fft.rfftn(values.view([-1] + mesh.shape), dim=[1, 2, 3])
    return torch.view_as_real(waves)


def from_mesh(mesh: SpeciesMesh, waves: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: the meshes of all species
    :param waves: Fourier transforms of the potentials ``[species, *half of the shape, 2]``
    :return: potential of each atom on the mesh of its species ``[atoms]``
    """
    values = torch.fft.irfftn(
        torch.view_as_complex(waves), s=mesh.shape, dim=[1, 2, 3], norm="forward"
    )
    return gather(mesh.atoms, values.flatten().unsqueeze(1)).squeeze(1)


def mesh_potentials(mesh: SpeciesMesh, values: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: mesh of A
    :param values: charges v on it ``[points of all species]``
    :return: the part of C v that the mesh holds ``[atoms]``
    """
    waves = transformed(mesh, values)
    potentials: list[torch.Tensor] = []
    for i in range(mesh.filters.size(0)):
        potential = mesh.filters[i, 0].unsqueeze(-1) * waves[0]
        for j in range(1, mesh.filters.size(1)):
            potential = torch.addcmul(potential, mesh.filters[i, j].unsqueeze(-1), waves[j])
        potentials.append(potential)
    return from_mesh(mesh, torch.stack(potentials))
