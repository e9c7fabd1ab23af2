"""Parts of the Ewald sum of periodic structures, with the k-vectors of a whole batch at once.

The potentials of a column of charges q are (Ewald, Ann. Phys. 369, 253 (1921); in the notation of
Kolafa and Perram, Mol. Simul. 9, 351 (1992), with alpha = 1 / (sqrt(2) smearing))

    sum_j q_j / r_ij  =  real-space part + reciprocal part - self-potential - background.
"""

import math

import torch
from torch.utils.checkpoint import checkpoint

from .padding import group_by_size, padded_index


def real_space_potentials(
    charges: torch.Tensor,
    centers: torch.Tensor,
    neighbors: torch.Tensor,
    distances: torch.Tensor,
    included: torch.Tensor,
    smearing: float,
) -> torch.Tensor:
    """
    Potentials of point charges screened by Gaussians, over the pairs of the neighbor list.

    :param charges: shape [N, C], e
    :param centers: first atoms of the pairs, shape [P]
    :param neighbors: second atoms of the pairs, shape [P]
    :param distances: shape [P], Angstrom
    :param included: 1 for atoms of periodic structures, else 0, shape [N]
    :param smearing: width of the Gaussians, Angstrom
    :return: shape [N, C], e/Angstrom
    """
    screened = torch.erfc(distances / (math.sqrt(2.0) * smearing)) / distances
    weights = (screened * included[centers]).unsqueeze(-1)
    return torch.zeros_like(charges).index_add(0, centers, charges[neighbors] * weights)


def self_and_background(
    charges: torch.Tensor,
    volumes: torch.Tensor,
    included: torch.Tensor,
    system_index: torch.Tensor,
    smearing: float,
) -> torch.Tensor:
    """
    Potential of each Gaussian at its own centre and of the background that neutralises the cell.

    :param charges: shape [N, C], e
    :param volumes: cell volumes, shape [S], cubic Angstrom
    :param included: 1 for atoms of periodic structures, else 0, shape [N]
    :param system_index: structure of each atom, shape [N]
    :param smearing: width of the Gaussians, Angstrom
    :return: to be subtracted, shape [N, C], e/Angstrom
    """
    charges = charges * included.unsqueeze(-1)
    total = torch.zeros(
        (volumes.size(0), charges.size(1)), dtype=charges.dtype, device=charges.device
    )
    total = total.index_add(0, system_index, charges)
    background = 2.0 * math.pi * smearing**2 * total / volumes.unsqueeze(-1)
    return charges * (math.sqrt(2.0 / math.pi) / smearing) + background[system_index]


def slab_potentials(
    charges: torch.Tensor,
    positions: torch.Tensor,
    normals: torch.Tensor,
    heights: torch.Tensor,
    volumes: torch.Tensor,
    system_index: torch.Tensor,
) -> torch.Tensor:
    r"""
    What turns a stack of slabs into a single one (Yeh and Berkowitz, J. Chem. Phys. 111, 3155
    (1999), eq. 22; for charged slabs Ballenegger, Arnold, Cerda, J. Chem. Phys. 131, 094107 (2009),
    eq. 23):

    .. math::
        V_i = -\frac{2\pi}{V} \sum_j q_j \left[(z_i - z_j)^2 + \frac{H^2}{6}\right] .

    With it and the background of ``self_and_background`` the planar average of a charge is
    :math:`-2\pi |z| / A` without a constant, as in the two-dimensional Ewald sum (Parry, Surf. Sci.
    49, 433 (1975)): the potentials of charged slabs do not depend on the height H either.

    :param charges: shape [N, C], e
    :param positions: shape [N, 3], Angstrom
    :param normals: unit normals of slabs, zero for other structures, shape [S, 3]
    :param heights: heights H of the slabs' cells, zero for other structures, shape [S], Angstrom
    :param volumes: cell volumes, shape [S], cubic Angstrom
    :param system_index: structure of each atom, shape [N]
    :return: shape [N, C], zero for structures that are not slabs, e/Angstrom
    """
    z = (positions * normals[system_index]).sum(dim=-1, keepdim=True)
    # only differences of z enter: a central origin avoids cancellation, and needs no derivative
    sums = torch.zeros((heights.size(0), 2), dtype=z.dtype, device=z.device)
    ones_and_z = torch.cat([torch.ones_like(z), z], dim=1).detach()
    sums = sums.index_add(0, system_index, ones_and_z)
    z = z - (sums[:, 1:] / sums[:, :1])[system_index]

    moments = torch.cat([charges, charges * z, charges * z * z], dim=1)
    total = torch.zeros((heights.size(0), moments.size(1)), dtype=z.dtype, device=z.device)
    total = total.index_add(0, system_index, moments)
    charge, dipole, quadrupole = torch.chunk(total[system_index], 3, dim=1)
    height_squared = (heights * heights)[system_index].unsqueeze(-1)
    bracket = charge * (z * z + height_squared / 6.0) - 2.0 * z * dipole + quadrupole
    is_slab = (heights > 0.0).to(z.dtype)
    return bracket * (-2.0 * math.pi * is_slab / volumes)[system_index].unsqueeze(-1)


def half_space_integers(
    cells: torch.Tensor, lengths: list[list[float]], k_cutoff: float
) -> tuple[torch.Tensor, list[int]]:
    """
    Integers of all k-vectors up to the cutoff, one of each pair k and -k, for many cells at once.

    :param cells: shape [B, 3, 3], Angstrom
    :param lengths: lengths of the cell vectors, [B][3], Angstrom
    :param k_cutoff: 1/Angstrom
    :return: integers of all cells one after another, shape [K, 3], and how many each cell has
    """
    bounds: list[list[int]] = []
    sizes: list[int] = []
    for row in lengths:
        # |k . a| <= |k| |a| bounds the integer along the cell vector a
        bound = [int(k_cutoff * length / (2.0 * math.pi)) for length in row]
        bounds.append(bound)
        sizes.append((bound[0] + 1) * (2 * bound[1] + 1) * (2 * bound[2] + 1))
    device = cells.device
    n = torch.tensor(bounds, device=device)
    size = torch.tensor(sizes, device=device)
    cell_index = torch.repeat_interleave(size, output_size=sum(sizes))
    rank = torch.arange(sum(sizes), device=device) - (size.cumsum(0) - size)[cell_index]
    n = n[cell_index]
    width = 2 * n + 1
    integers = torch.stack(
        [
            rank // (width[:, 2] * width[:, 1]),
            (rank // width[:, 2]) % width[:, 1] - n[:, 1],
            rank % width[:, 2] - n[:, 2],
        ],
        dim=1,
    )
    a, b, c = integers.unbind(dim=1)
    half = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cells.detach()).transpose(1, 2)
    k = (integers.to(cells.dtype).unsqueeze(1) @ reciprocal[cell_index]).squeeze(1)
    kept = torch.nonzero(half & ((k * k).sum(dim=1) <= k_cutoff**2)).squeeze(1)
    counter = torch.zeros_like(size).index_add(0, cell_index[kept], torch.ones_like(kept))
    per_cell: list[int] = counter.tolist()
    return integers[kept], per_cell


def plane_wave_potentials(
    charges: torch.Tensor,
    fractions: torch.Tensor,
    integers: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """
    Sum over k of weight(k) * S(k) * exp(-i k r), real part, with S the structure factor.

    :param charges: shape [B, n, C], zero for filling, e
    :param fractions: positions in units of the cell vectors, shape [B, n, 3]
    :param integers: k-vectors in units of the reciprocal cell vectors, shape [B, K, 3]
    :param weights: shape [B, K], zero for filling
    :return: shape [B, n, C]
    """
    phases = 2.0 * math.pi * torch.bmm(integers, fractions.transpose(1, 2))
    potentials = torch.zeros_like(charges)
    for wave in [torch.cos(phases), torch.sin(phases)]:
        amplitudes = torch.bmm(wave, charges) * weights.unsqueeze(-1)
        potentials = potentials + torch.bmm(wave.transpose(1, 2), amplitudes)
    return potentials


def ewald_potentials(
    charges: torch.Tensor,
    positions: torch.Tensor,
    cells: torch.Tensor,
    structures: list[int],
    first: list[int],
    counts: list[int],
    lengths: list[list[float]],
    smearing: float,
    k_cutoff: float,
    max_phases: int,
) -> torch.Tensor:
    """
    Reciprocal part of the Ewald sum by explicit k-vectors, structures of similar size together.

    Work that exceeds ``max_phases`` phase factors is done in portions, see
    ``isolated_potentials``.

    :param charges: all atoms of the batch, shape [N, C], e
    :param positions: shape [N, 3], Angstrom
    :param cells: shape [S, 3, 3], Angstrom
    :param structures: numbers of the structures to evaluate
    :param first: first atom of every structure of the batch
    :param counts: number of atoms of every structure of the batch
    :param lengths: lengths of the cell vectors of every structure, Angstrom
    :param smearing: width of the Gaussians, Angstrom
    :param k_cutoff: length of the longest k-vector, 1/Angstrom
    :param max_phases: number of phase factors (atoms times k-vectors) evaluated at once
    :return: shape [N, C], zero for atoms of other structures, e/Angstrom
    """
    device = positions.device
    potentials = torch.zeros_like(charges)
    chosen = torch.tensor(structures, device=device)
    integers, num_k = half_space_integers(cells[chosen], [lengths[s] for s in structures], k_cutoff)
    first_k = [0]
    for number in num_k:
        first_k.append(first_k[-1] + number)
    # a cell so small that no k-vector is below the cutoff has no reciprocal part
    members: list[int] = []
    sizes: list[list[int]] = []
    total = 0
    for m, structure in enumerate(structures):
        sizes.append([counts[structure], num_k[m]])
        total += counts[structure] * num_k[m]
        if num_k[m] > 0:
            members.append(m)
    recompute = total > max_phases
    for group in group_by_size(members, sizes):
        longest = max([sizes[m][0] for m in group]) * max([sizes[m][1] for m in group])
        together = max(1, max_phases // longest)
        for begin in range(0, len(group), together):
            part = group[begin : begin + together]
            atoms, atom_mask = padded_index(
                [first[structures[m]] for m in part], [sizes[m][0] for m in part], device
            )
            waves, wave_mask = padded_index(
                [first_k[m] for m in part], [sizes[m][1] for m in part], device
            )
            cell = cells[torch.tensor([structures[m] for m in part], device=device)]
            n = integers[waves].to(cells.dtype)
            k = 2.0 * math.pi * n @ torch.linalg.inv(cell).transpose(1, 2)
            k_squared = (k * k).sum(dim=-1)
            # 8 pi: the Fourier transform of 1/r, twice for k and -k
            weights = 8.0 * math.pi * torch.exp(-0.5 * smearing**2 * k_squared) / k_squared
            weights = weights * wave_mask / torch.det(cell).abs().unsqueeze(-1)
            q = charges[atoms] * atom_mask.unsqueeze(-1).to(charges.dtype)
            r = positions[atoms]
            # far from the origin phases lose digits; the choice of origin has no derivative
            fractions = (r - r[:, :1].detach()) @ torch.linalg.inv(cell)
            v = torch.zeros_like(q)
            rows = max(1, max_phases // (atoms.size(0) * atoms.size(1)))
            for start in range(0, waves.size(1), rows):
                stop = start + rows
                v = v + portion(q, fractions, n[:, start:stop], weights[:, start:stop], recompute)
            v = v * atom_mask.unsqueeze(-1).to(v.dtype)
            potentials = potentials.index_add(0, atoms.flatten(), v.flatten(0, 1))
    return potentials


def portion(
    charges: torch.Tensor,
    fractions: torch.Tensor,
    integers: torch.Tensor,
    weights: torch.Tensor,
    recompute: bool,
) -> torch.Tensor:
    """
    ``plane_wave_potentials``, without storing its intermediate results where that is possible.

    :param recompute: evaluate once more in the backward pass instead of storing
    :return: see ``plane_wave_potentials``
    """
    if torch.jit.is_scripting() or not recompute:
        return plane_wave_potentials(charges, fractions, integers, weights)
    else:
        return checkpoint(
            plane_wave_potentials, charges, fractions, integers, weights, use_reentrant=False
        )
