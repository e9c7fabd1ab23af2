"""Gaussian charges on meshes: one mesh per species, because the widths differ."""

import math
from typing import NamedTuple

import torch

from ..mesh import (
    Stencil,
    axis_product,
    gather,
    mesh_shape,
    mesh_waves,
    optimal_influence,
    spread,
    stencil,
)


class Coarse(NamedTuple):
    """Mesh of the preconditioner; TorchScript takes no numbers of a module, but defaults."""

    largest_k: float = 1.0  # 1/Å, below the first peak of structure factors
    spacing: float = 1.5  # Å: it has to hold the largest k, not to be accurate
    order: int = 4  # of the splines


class Crystal(NamedTuple):
    """Atoms of one periodic structure or slab."""

    positions: torch.Tensor  # [atoms, 3] Å
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


def species_stencil(crystal: Crystal, shape: list[int], order: int) -> Stencil:
    """
    :param crystal: the structure
    :param shape: mesh points along the cell vectors
    :param order: order of the splines
    :return: where each atom goes on the mesh of its species
    """
    atoms = stencil(crystal.positions, torch.linalg.inv(crystal.cell), shape, order)
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
    :return: their Fourier transforms as real and imaginary parts
        ``[species, *half of the shape, 2]``
    """
    shape = mesh.shape
    num_points = mesh.filters.size(1) * shape[0] * shape[1] * shape[2]
    values = spread(mesh.atoms, v.unsqueeze(1), num_points)
    return torch.view_as_real(torch.fft.rfftn(values.view([-1] + shape), dim=[1, 2, 3]))


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


def mesh_product(mesh: SpeciesMesh, v: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: mesh of A
    :param v: ``[atoms]``
    :return: the part of C v that the mesh holds ``[atoms]``
    """
    waves = on_mesh(mesh, v)
    potentials: list[torch.Tensor] = []
    for i in range(mesh.filters.size(0)):
        potential = mesh.filters[i, 0].unsqueeze(-1) * waves[0]
        for j in range(1, mesh.filters.size(1)):
            potential = torch.addcmul(potential, mesh.filters[i, j].unsqueeze(-1), waves[j])
        potentials.append(potential)
    return from_mesh(mesh, torch.stack(potentials))


def kerker_mesh(
    crystal: Crystal,
    variances: torch.Tensor,
    hardness: torch.Tensor,
    diagonal: torch.Tensor,
    angstrom: float,
) -> tuple[SpeciesMesh, torch.Tensor]:
    """
    Mesh and diagonal of the preconditioner.

    The root of W goes into the factors of the species on the mesh, so that B stays symmetric.

    :param crystal: the structure
    :param variances: squared widths of its species ``[species]``, Å²
    :param hardness: of the species ``[species]``, 1/Å
    :param diagonal: diagonal of A of the species ``[species]``, 1/Å
    :param angstrom: one Å in the unit of length that is used in fact
    :return: the mesh; the inverse of D of the species ``[species]``
    """
    coarse = Coarse()
    shape = mesh_shape(crystal.lengths, coarse.spacing * angstrom)
    waves = mesh_waves(crystal.cell, shape, True)
    k_squared = waves.k_squared
    inside = (k_squared < (coarse.largest_k / angstrom) ** 2).to(k_squared.dtype)
    # a real transform leaves out -k
    multiplicity = torch.where(waves.z > 0, 2.0, 1.0).to(k_squared.dtype) * inside
    g = 4.0 * math.pi / (k_squared * crystal.volume) * inside
    gaussians: list[torch.Tensor] = []
    d: list[torch.Tensor] = []
    strength = torch.zeros_like(g)
    for s in range(variances.size(0)):
        gaussian = torch.exp(-0.5 * variances[s] * k_squared)
        long_range = (multiplicity * g * gaussian * gaussian).sum()
        rest = torch.maximum(diagonal[s] - long_range, 0.3 * hardness[s])
        strength = strength + (crystal.species == s).sum() / rest * gaussian * gaussian
        gaussians.append(gaussian)
        d.append(rest)
    splines = axis_product(
        torch.sinc(waves.x / shape[0]),
        torch.sinc(waves.y / shape[1]),
        torch.sinc(waves.z / shape[2]),
    )
    root = torch.sqrt(g / (1.0 + g * strength)) / splines**coarse.order
    mesh = SpeciesMesh(
        atoms=species_stencil(crystal, shape, coarse.order),
        filters=(torch.stack(gaussians) * root).unsqueeze(0),
        shape=shape,
    )
    return mesh, 1.0 / torch.stack(d)
