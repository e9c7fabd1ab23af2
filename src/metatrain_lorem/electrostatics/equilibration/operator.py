r"""The matrix :math:`A = \mathrm{diag}(J) + C` of one structure as a product with vectors.

Used where A is too large to be stored: periodic structures and slabs on a mesh, one charge mesh per
species because the Gaussians differ, and isolated structures by rows. What does not depend on the
vector, interpolation weights and filters among it, is built once per configuration.
"""

import math
from typing import NamedTuple

import torch

from ...indexing import occurrences, recomputed
from ..mesh import Stencil
from ..slab import slab_bracket, slab_factors, slab_moments
from .gaussians import Interactions, isolated_rows, pair_variances, self_weights
from .preconditioner import Preconditioner, diagonal_preconditioner, kerker_preconditioner
from .species_mesh import (
    Crystal,
    SpeciesMesh,
    mesh_potentials,
    no_mesh,
    on_mesh,
    species_mesh,
)


class ChargeOperator(NamedTuple):
    """All that a product with A takes, and its preconditioner."""

    periodic: bool
    diagonal: torch.Tensor  # [atoms] hardness and the self term
    pairs: torch.Tensor  # [2, pairs]
    pair_weights: torch.Tensor  # [pairs] what they interact more than on the mesh
    mesh: SpeciesMesh  # of A
    preconditioner: Preconditioner
    slab_factor: torch.Tensor  # see ``slab_factors``
    slab_z: torch.Tensor  # [atoms] heights
    slab_shift: torch.Tensor  # [atoms] see ``slab``
    positions: torch.Tensor  # [atoms, 3], for isolated structures
    variances: torch.Tensor  # [atoms], for isolated structures
    max_terms: int  # pairs done at once


def isolated_product(operator: ChargeOperator, v: torch.Tensor) -> torch.Tensor:
    """
    :param operator: of an isolated structure
    :param v: ``[atoms]``
    :return: C v, in chunks of rows, ``[atoms]``
    """
    r, variances = operator.positions.unsqueeze(0), operator.variances.unsqueeze(0)
    rows = max(1, operator.max_terms // v.size(0))
    products: list[torch.Tensor] = []
    for start in range(0, v.size(0), rows):
        stop = min(start + rows, v.size(0))
        if torch.jit.is_scripting() or not torch.is_grad_enabled():
            products.append(row_product(r, variances, v, start, stop))
        else:
            products.append(recomputed(row_product, r, variances, v, start, stop))
    return torch.cat(products)


def row_product(
    r: torch.Tensor, variances: torch.Tensor, v: torch.Tensor, start: int, stop: int
) -> torch.Tensor:
    """
    :param r: positions ``[1, atoms, 3]``, Å
    :param variances: squares of the widths ``[1, atoms]``, Å²
    :param v: ``[atoms]``
    :param start: first row
    :param stop: the row after the last one
    :return: these rows of C v ``[rows]``
    """
    return isolated_rows(r[:, start:stop], r, variances[:, start:stop], variances)[0] @ v


def product(operator: ChargeOperator, v: torch.Tensor) -> torch.Tensor:
    """
    :param operator: A
    :param v: ``[atoms]``
    :return: A v ``[atoms]``
    """
    if not operator.periodic:
        return operator.diagonal * v + isolated_product(operator, v)
    return product_from(operator, v, on_mesh(operator.mesh, v), product_moments(operator, v))


def product_moments(operator: ChargeOperator, v: torch.Tensor) -> torch.Tensor:
    """
    :param operator: A of a periodic structure or a slab
    :param v: ``[atoms]``
    :return: what a product with A takes of a whole slab ``[1, 3]``, nothing of other structures
    """
    if operator.slab_z.size(0) == 0:
        return v[:0]
    z, shift = operator.slab_z.unsqueeze(1), operator.slab_shift.unsqueeze(1)
    return slab_moments(z, shift, v.unsqueeze(1)).sum(dim=0, keepdim=True)


def product_from(
    operator: ChargeOperator, v: torch.Tensor, values: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor:
    """
    :param operator: A of a periodic structure or a slab
    :param v: of the atoms and of neighbours of other processes, if there are any ``[all atoms]``
    :param values: the atoms of all processes on the mesh ``[points of all species]``
    :param moments: of all processes, see :func:`product_moments`
    :return: A v ``[atoms]``
    """
    own = v
    if v.size(0) > operator.diagonal.size(0):
        own = v[: operator.diagonal.size(0)]
    result = operator.diagonal * own + mesh_potentials(operator.mesh, values)
    if operator.pairs.size(1) > 0:
        products = operator.pair_weights * v[operator.pairs[1]]
        result = result.index_add(0, operator.pairs[0], products)
    if operator.slab_z.size(0) > 0:
        z, shift = operator.slab_z.unsqueeze(1), operator.slab_shift.unsqueeze(1)
        result = result + operator.slab_factor * slab_bracket(z, shift, moments).squeeze(1)
    return result


def charge_operator(interactions: Interactions, structure: int) -> ChargeOperator:
    """
    :param interactions: of the batch
    :param structure: its number
    :return: its matrix A
    """
    if interactions.graph.boundaries.dimensions[structure] == 0:
        return isolated_operator(interactions, structure)
    return periodic_operator(interactions, structure)


def isolated_operator(interactions: Interactions, structure: int) -> ChargeOperator:
    """
    :param interactions: of the batch
    :param structure: number of an isolated structure
    :return: its matrix A
    """
    graph = interactions.graph
    begin, end = graph.boundaries.first[structure], graph.boundaries.first[structure + 1]
    species = graph.species[begin:end]
    hardness, variances = interactions.hardness[begin:end], interactions.variances[species]
    none = variances[:0]
    return ChargeOperator(
        periodic=False,
        diagonal=hardness,
        pairs=species[:0].view(2, 0),
        pair_weights=none,
        mesh=no_mesh(variances),
        preconditioner=diagonal_preconditioner(hardness + torch.rsqrt(math.pi * variances)),
        slab_factor=none,
        slab_z=none,
        slab_shift=none,
        positions=graph.positions[begin:end],
        variances=variances,
        max_terms=interactions.parameters.max_terms,
    )


def periodic_operator(interactions: Interactions, structure: int) -> ChargeOperator:
    """
    :param interactions: of the batch
    :param structure: number of a periodic structure or a slab
    :return: its matrix A
    """
    graph = interactions.graph
    boundaries = graph.boundaries
    begin, end = boundaries.first[structure], boundaries.first[structure + 1]
    species, positions = graph.species[begin:end], graph.positions[begin:end]
    positions = positions - positions.mean(0)  # as in :class:`..mesh.MeshSum`
    device = positions.device

    pairs = torch.zeros([2, 0], dtype=torch.long, device=device)
    pair_weights = interactions.pair_weights[:0]
    if interactions.uses_pairs:
        pairs = torch.stack([graph.centers, graph.neighbors])
        pair_weights = interactions.pair_weights
        if len(boundaries.counts) > 1:
            mine = torch.nonzero((pairs[0] >= begin) & (pairs[0] < end)).squeeze(1)
            pairs, pair_weights = pairs[:, mine] - begin, pair_weights[mine]

    present = torch.tensor(graph.structure_species[structure], device=device)
    local = places_among(present, interactions)[species]
    crystal = Crystal(
        positions=positions,
        present=present,
        counts=occurrences(local, present.size(0)),
        species=local,
        cell=boundaries.cells[structure],
        volume=boundaries.volumes[structure],
        lengths=boundaries.lengths[structure],
    )
    hardness = interactions.hardness[begin:end]
    return crystal_operator(interactions, structure, crystal, hardness, pairs, pair_weights)


def places_among(present: torch.Tensor, interactions: Interactions) -> torch.Tensor:
    """
    :param present: numbers of the species that occur in a structure
    :param interactions: of the batch
    :return: of each species that the model knows its place among these ``[species]``
    """
    places = torch.zeros(interactions.variances.size(0), dtype=torch.long, device=present.device)
    places[present] = torch.arange(present.size(0), device=present.device)
    return places


def crystal_operator(
    interactions: Interactions,
    structure: int,
    crystal: Crystal,
    hardness: torch.Tensor,
    pairs: torch.Tensor,
    pair_weights: torch.Tensor,
) -> ChargeOperator:
    """
    :param interactions: of the batch
    :param structure: number of a periodic structure or a slab
    :param crystal: its atoms, or those that a process has, about the mean of all
    :param hardness: of these atoms ``[atoms]``, 1/length
    :param pairs: their pairs ``[2, pairs]``
    :param pair_weights: what these interact more than on the mesh ``[pairs]``, 1/length
    :return: its matrix A, or the rows of these atoms
    """
    boundaries, parameters = interactions.graph.boundaries, interactions.parameters
    positions, local, present = crystal.positions, crystal.species, crystal.present
    variances, of_species = interactions.variances[present], interactions.species_hardness[present]
    wide, excess = pair_variances(variances, parameters.smearing)
    mesh = species_mesh(crystal, wide, excess, parameters.mesh_spacing, parameters.spline_order)
    # of long waves, the same in all processes
    diagonal = of_species + torch.rsqrt(math.pi * variances)
    preconditioner = kerker_preconditioner(
        detached_crystal(crystal),
        variances.detach(),
        of_species.detach(),
        diagonal.detach(),
        (hardness + torch.rsqrt(math.pi * variances)[local]).detach(),
        interactions.angstrom,
    )
    slab_z, slab_shift = variances[:0], variances[:0]
    if boundaries.dimensions[structure] == 2:
        # only differences of z enter: the central origin avoids cancellation
        slab_z = (positions * boundaries.normals[structure]).sum(dim=1)
        slab_shift = variances[local] + boundaries.heights[structure] ** 2 / 12.0
    return ChargeOperator(
        periodic=True,
        diagonal=hardness + self_weights(variances, parameters.smearing)[local],
        pairs=pairs,
        pair_weights=pair_weights,
        mesh=mesh,
        preconditioner=preconditioner,
        slab_factor=slab_factors(boundaries.heights[structure], boundaries.volumes[structure]),
        slab_z=slab_z,
        slab_shift=slab_shift,
        positions=positions,
        variances=variances[local],
        max_terms=parameters.max_terms,
    )


def detached_crystal(crystal: Crystal) -> Crystal:
    """
    :param crystal: a structure
    :return: the same without derivatives
    """
    return Crystal(
        positions=crystal.positions.detach(),
        present=crystal.present,
        counts=crystal.counts,
        species=crystal.species,
        cell=crystal.cell.detach(),
        volume=crystal.volume.detach(),
        lengths=crystal.lengths,
    )


def detached(operator: ChargeOperator) -> ChargeOperator:
    """
    :param operator: A
    :return: the same without derivatives
    """
    mesh = operator.mesh
    atoms = Stencil(index=mesh.atoms.index, weights=mesh.atoms.weights.detach())
    return ChargeOperator(
        periodic=operator.periodic,
        diagonal=operator.diagonal.detach(),
        pairs=operator.pairs,
        pair_weights=operator.pair_weights.detach(),
        mesh=SpeciesMesh(atoms=atoms, filters=mesh.filters.detach(), shape=mesh.shape),
        preconditioner=operator.preconditioner,
        slab_factor=operator.slab_factor.detach(),
        slab_z=operator.slab_z.detach(),
        slab_shift=operator.slab_shift.detach(),
        positions=operator.positions.detach(),
        variances=operator.variances.detach(),
        max_terms=operator.max_terms,
    )
