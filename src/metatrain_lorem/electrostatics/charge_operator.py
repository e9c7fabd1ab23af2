r"""The matrix :math:`A = \mathrm{diag}(J) + C` of one structure as a product with vectors.

Used where A is too large to be stored: periodic structures and slabs on a mesh, one charge mesh per
species because the Gaussians differ, and isolated structures by rows. What does not depend on the
vector, interpolation weights and filters among it, is built once per configuration.
"""

import math
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from .gaussians import isolated_rows, self_weights
from .interactions import Interactions
from .padding import present_species
from .species_mesh import (
    SpeciesMesh,
    from_mesh,
    kerker_mesh,
    mesh_product,
    on_mesh,
    species_mesh,
)


class ChargeOperator(NamedTuple):
    """All that a product with A takes.

    ``diagonal`` [n]: hardness and the self term; ``pairs`` [2, p], ``pair_weights`` [p]: what
    Gaussians interact more than those of the mesh; ``mesh``: of A; ``coarse``, ``inverse_diagonal``
    [n]: of the preconditioner; ``jacobi`` [n]: inverse of the diagonal of A; ``slab_factor``:
    -2 pi / V, zero without slab; ``slab_z`` [n]: heights of the atoms; ``slab_shift`` [n]: squared
    widths and half the constant; ``positions`` [n, 3], ``variances`` [n]: for isolated structures;
    ``max_terms``: pairs done at once.
    """

    periodic: bool
    diagonal: torch.Tensor
    pairs: torch.Tensor
    pair_weights: torch.Tensor
    mesh: SpeciesMesh
    coarse: SpeciesMesh
    inverse_diagonal: torch.Tensor
    jacobi: torch.Tensor
    slab_factor: torch.Tensor
    slab_z: torch.Tensor
    slab_shift: torch.Tensor
    positions: torch.Tensor
    variances: torch.Tensor
    max_terms: int


def isolated_product(operator: ChargeOperator, v: torch.Tensor) -> torch.Tensor:
    """
    :param operator: of an isolated structure
    :param v: shape [n]
    :return: C v, in portions of rows, shape [n]
    """
    r, variances = operator.positions.unsqueeze(0), operator.variances.unsqueeze(0)
    rows = max(1, operator.max_terms // v.size(0))
    portions: list[torch.Tensor] = []
    for start in range(0, v.size(0), rows):
        stop = min(start + rows, v.size(0))
        portions.append(portion(r, variances, v, start, stop))
    return torch.cat(portions)


def row_product(
    r: torch.Tensor, variances: torch.Tensor, v: torch.Tensor, start: int, stop: int
) -> torch.Tensor:
    """Rows ``start`` to ``stop`` of C v."""
    return isolated_rows(r[:, start:stop], r, variances[:, start:stop], variances)[0] @ v


def portion(
    r: torch.Tensor, variances: torch.Tensor, v: torch.Tensor, start: int, stop: int
) -> torch.Tensor:
    """``row_product``, without storing its intermediate results where that is possible."""
    if torch.jit.is_scripting() or not torch.is_grad_enabled():
        return row_product(r, variances, v, start, stop)
    else:
        return checkpoint(row_product, r, variances, v, start, stop, use_reentrant=False)


def product(operator: ChargeOperator, v: torch.Tensor) -> torch.Tensor:
    """
    :param operator: A
    :param v: shape [n]
    :return: A v, shape [n]
    """
    if not operator.periodic:
        return operator.diagonal * v + isolated_product(operator, v)
    result = operator.diagonal * v + mesh_product(operator.mesh, v)
    if operator.pairs.size(1) > 0:
        of_pairs = operator.pair_weights * v[operator.pairs[1]]
        result = result.index_add(0, operator.pairs[0], of_pairs)
    # the slab's term, see ``slab_matrix``
    z, shift = operator.slab_z, operator.slab_shift
    moments = v.sum() * (z * z + shift) - 2.0 * z * (z * v).sum() + ((z * z + shift) * v).sum()
    return result + operator.slab_factor * moments


def precondition(operator: ChargeOperator, v: torch.Tensor, kerker: bool) -> torch.Tensor:
    r"""
    Approximate inverse of A.

    At long wavelengths C is :math:`U^H g U`, with :math:`U_{ki} = e^{i k r_i - \gamma_i^2 k^2 / 2}`
    and :math:`g_k = 4\pi / \Omega k^2`; there structures are nearly uniform and different k do not
    mix. Woodbury's formula then gives Kerker's preconditioner (Phys. Rev. B 23, 3082 (1981)):

    .. math:: B = D^{-1} - D^{-1} U^H W U D^{-1} , \quad
        W_k = \frac{g_k}{1 + g_k \sum_i |U_{ki}|^2 / D_i}

    with D the diagonal of A less that of :math:`U^H g U`.

    :param operator: A
    :param v: shape [n]
    :param kerker: false for the inverse of the diagonal of A
    :return: B v, shape [n]
    """
    if not (operator.periodic and kerker):
        return operator.jacobi * v
    v = operator.inverse_diagonal * v
    factors = operator.coarse.filters[0].unsqueeze(-1)
    waves = (factors * on_mesh(operator.coarse, v)).sum(dim=0, keepdim=True)
    screening = from_mesh(operator.coarse, factors * waves)
    return v - operator.inverse_diagonal * screening


def isolated_operator(
    positions: torch.Tensor, hardness: torch.Tensor, variances: torch.Tensor, max_terms: int
) -> ChargeOperator:
    """
    The matrix A of an isolated structure.

    :param positions: shape [n, 3], Angstrom
    :param hardness: of each atom, shape [n], 1/Angstrom
    :param variances: squared width of each atom, shape [n], square Angstrom
    :param max_terms: number of pairs done at once
    :return: the operator
    """
    inverse = (1.0 / (hardness + torch.rsqrt(math.pi * variances))).detach()
    none = variances[:0]
    no_mesh = SpeciesMesh(torch.zeros(0, dtype=torch.long, device=none.device), none, none, [0])
    no_pairs = torch.zeros([2, 0], dtype=torch.long, device=none.device)
    return ChargeOperator(
        False,
        hardness,
        no_pairs,
        none,
        no_mesh,
        no_mesh,
        inverse,
        inverse,
        none,
        none,
        none,
        positions,
        variances,
        max_terms,
    )


def periodic_operator(
    positions: torch.Tensor,
    species: torch.Tensor,
    cell: torch.Tensor,
    lengths: list[float],
    normal: torch.Tensor,
    height: torch.Tensor,
    hardness: torch.Tensor,
    variances: torch.Tensor,
    pairs: torch.Tensor,
    pair_weights: torch.Tensor,
    smearing: float,
    mesh_spacing: float,
    spline_order: int,
    angstrom: float,
) -> ChargeOperator:
    """
    The matrix A of a periodic structure or a slab.

    :param positions: shape [n, 3], Angstrom
    :param species: species of each atom, shape [n]
    :param cell: cell of the sum, vectors in rows, shape [3, 3], Angstrom
    :param lengths: lengths of the cell vectors, Angstrom
    :param normal: of a slab, else zero, shape [3]
    :param height: of the cell of a slab, else zero, a scalar, Angstrom
    :param hardness: of all species, shape [S], 1/Angstrom
    :param variances: squared widths of all species, shape [S], square Angstrom
    :param pairs: first and second atoms of the neighbor list, shape [2, p]
    :param pair_weights: see ``short_range_weights``, shape [p], 1/Angstrom
    :param smearing: width of the Gaussians of the mesh, Angstrom
    :param mesh_spacing: largest distance of mesh points, Angstrom
    :param spline_order: order of the splines
    :param angstrom: one Angstrom in the unit of length that is used in fact
    :return: the operator
    """
    j, v = hardness[species], variances[species]
    present = torch.tensor(present_species(species, variances.size(0)), device=positions.device)
    places = torch.zeros(variances.size(0), dtype=torch.long, device=positions.device)
    places[present] = torch.arange(present.size(0), device=positions.device)
    local = places[species]
    of_species = variances[present]
    sums = of_species.unsqueeze(0) + of_species.unsqueeze(1)
    pair_variances = torch.clamp(sums, min=smearing**2)
    mesh = species_mesh(
        positions,
        local,
        cell,
        lengths,
        pair_variances,
        pair_variances - sums,
        mesh_spacing,
        spline_order,
    )
    diagonal = hardness[present] + torch.rsqrt(math.pi * of_species)
    coarse, inverse = kerker_mesh(
        positions.detach(),
        local,
        cell.detach(),
        lengths,
        of_species.detach(),
        hardness[present].detach(),
        diagonal.detach(),
        angstrom,
    )
    z = (positions * normal).sum(dim=1)
    # only differences of z enter: a central origin avoids cancellation
    z = z - z.mean().detach()
    factor = -2.0 * math.pi / torch.det(cell).abs() * (height > 0.0).to(z.dtype)
    return ChargeOperator(
        True,
        j + self_weights(v, smearing),
        pairs,
        pair_weights,
        mesh,
        coarse,
        inverse[local],
        (1.0 / diagonal)[local].detach(),
        factor,
        z,
        v + height * height / 12.0,
        positions,
        v,
        0,
    )


def operator_of(interactions: Interactions, s: int) -> ChargeOperator:
    """
    The matrix A of one structure of a batch.

    :param interactions: of the batch
    :param s: number of the structure
    :return: the operator
    """
    begin, end = interactions.first[s], interactions.first[s + 1]
    positions, species = interactions.positions[begin:end], interactions.species[begin:end]
    hardness, variances = interactions.hardness, interactions.variances
    geometry = interactions.geometry
    if geometry.dimensions[s] == 0:
        return isolated_operator(
            positions, hardness[species], variances[species], interactions.max_terms
        )
    if interactions.uses_pairs:
        centers = interactions.centers
        mine = torch.nonzero((centers >= begin) & (centers < end)).squeeze(1)
        pairs = torch.stack([centers[mine], interactions.neighbors[mine]]) - begin
        weights = interactions.pair_weights[mine]
    else:
        pairs = torch.zeros([2, 0], dtype=torch.long, device=positions.device)
        weights = interactions.pair_weights[:0]
    return periodic_operator(
        positions,
        species,
        geometry.cells[s],
        geometry.lengths[s],
        geometry.normals[s],
        geometry.heights[s],
        hardness,
        variances,
        pairs,
        weights,
        interactions.smearing,
        interactions.mesh_spacing,
        interactions.spline_order,
        interactions.angstrom,
    )


def detached(operator: ChargeOperator) -> ChargeOperator:
    """The same operator without derivatives."""
    mesh = operator.mesh
    return ChargeOperator(
        operator.periodic,
        operator.diagonal.detach(),
        operator.pairs,
        operator.pair_weights.detach(),
        SpeciesMesh(mesh.index, mesh.weights.detach(), mesh.filters.detach(), mesh.shape),
        operator.coarse,
        operator.inverse_diagonal,
        operator.jacobi,
        operator.slab_factor.detach(),
        operator.slab_z.detach(),
        operator.slab_shift.detach(),
        operator.positions.detach(),
        operator.variances.detach(),
        operator.max_terms,
    )
