"""Gaussian charges on meshes: one mesh per species, because the widths differ."""

import math
from typing import NamedTuple

import torch

from .mesh import coulomb_filter, interpolation, smooth_size, squared_wave_vectors

PRECONDITIONER_RANGE = 1.0
"""Largest k of the preconditioner in 1/Angstrom, below the first peak of structure factors."""

PRECONDITIONER_SPACING = 1.5
"""Mesh spacing of the preconditioner in Angstrom: it has to hold the range, not to be accurate."""

PRECONDITIONER_ORDER = 4
"""Order of the splines of the preconditioner."""


class SpeciesMesh(NamedTuple):
    """One mesh per species: where atoms go, and the filters between species.

    ``index`` [n * order**3] counts through the meshes of all species; ``weights`` [n, order**3];
    ``filters`` [species, species, ...k] from species to species, or [1, species, ...k] where each
    is the product of two factors, one per species; ``shape``: mesh points along the cell vectors.
    """

    index: torch.Tensor
    weights: torch.Tensor
    filters: torch.Tensor
    shape: list[int]


def species_mesh(
    positions: torch.Tensor,
    species: torch.Tensor,
    cell: torch.Tensor,
    lengths: list[float],
    pair_variances: torch.Tensor,
    excess: torch.Tensor,
    spacing: float,
    order: int,
) -> SpeciesMesh:
    """
    Mesh of A.

    :param positions: shape [n, 3], Angstrom
    :param species: which of the structure's species each atom is, shape [n]
    :param cell: cell vectors in rows, shape [3, 3], Angstrom
    :param lengths: their lengths, Angstrom
    :param pair_variances: w of the pairs of species (see ``gaussians``), shape [S, S]
    :param excess: w - v of the pairs of species, shape [S, S]; its mean potential is at k = 0
    :param spacing: largest distance of mesh points, Angstrom
    :param order: order of the splines
    """
    shape = [smooth_size(length / spacing) for length in lengths]
    index, weights = interpolation(positions, cell, shape, order)
    index = index + (species * (shape[0] * shape[1] * shape[2])).unsqueeze(1)
    point, k_squared = coulomb_filter(cell, shape, order, True)
    at_zero = torch.zeros_like(point)
    at_zero[0, 0, 0] = 1.0
    at_zero = at_zero * (-2.0 * math.pi / torch.det(cell).abs())
    rows: list[torch.Tensor] = []
    for i in range(pair_variances.size(0)):
        row: list[torch.Tensor] = []
        for j in range(pair_variances.size(0)):
            gaussian = point * torch.exp(-0.5 * pair_variances[i, j] * k_squared)
            row.append(gaussian + at_zero * excess[i, j])
        rows.append(torch.stack(row))
    return SpeciesMesh(index.flatten(), weights, torch.stack(rows), shape)


def on_mesh(mesh: SpeciesMesh, v: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: the meshes of all species
    :param v: charges, shape [n], e
    :return: their Fourier transforms as real and imaginary parts, shape [S, ...k, 2]
    """
    shape = mesh.shape
    num_points = mesh.filters.size(1) * shape[0] * shape[1] * shape[2]
    values = torch.zeros(num_points, dtype=v.dtype, device=v.device)
    values = values.index_add(0, mesh.index, (mesh.weights * v.unsqueeze(1)).flatten())
    return torch.view_as_real(torch.fft.rfftn(values.view([-1] + shape), dim=[1, 2, 3]))


def from_mesh(mesh: SpeciesMesh, waves: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: the meshes of all species
    :param waves: Fourier transforms of the potentials, shape [S, ...k, 2]
    :return: potential of each atom on the mesh of its species, shape [n]
    """
    values = torch.fft.irfftn(
        torch.view_as_complex(waves), s=mesh.shape, dim=[1, 2, 3], norm="forward"
    )
    gathered = values.flatten().index_select(0, mesh.index).view_as(mesh.weights)
    return (gathered * mesh.weights).sum(dim=1)


def mesh_product(mesh: SpeciesMesh, v: torch.Tensor) -> torch.Tensor:
    """
    :param mesh: mesh of A
    :param v: shape [n]
    :return: the part of C v that the mesh holds, shape [n]
    """
    waves = on_mesh(mesh, v)
    potentials: list[torch.Tensor] = []
    for i in range(mesh.filters.size(0)):
        of_species = mesh.filters[i, 0].unsqueeze(-1) * waves[0]
        for j in range(1, mesh.filters.size(1)):
            of_species = torch.addcmul(of_species, mesh.filters[i, j].unsqueeze(-1), waves[j])
        potentials.append(of_species)
    return from_mesh(mesh, torch.stack(potentials))


def kerker_mesh(
    positions: torch.Tensor,
    species: torch.Tensor,
    cell: torch.Tensor,
    lengths: list[float],
    variances: torch.Tensor,
    hardness: torch.Tensor,
    diagonal: torch.Tensor,
    angstrom: float,
    largest_k: float = PRECONDITIONER_RANGE,
    spacing: float = PRECONDITIONER_SPACING,
    order: int = PRECONDITIONER_ORDER,
) -> tuple[SpeciesMesh, torch.Tensor]:
    """
    Mesh and diagonal of the preconditioner.

    The root of W goes into the factors of the species on the mesh, so that B stays symmetric.

    :param positions: shape [n, 3], Angstrom
    :param species: which of the structure's species each atom is, shape [n]
    :param cell: cell vectors in rows, shape [3, 3], Angstrom
    :param lengths: their lengths, Angstrom
    :param variances: squared widths of the species, shape [S], square Angstrom
    :param hardness: of the species, shape [S], 1/Angstrom
    :param diagonal: diagonal of A of the species, shape [S], 1/Angstrom
    :param angstrom: one Angstrom in the unit of length that is used in fact
    :param largest_k: largest k, 1/Angstrom
    :param spacing: largest distance of mesh points, Angstrom
    :param order: order of the splines
    :return: the mesh; the inverse of D of the species, shape [S]
    """
    shape = [smooth_size(length / (spacing * angstrom)) for length in lengths]
    index, weights = interpolation(positions, cell, shape, order)
    index = index + (species * (shape[0] * shape[1] * shape[2])).unsqueeze(1)
    x, y, z, k_squared = squared_wave_vectors(cell, shape, True)
    inside = (k_squared < (largest_k / angstrom) ** 2).to(cell.dtype)
    # a real transform leaves out -k
    multiplicity = torch.where(z > 0, 2.0, 1.0).to(cell.dtype) * inside
    g = 4.0 * math.pi / (k_squared * torch.det(cell).abs()) * inside
    num_species = variances.size(0)
    gaussians: list[torch.Tensor] = []
    d: list[torch.Tensor] = []
    strength = torch.zeros_like(g)
    for s in range(num_species):
        gaussian = torch.exp(-0.5 * variances[s] * k_squared)
        long_range = (multiplicity * g * gaussian * gaussian).sum()
        of_species = torch.maximum(diagonal[s] - long_range, 0.3 * hardness[s])
        strength = strength + (species == s).sum() / of_species * gaussian * gaussian
        gaussians.append(gaussian)
        d.append(of_species)
    splines = (
        torch.sinc(x / shape[0]).view(-1, 1, 1)
        * torch.sinc(y / shape[1]).view(1, -1, 1)
        * torch.sinc(z / shape[2]).view(1, 1, -1)
    ) ** order
    root = torch.sqrt(g / (1.0 + g * strength)) / splines
    return (
        SpeciesMesh(index.flatten(), weights, (torch.stack(gaussians) * root).unsqueeze(0), shape),
        1.0 / torch.stack(d),
    )
