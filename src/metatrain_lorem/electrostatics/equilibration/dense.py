"""Charges of structures whose Coulomb matrices are stored, similar sizes together."""

import math

import torch

from ...safe import gaussian_interaction
from ..boundaries import smearings
from ..ewald import (
    for_parts,
    from_first_atoms,
    in_parts,
    nearest_images,
    num_parts,
    plane_waves,
    sum_parts,
)
from ..padding import group_by_size, padded_atoms
from ..slab import slab_factors, slab_matrix
from .gaussians import Interactions, isolated_matrix, pair_variances, self_weights


def dense_charges(
    interactions: Interactions, structures: list[int], chi: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Solve some structures of a batch.

    :param interactions: of the batch
    :param structures: numbers of the structures
    :param chi: electronegativities ``[atoms]``, e/length
    :return: charges in e and their potentials C q in e/length, zero for atoms of other structures,
        each ``[atoms]``
    """
    graph = interactions.graph
    boundaries = graph.boundaries
    charges = torch.zeros_like(chi)
    potentials = torch.zeros_like(chi)
    # the second number keeps isolated, periodic and sparse structures in groups of their own
    sizes: list[list[int]] = []
    widths = smearings(boundaries, interactions.parameters)
    for s, count in enumerate(boundaries.counts):
        kind = 1 if boundaries.dimensions[s] == 0 else 2
        sizes.append([count, 4 if widths[s] > interactions.parameters.smearing else kind])
    for group in group_by_size(structures, sizes):
        longest = max([sizes[s][0] for s in group])
        together = max(1, interactions.parameters.max_terms // (longest * longest))
        if sizes[group[0]][1] == 4:
            together = 1
        for begin in range(0, len(group), together):
            members = group[begin : begin + together]
            atoms, mask = padded_atoms(members, boundaries, chi.device)
            species = graph.species[atoms]
            if sizes[members[0]][1] == 1:
                variances = interactions.variances[species]
                matrix = isolated_matrix(graph.positions[atoms], mask, variances)
            else:
                matrix = periodic_matrix(interactions, members, atoms, mask)
            real = mask.to(chi.dtype)
            a = matrix + torch.diag_embed(interactions.hardness[atoms] * real)
            total = graph.total_charge[torch.tensor(members, device=chi.device)].to(chi.dtype)
            q = solve_dense(a, chi[atoms] * real, total, mask) * real
            v = torch.bmm(matrix, q.unsqueeze(2)).squeeze(2) * real
            charges = charges.index_add(0, atoms.flatten(), q.flatten())
            potentials = potentials.index_add(0, atoms.flatten(), v.flatten())
    return charges, potentials


def solve_dense(
    matrix: torch.Tensor, b: torch.Tensor, total: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    r"""
    Find q and :math:`\mu` with :math:`A q + b + \mu 1 = 0` and :math:`1^T q = Q` for many
    structures by LU factorisation of the saddle-point matrix; all derivatives exist.

    :param matrix: A, zero in rows and columns of padding, ``[structures, atoms, atoms]``, 1/Å
    :param b: electronegativities, zero for padding, ``[structures, atoms]``, e/Å
    :param total: total charges ``[structures]``, e
    :param mask: false for padding ``[structures, atoms]``
    :return: charges, zero for padding, ``[structures, atoms]``, e
    """
    ones = mask.to(matrix.dtype).unsqueeze(2)
    padding = torch.diag_embed(1.0 - ones.squeeze(2))
    upper = torch.cat([matrix + padding, ones], dim=2)
    lower = torch.nn.functional.pad(ones.transpose(1, 2), [0, 1])
    saddle = torch.cat([upper, lower], dim=1)
    right = torch.cat([-b, total.unsqueeze(1)], dim=1)
    return torch.linalg.solve(saddle, right)[:, :-1]


def periodic_matrix(
    interactions: Interactions, members: list[int], atoms: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """
    Coulomb matrices of some periodic structures and slabs.

    :param interactions: of the batch
    :param members: numbers of the structures
    :param atoms: their atoms ``[structures, atoms]``
    :param mask: false for padding ``[structures, atoms]``
    :return: ``[structures, atoms, atoms]``, zero for padding, 1/length
    """
    graph, parameters = interactions.graph, interactions.parameters
    boundaries, device = graph.boundaries, atoms.device
    numbers = torch.tensor(members, device=device)
    species = graph.species[atoms]
    variances = interactions.variances
    wide, excess = pair_variances(variances, parameters.smearing)
    widths = variances[species]
    positions, volumes = graph.positions[atoms], boundaries.volumes[numbers]
    real = mask.to(positions.dtype)

    # the mean of what the neighbour list adds
    matrix = excess[species.unsqueeze(2), species.unsqueeze(1)]
    matrix = matrix * (-2.0 * math.pi / volumes).view(-1, 1, 1)
    if 2 in boundaries.dimensions:
        z = (positions * boundaries.normals[numbers].unsqueeze(1)).sum(dim=-1)
        heights = boundaries.heights[numbers]
        shift = widths + (heights**2 / 12.0).unsqueeze(1)
        factors = slab_factors(heights, volumes)
        matrix = matrix + slab_matrix(z, shift) * factors.view(-1, 1, 1)
    matrix = matrix * (real.unsqueeze(1) * real.unsqueeze(2))
    matrix = matrix + torch.diag_embed(self_weights(widths, parameters.smearing) * real)

    smearing = smearings(boundaries, parameters)
    if smearing[members[0]] > parameters.smearing:
        # alone in its group
        own = species[0]
        wider = torch.clamp(wide, min=smearing[members[0]] ** 2)
        squared, near = nearest_images(graph, members[0])
        narrow_part = gaussian_interaction(squared, wide[own][:, own])
        wide_part = gaussian_interaction(squared, wider[own][:, own])
        # less the mean over the cell, which no sum over k has
        mean = 2.0 * math.pi * (wider - wide)[own][:, own] / volumes
        matrix = matrix + (narrow_part - wide_part) * near - mean
        wide = wider
    k_cutoffs = [parameters.k_cutoff * parameters.smearing / width for width in smearing]
    inverse_cells = torch.linalg.inv_ex(boundaries.cells[numbers])[0]
    waves = plane_waves(boundaries, members, inverse_cells, k_cutoffs)
    if waves.vectors.size(1) > 0:
        positions = from_first_atoms(positions)
        present: list[int] = [0]
        if interactions.one_width:
            species = torch.zeros_like(species)
        else:
            present = species_of(graph.structure_species, members)
        rows = max(1, parameters.max_terms // atoms.numel())
        # so that the matrices of the parts are no more either
        rows = min(rows, max(1, 256 * parameters.max_terms // (atoms.numel() * atoms.size(1))))
        prefactors = 8.0 * math.pi / waves.k_squared / volumes.unsqueeze(1)
        chunks = zip(  # noqa: B905
            waves.vectors.split(rows, dim=1),
            waves.k_squared.split(rows, dim=1),
            prefactors.split(rows, dim=1),
        )
        for k, k_squared, prefactor in chunks:
            parts = num_parts(k.size(1), real)
            k, k_squared = in_parts(k, parts), in_parts(k_squared, parts)
            prefactor = in_parts(prefactor, parts)
            kinds, some = for_parts(species, parts), for_parts(real, parts)
            phases = torch.bmm(for_parts(positions, parts), k.transpose(1, 2))
            cos_and_sin = [torch.cos(phases), torch.sin(phases)]
            for other in present:
                gaussians = torch.exp(
                    -0.5 * wide[kinds, other].unsqueeze(2) * k_squared.unsqueeze(1)
                )
                weights = gaussians * prefactor.unsqueeze(1) * some.unsqueeze(2)
                columns = (some * (kinds == other).to(real.dtype)).unsqueeze(2)
                for wave in cos_and_sin:
                    terms = torch.bmm(wave * weights, (wave * columns).transpose(1, 2))
                    matrix = matrix + sum_parts(terms, parts)
    if interactions.uses_pairs:
        matrix = add_pairs(interactions, matrix, atoms, mask)
    return matrix


def species_of(structure_species: list[list[int]], members: list[int]) -> list[int]:
    """
    :param structure_species: species that occur in each structure of a batch
    :param members: numbers of some structures
    :return: species that occur in these
    """
    present: list[int] = []
    for s in members:
        for species in structure_species[s]:
            if species not in present:
                present.append(species)
    return present


def add_pairs(
    interactions: Interactions, matrix: torch.Tensor, atoms: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """
    Add the sum over the neighbour list to matrices.

    :param interactions: of the batch
    :param matrix: of some structures ``[structures, atoms, atoms]``
    :param atoms: their atoms ``[structures, atoms]``
    :param mask: false for padding ``[structures, atoms]``
    :return: ``[structures, atoms, atoms]``
    """
    graph, size = interactions.graph, atoms.size(1)
    # padding repeats an atom: its place is that of the first one, which is real
    place = torch.full_like(graph.system_index, -1)
    order = torch.arange(atoms.numel(), device=atoms.device).view_as(atoms)
    order = torch.where(mask, order, order[:, :1])
    place = place.index_put([atoms], order)
    row, column = place[graph.centers], place[graph.neighbors]
    flat = row * size + torch.remainder(column, size)
    # pairs of other structures go to one element more, which is dropped
    flat = torch.where(row >= 0, flat, torch.full_like(flat, matrix.numel()))
    added = torch.zeros(matrix.numel() + 1, dtype=matrix.dtype, device=matrix.device)
    added = added.index_add(0, flat, interactions.pair_weights)
    return matrix + added[:-1].view_as(matrix)
