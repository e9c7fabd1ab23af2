"""Charges of structures whose Coulomb matrices are stored, similar sizes together."""

import math

import torch

from .ewald import half_space_integers
from .gaussians import isolated_matrix, plane_wave_matrix, self_weights
from .geometry import first_atoms
from .interactions import Interactions
from .padding import group_by_size, padded_index, present_species
from .solvers import solve_dense


def dense_charges(
    interactions: Interactions,
    structures: list[int],
    chi: torch.Tensor,
    total_charge: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Solve some structures of a batch.

    :param interactions: of the batch
    :param structures: numbers of the structures
    :param chi: electronegativities, shape [N], e/length
    :param total_charge: shape [S], e
    :return: charges in e and their potentials C q in e/length, zero for atoms of other structures,
        shape [N]
    """
    geometry, species = interactions.geometry, interactions.species
    charges = torch.zeros_like(chi)
    potentials = torch.zeros_like(chi)
    # the second number keeps isolated structures from sharing a group with periodic ones
    sizes: list[list[int]] = []
    for s, count in enumerate(geometry.counts):
        sizes.append([count, 1 if geometry.dimensions[s] == 0 else 2])
    for group in group_by_size(structures, sizes):
        longest = max([sizes[s][0] for s in group])
        together = max(1, interactions.max_terms // (longest * longest))
        for begin in range(0, len(group), together):
            part = group[begin : begin + together]
            atoms, mask = padded_index(
                [interactions.first[s] for s in part], [sizes[s][0] for s in part], chi.device
            )
            if sizes[part[0]][1] == 1:
                variances = interactions.variances[species[atoms]]
                matrix = isolated_matrix(interactions.positions[atoms], mask, variances)
            else:
                matrix = periodic_matrix(interactions, part, atoms, mask)
            real = mask.to(chi.dtype)
            a = matrix + torch.diag_embed(interactions.hardness[species[atoms]] * real)
            total = total_charge[torch.tensor(part, device=chi.device)].to(chi.dtype)
            q = solve_dense(a, chi[atoms] * real, total, mask) * real
            v = torch.bmm(matrix, q.unsqueeze(2)).squeeze(2) * real
            charges = charges.index_add(0, atoms.flatten(), q.flatten())
            potentials = potentials.index_add(0, atoms.flatten(), v.flatten())
    return charges, potentials


def periodic_matrix(
    interactions: Interactions, part: list[int], atoms: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """
    Coulomb matrices of some periodic structures and slabs.

    :param interactions: of the batch
    :param part: numbers of the structures
    :param atoms: their atoms, shape [B, n]
    :param mask: false for filling, shape [B, n]
    :return: shape [B, n, n], zero for filling, 1/length
    """
    geometry, variances = interactions.geometry, interactions.variances
    device = atoms.device
    structures = torch.tensor(part, device=device)
    cells = geometry.cells[structures]
    lengths = [geometry.lengths[s] for s in part]
    integers, num_k = half_space_integers(cells, lengths, interactions.k_cutoff)
    species = interactions.species[atoms]
    sums = variances.unsqueeze(0) + variances.unsqueeze(1)
    pair_variances = torch.clamp(sums, min=interactions.smearing**2)

    r = interactions.positions[atoms]
    # far from the origin phases lose digits; the choice of origin has no derivative
    inverse = torch.linalg.inv(cells)
    fractions = (r - r[:, :1].detach()) @ inverse
    volumes = torch.det(cells).abs()

    excess = (pair_variances - sums)[species.unsqueeze(2), species.unsqueeze(1)]
    z = (r * geometry.normals[structures].unsqueeze(1)).sum(dim=-1)
    heights = geometry.heights[structures].view(-1, 1, 1)
    widths = variances[species]
    slab = (
        (z.unsqueeze(2) - z.unsqueeze(1)) ** 2
        + widths.unsqueeze(2)
        + widths.unsqueeze(1)
        + heights * heights / 6.0
    ) * (heights > 0.0).to(z.dtype)
    matrix = (excess + slab) * (-2.0 * math.pi / volumes).view(-1, 1, 1)
    real = mask.to(matrix.dtype)
    matrix = matrix * (real.unsqueeze(1) * real.unsqueeze(2))
    matrix = matrix + torch.diag_embed(self_weights(widths, interactions.smearing) * real)

    most = max(num_k)
    if most > 0:
        first_k = first_atoms(num_k)
        # a cell so small that no k-vector is below the cutoff: any index does, its count is 0
        waves, wave_mask = padded_index(
            [min(start, first_k[-1] - 1) for start in first_k[:-1]], num_k, device
        )
        n = integers[waves].to(cells.dtype)
        k = 2.0 * math.pi * n @ inverse.transpose(1, 2)
        k_squared = (k * k).sum(dim=-1)
        prefactors = 8.0 * math.pi / k_squared * wave_mask / volumes.unsqueeze(1)
        if interactions.one_width:
            present = [0]
            plane_species = torch.zeros_like(species)
        else:
            present = present_species(species, variances.size(0))
            plane_species = species
        rows = max(1, interactions.max_terms // (atoms.size(0) * atoms.size(1)))
        for start in range(0, most, rows):
            matrix = matrix + plane_wave_matrix(
                fractions,
                mask,
                n[:, start : start + rows],
                k_squared[:, start : start + rows],
                prefactors[:, start : start + rows],
                plane_species,
                pair_variances,
                present,
            )
    if interactions.uses_pairs:
        matrix = add_pairs(interactions, matrix, atoms, mask)
    return matrix


def add_pairs(
    interactions: Interactions, matrix: torch.Tensor, atoms: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """
    Add the sum over the neighbor list to matrices.

    :param interactions: of the batch
    :param matrix: of some structures, shape [B, n, n]
    :param atoms: their atoms, shape [B, n]
    :param mask: false for filling, shape [B, n]
    :return: shape [B, n, n]
    """
    size = atoms.size(1)
    place = torch.full_like(interactions.system_index, -1)
    place[atoms[mask]] = torch.nonzero(mask.flatten()).squeeze(1)
    row, column = place[interactions.centers], place[interactions.neighbors]
    flat = row * size + torch.remainder(column, size)
    # pairs of other structures go to one element more, which is dropped
    flat = torch.where(row >= 0, flat, torch.full_like(flat, matrix.numel()))
    added = torch.zeros(matrix.numel() + 1, dtype=matrix.dtype, device=matrix.device)
    added = added.index_add(0, flat, interactions.pair_weights)
    return matrix + added[:-1].view_as(matrix)
