"""Parts of the Ewald sum of periodic structures, with the k-vectors of many structures at once.

The potentials of a channel of charges q are (Ewald, Ann. Phys. 369, 253 (1921); in the notation of
Kolafa and Perram, Mol. Simul. 9, 351 (1992), with alpha = 1 / (sqrt(2) smearing))

    sum_j q_j / r_ij  =  real-space part + reciprocal part - self-potential - background.
"""

import math
from typing import NamedTuple

import torch

from ..graph import Graph
from ..indexing import host_starts, join, recomputed
from ..nn.constants import join_constants, split_constants
from .boundaries import Boundaries, inverse_transpose, least_height, smearings
from .padding import add_atoms, atoms_of, gather_atoms, group_by_size, padded_index
from .parameters import SumParameters, num_waves


class PlaneWaves(NamedTuple):
    """k-vectors of some structures, one of each pair k and -k, padded to one number."""

    vectors: torch.Tensor  # [structures, waves, 3] 1/Å
    k_squared: torch.Tensor  # [structures, waves] 1/Å², huge for padding, which has no weight then


def half_space_integers(
    cells: list[list[float]], lengths: list[list[float]], k_cutoffs: list[float]
) -> tuple[torch.Tensor, list[int]]:
    """
    Integers of all k-vectors up to a cutoff, one of each pair k and -k, for many cells at once.

    On the host, which knows the cells: no device has to wait for the number of k-vectors.

    :param cells: nine numbers each, Å
    :param lengths: of the three vectors of each cell, Å
    :param k_cutoffs: of each cell, 1/Å
    :return: integers of all cells one after another, as float64 ``[waves, 3]``, and how many each
        cell has
    """
    # |k . a| <= |k| |a| bounds the integer along the cell vector a
    longest = [k_cutoff / (2.0 * math.pi) for k_cutoff in k_cutoffs]
    largest: list[list[int]] = []
    # TorchScript makes tensors of nested lists in single precision
    numbers: list[float] = []
    for s, row in enumerate(lengths):
        largest.append([int(longest[s] * length) for length in row])
        numbers += inverse_transpose(cells[s])
    lattices = torch.tensor(numbers, dtype=torch.float64).view(-1, 3, 3)
    most = max([max(row) for row in largest])
    line = torch.arange(-most, most + 1, dtype=torch.float64)
    integers: list[torch.Tensor] = []
    counts: list[int] = []
    for s, row in enumerate(largest):
        a, b, c = row
        axes = [
            line[most : most + a + 1],
            line[most - b : most + b + 1],
            line[most - c : most + c + 1],
        ]
        box = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).view(-1, 3)
        # in this order -k stands before zero where k stands after it
        box = box[b * (2 * c + 1) + c + 1 :]
        box = box[torch.linalg.vector_norm(box @ lattices[s], dim=1) <= longest[s]]
        integers.append(box)
        counts.append(box.shape[0])
    return join(integers), counts


def plane_waves(
    boundaries: Boundaries,
    structures: list[int],
    inverse_cells: torch.Tensor,
    k_cutoffs: list[float],
) -> PlaneWaves:
    """
    :param boundaries: of the batch
    :param structures: numbers of some periodic structures
    :param inverse_cells: inverses of their cells ``[structures, 3, 3]``, 1/Å
    :param k_cutoffs: length of the longest k-vector of each structure of the batch, 1/Å
    :return: their k-vectors; none at all where every cell is that small
    """
    dtype, device = inverse_cells.dtype, inverse_cells.device
    integers, counts = half_space_integers(
        [boundaries.host_cells[s] for s in structures],
        [boundaries.lengths[s] for s in structures],
        [k_cutoffs[s] for s in structures],
    )
    n = integers.to(device=device, dtype=dtype).unsqueeze(0)
    reciprocal = inverse_cells.transpose(1, 2)
    if len(structures) == 1:
        k = torch.baddbmm(n, n, reciprocal, beta=0.0, alpha=2.0 * math.pi)
        return PlaneWaves(vectors=k, k_squared=(k * k).sum(dim=-1))
    first = host_starts(counts)
    # one cell without k-vectors among others: any index does, it is all padding
    places, mask = padded_index([min(i, first[-1] - 1) for i in first[:-1]], counts, device)
    n = n[0, places]
    k = torch.baddbmm(n, n, reciprocal, beta=0.0, alpha=2.0 * math.pi)
    return PlaneWaves(vectors=k, k_squared=(k * k).sum(dim=-1).masked_fill(~mask, 1e30))


def num_parts(num_waves: int, like: torch.Tensor) -> int:
    """
    :param num_waves: k-vectors that are summed in one product
    :param like: any tensor of the floating-point type
    :return: parts that the product is done in. In single precision each is short: sums over many
        have a rounding error of one sign, 1e-4 of a self-interaction for a million k-vectors
    """
    return max(1, (num_waves + 511) // 512) if like.dtype == torch.float32 else 1


def in_parts(waves: torch.Tensor, parts: int) -> torch.Tensor:
    """
    :param waves: ``[structures, waves, ...]``
    :param parts: see :func:`num_parts`
    :return: ``[structures * parts, waves of a part, ...]``, filled up with zeros
    """
    if parts == 1:
        return waves
    size = (waves.size(1) + parts - 1) // parts
    padding = [0, 0] * (waves.dim() - 2) + [0, parts * size - waves.size(1)]
    shape = [waves.size(0) * parts, size] + list(waves.shape[2:])
    return torch.nn.functional.pad(waves, padding).reshape(shape)


def for_parts(atoms: torch.Tensor, parts: int) -> torch.Tensor:
    """
    :param atoms: ``[structures, atoms, ...]``
    :param parts: see :func:`num_parts`
    :return: ``[structures * parts, atoms, ...]``
    """
    return atoms if parts == 1 else atoms.repeat_interleave(parts, dim=0)


def sum_parts(sums: torch.Tensor, parts: int) -> torch.Tensor:
    """
    :param sums: ``[structures * parts, ...]``
    :param parts: see :func:`num_parts`
    :return: ``[structures, ...]``
    """
    return sums if parts == 1 else sums.unflatten(0, [-1, parts]).sum(dim=1)


def from_first_atoms(positions: torch.Tensor) -> torch.Tensor:
    """
    :param positions: ``[structures, atoms, 3]``, Å
    :return: positions from each structure's first atom: far from the origin phases lose digits,
        and the choice of origin has no derivative
    """
    return positions - positions[:, :1].detach()


def wave_potentials(
    charges: torch.Tensor,
    positions: torch.Tensor,
    vectors: torch.Tensor,
    weights: torch.Tensor,
    shifts: torch.Tensor,
) -> torch.Tensor:
    """
    Sum over k of weight(k) * S(k) * exp(-i k r), real part, with S the structure factor.

    :param charges: ``[structures, atoms, channels]``, zero for padding, e
    :param positions: from near by ``[structures, atoms, 3]``, Å
    :param vectors: k-vectors ``[structures, waves, 3]``, 1/Å
    :param weights: ``[structures, waves]``, zero for padding
    :param shifts: what makes of the sine a cosine, and zero, ``[2, 1, 1]``
    :return: ``[structures, atoms, channels]``
    """
    parts = num_parts(vectors.size(1), charges)
    vectors, weights = in_parts(vectors, parts), in_parts(weights, parts)
    charges, positions = for_parts(charges, parts), for_parts(positions, parts)
    phases = torch.bmm(vectors, positions.transpose(1, 2)).unsqueeze(1)
    waves = torch.sin(phases + shifts).flatten(1, 2)
    amplitudes = torch.bmm(waves, charges).unflatten(1, [2, -1])
    amplitudes = amplitudes * weights.unsqueeze(1).unsqueeze(-1)
    return sum_parts(torch.bmm(waves.transpose(1, 2), amplitudes.flatten(1, 2)), parts)


class PlaneWaveSum(torch.nn.Module):
    """Reciprocal part by explicit k-vectors, structures of similar size together.

    Work that exceeds a number of phase factors is done in chunks, see :class:`IsolatedSum`.

    :param potential: interaction, of torch-pme
    """

    def __init__(self, potential: torch.nn.Module) -> None:
        super().__init__()
        self.potential = potential
        shifts = torch.tensor([0.5 * math.pi, 0.0], dtype=torch.float64).view(2, 1, 1)
        self.register_buffer("shifts", split_constants(shifts), persistent=False)

    def forward(
        self,
        potentials: torch.Tensor,
        charges: torch.Tensor,
        graph: Graph,
        structures: list[int],
        parameters: SumParameters,
    ) -> torch.Tensor:
        """
        :param potentials: to add it to ``[atoms, channels]``, e/Å
        :param charges: ``[atoms, channels]``, e
        :param graph: of the batch
        :param structures: numbers of the structures
        :param parameters: of the sum
        :return: potentials ``[atoms, channels]``, the same for atoms of other structures
        """
        boundaries, device = graph.boundaries, charges.device
        sizes: list[list[int]] = []
        k_cutoffs: list[float] = []
        widths = smearings(boundaries, parameters)
        for s, count in enumerate(boundaries.counts):
            k_cutoffs.append(parameters.k_cutoff * parameters.smearing / widths[s])
            sizes.append([count, int(num_waves(k_cutoffs[s], boundaries.host_volumes[s])) + 1])
        recompute = sum([sizes[s][0] * sizes[s][1] for s in structures]) > parameters.max_terms
        for group in group_by_size(structures, sizes):
            most = max([sizes[s][0] for s in group]) * max([sizes[s][1] for s in group])
            together = max(1, parameters.max_terms // most)
            for begin in range(0, len(group), together):
                members = group[begin : begin + together]
                atoms = atoms_of(members, boundaries, device)
                cells, volumes = boundaries.cells, boundaries.volumes
                if len(members) < len(boundaries.counts):
                    numbers = torch.tensor(members, device=device)
                    cells, volumes = cells[numbers], volumes[numbers]
                # singular cells are refused before: no check here that would stop a GPU
                inverse_cells = torch.linalg.inv_ex(cells)[0]
                waves = plane_waves(boundaries, members, inverse_cells, k_cutoffs)
                sparse: list[int] = []
                for s in members:
                    if widths[s] > parameters.smearing:
                        sparse.append(s)
                if len(sparse) > 0:
                    width = torch.tensor(
                        [widths[s] for s in members], dtype=charges.dtype, device=device
                    )
                    weights = self.potential.wide_from_k_sq(waves.k_squared, width.unsqueeze(1))
                else:
                    weights = self.potential.lr_from_k_sq(waves.k_squared)
                # k and -k count once
                weights = 2.0 * weights / volumes.unsqueeze(1)
                q, mask = gather_atoms(charges, atoms), atoms.mask
                if mask is not None:
                    q = q * mask.unsqueeze(-1)
                r = from_first_atoms(gather_atoms(graph.positions, atoms))
                shifts = join_constants(self.shifts, q.dtype)
                rows = max(1, parameters.max_terms // (q.size(0) * q.size(1)))
                for k, w in zip(waves.vectors.split(rows, dim=1), weights.split(rows, dim=1)):  # noqa: B905
                    if torch.jit.is_scripting() or not recompute:
                        v = wave_potentials(q, r, k, w, shifts)
                    else:
                        v = recomputed(wave_potentials, q, r, k, w, shifts)
                    if mask is not None:
                        v = v * mask.unsqueeze(-1)
                    potentials = add_atoms(potentials, atoms, v)
                for s in sparse:
                    begin_atom, end_atom = boundaries.first[s], boundaries.first[s + 1]
                    own = torch.arange(begin_atom, end_atom, device=device)
                    width = torch.full_like(self.potential.smearing, widths[s])
                    squared, near = nearest_images(graph, s)
                    # less the mean over the cell, which no sum over k has
                    mean = self.potential.integrated_excess(width) / boundaries.volumes[s]
                    matrix = self.potential.excess(squared, width) * near - mean
                    potentials = potentials.index_add(0, own, matrix @ charges[own])
        return potentials


def nearest_images(graph: Graph, structure: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The nearest image of each pair of a sparse structure, of an atom with itself the atom.

    :param graph: of the batch
    :param structure: number of the structure
    :return: squared distances ``[atoms, atoms]``, Å²; whether they lie within half of the cell's
        least height, beyond which wide Gaussians do not differ from narrow ones
    """
    boundaries = graph.boundaries
    begin, end = boundaries.first[structure], boundaries.first[structure + 1]
    positions, cell = graph.positions[begin:end], boundaries.cells[structure]
    difference = positions.unsqueeze(1) - positions.unsqueeze(0)
    images = torch.round(difference.detach() @ torch.linalg.inv_ex(cell.detach())[0])
    difference = difference - images @ cell
    squared = (difference * difference).sum(dim=-1)
    height = least_height(boundaries.host_cells[structure], boundaries.host_volumes[structure])
    return squared, squared < (0.5 * height) ** 2
