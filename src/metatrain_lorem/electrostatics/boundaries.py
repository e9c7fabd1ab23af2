"""What kind of boundary each structure has, and the three-dimensional cell its sum is done in."""

import math
from typing import NamedTuple

import torch

from ..indexing import host_starts
from ..safe import unit_vectors
from .parameters import SumParameters, num_waves


class Boundaries(NamedTuple):
    """Boundaries of the structures of a batch; lists are on the host.

    Without electrostatics all but ``counts`` and ``first`` is empty.
    """

    counts: list[int]  # atoms of each structure
    first: list[int]  # first atom of each structure, and the number of all atoms
    dimensions: list[int]  # periodic directions of each structure
    lengths: list[list[float]]  # of the three cell vectors of the sum, Å
    host_cells: list[list[float]]  # the cells of the sum, nine numbers each, Å
    host_volumes: list[float]  # Å³
    cells: (
        torch.Tensor
    )  # [systems, 3, 3] cells of the sum, vectors in rows, Å; identity if isolated among others
    volumes: torch.Tensor  # [systems] Å³
    normals: torch.Tensor  # [systems, 3] unit normals of slabs, zero for other structures
    heights: torch.Tensor  # [systems] heights of the slabs' cells, zero for other structures, Å


class Vacuum(NamedTuple):
    """Between a slab and its images."""

    least: float  # which real-space interactions and Gaussians must not reach across
    angstrom: float = 1.0  # one Å in the unit of length that is used in fact


def no_boundaries(counts: list[int], like: torch.Tensor) -> Boundaries:
    """For models without electrostatics.

    :param counts: atoms of each structure
    :param like: any tensor on the device
    :return: nothing but the counts
    """
    none = torch.zeros(0, dtype=like.dtype, device=like.device)
    dimensions: list[int] = []
    numbers: list[list[float]] = []
    volumes: list[float] = []
    return Boundaries(
        counts=counts,
        first=host_starts(counts),
        dimensions=dimensions,
        lengths=numbers,
        host_cells=numbers,
        host_volumes=volumes,
        cells=none,
        volumes=none,
        normals=none,
        heights=none,
    )


def area_vectors(cells: torch.Tensor, pbc: torch.Tensor) -> torch.Tensor:
    """
    Vector product of the two periodic cell vectors of slabs, whichever these are.

    :param cells: cell vectors in rows ``[systems, 3, 3]``, Å
    :param pbc: periodic directions ``[systems, 3]``
    :return: ``[systems, 3]``, Å²; without meaning for structures that are not slabs
    """
    a = cells * pbc.unsqueeze(-1)
    return torch.linalg.cross(a, torch.roll(a, -1, dims=1)).sum(dim=1)


def slab_normals(
    cells: torch.Tensor, pbc: torch.Tensor, is_slab: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param cells: cell vectors in rows ``[systems, 3, 3]``, Å
    :param pbc: periodic directions ``[systems, 3]``
    :param is_slab: ``[systems]``
    :return: unit normals, zero for structures that are not slabs, ``[systems, 3]``; areas, any
        positive number for these, ``[systems]``, Å²
    """
    return unit_vectors(area_vectors(cells, pbc), is_slab)


def extents(
    positions: torch.Tensor, directions: torch.Tensor, system_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param positions: ``[atoms, 3]``, Å
    :param directions: ``[systems, directions, 3]``
    :param system_index: structure of each atom ``[atoms]``
    :return: least and largest product of each structure's positions with its directions, each
        ``[systems, directions]``; zero for structures without atoms
    """
    if directions.size(0) == 1 and positions.size(0) > 0:
        return torch.aminmax(positions @ directions[0].T, dim=0, keepdim=True)
    z = (positions.unsqueeze(1) * directions[system_index]).sum(dim=-1)
    zero = torch.zeros(directions.shape[:2], dtype=z.dtype, device=z.device)
    index = system_index.unsqueeze(1).expand_as(z)
    bottom = zero.scatter_reduce(0, index, z, "amin", include_self=False)
    return bottom, zero.scatter_reduce(0, index, z, "amax", include_self=False)


def boundary_table(
    positions: torch.Tensor, cells: torch.Tensor, pbc: torch.Tensor, system_index: torch.Tensor
) -> torch.Tensor:
    """
    Numbers that the host must know to choose how each structure is summed, without derivatives.

    :param positions: ``[atoms, 3]``, Å
    :param cells: cell vectors in rows ``[systems, 3, 3]``, Å
    :param pbc: periodic directions ``[systems, 3]``
    :param system_index: structure of each atom ``[atoms]``
    :return: of each structure its periodic directions (3), cell (9), and the :func:`extents` along
        the vector products of each cell vector with the next, bottom (3) and top (3)
        ``[systems, 18]``
    """
    with torch.no_grad():
        areas = torch.linalg.cross(cells, torch.roll(cells, -1, dims=1))
        bottom, top = extents(positions, areas, system_index)
        return torch.cat([pbc, cells.flatten(1), bottom, top], dim=1)


def cross(a: list[float], b: list[float]) -> list[float]:
    """
    :param a: three numbers
    :param b: three numbers
    :return: their vector product
    """
    return [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]


def norm(a: list[float]) -> float:
    """
    :param a: three numbers
    :return: length of the vector
    """
    return math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])


def inverse_transpose(cell: list[float]) -> list[float]:
    r"""
    :param cell: nine numbers, vectors in rows, not singular, Å
    :return: the vectors of its reciprocal lattice over :math:`2 \pi` in rows, 1/Å
    """
    a, b, c = cell[:3], cell[3:6], cell[6:]
    volume = determinant(cell)
    return [x / volume for x in cross(b, c) + cross(c, a) + cross(a, b)]


def determinant(cell: list[float]) -> float:
    """
    :param cell: nine numbers, vectors in rows, Å
    :return: volume that they span, negative for a left-handed cell, Å³
    """
    a, area = cell[:3], cross(cell[3:6], cell[6:])
    return a[0] * area[0] + a[1] * area[1] + a[2] * area[2]


def check_boundaries(number: int, dimension: int, volume: float, size: float) -> None:
    """
    Refuse boundaries that the Coulomb sum cannot treat.

    :param number: position of the structure in the batch, for the error
    :param dimension: number of periodic directions
    :param volume: volume spanned by the periodic vectors (area for a slab)
    :param size: product of the lengths of the periodic vectors
    :raises ValueError: for one periodic direction and for singular cells
    """
    if dimension == 1:
        raise ValueError(
            f"structure {number} of the batch is periodic in one direction only, for which "
            "long-range electrostatics is not available: make it periodic in three directions "
            "with vacuum around it, or use a model without the long-range block and without charge "
            "equilibration"
        )
    # written so that NaN fails too
    if dimension > 0 and not volume > 1e-6 * size:
        what = "area" if dimension == 2 else "volume"
        raise ValueError(
            f"the periodic cell vectors of structure {number} of the batch span no {what} "
            f"({volume} against {size} for perpendicular vectors of the same lengths): "
            "correct its cell or its periodic directions"
        )


def slab_cell_height(thickness: float, vacuum: float, angstrom: float) -> float:
    """
    Height of the cell of a slab.

    Images across the vacuum act through plane waves that decay as exp(-2 pi z / length), so that
    a vacuum of four times the longest periodic vector leaves exp(-8 pi) = 1e-11. The height is a
    multiple of 5 Å: it, and with it the set of k-vectors, then stays the same under small
    displacements and strains.

    :param thickness: extent of the atoms
    :param vacuum: least distance of images of the atoms
    :param angstrom: one Å in the unit of length
    :return: height
    """
    step = 5.0 * angstrom
    return step * math.ceil((thickness + vacuum) / step)


def find_boundaries(
    cells: torch.Tensor,
    pbc: torch.Tensor,
    counts: list[int],
    table: list[float],
    vacuum: Vacuum,
) -> Boundaries:
    """
    Boundaries of the structures of a batch and the cells of their Coulomb sums.

    The vector of a slab along its non-periodic direction is replaced by one along the normal of
    the two periodic ones.

    :param cells: cell vectors in rows ``[systems, 3, 3]``, Å; rows of non-periodic directions are
        ignored
    :param pbc: periodic directions ``[systems, 3]``
    :param counts: atoms of each structure
    :param table: :func:`boundary_table` on the host, row by row
    :param vacuum: of slabs
    :return: the boundaries of the batch
    :raises ValueError: for one periodic direction and for singular cells
    """
    dimensions: list[int] = []
    lengths: list[list[float]] = []
    host_cells: list[list[float]] = []
    host_volumes: list[float] = []
    heights: list[float] = []
    width = len(table) // len(counts)
    for number in range(len(counts)):
        row = table[number * width : (number + 1) * width]
        cell = row[3:12]
        volume = abs(determinant(cell))
        sides: list[float] = []
        dimension, size, longest = 0, 1.0, 0.0
        for d in range(3):
            side = norm(cell[3 * d : 3 * d + 3])
            sides.append(side)
            if row[d] > 0.0:
                dimension += 1
                size = size * side
                longest = max(longest, side)
        area = [0.0, 0.0, 0.0]
        free, first = 0, 0  # the direction of a slab that is not periodic, and the next
        if dimension == 2:
            free = row[:3].index(0.0)
            first, second = (free + 1) % 3, (free + 2) % 3
            area = cross(cell[3 * first : 3 * first + 3], cell[3 * second : 3 * second + 3])
            volume = norm(area)
        check_boundaries(number, dimension, volume, size)
        height = 0.0
        if dimension == 0:
            cell = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        if dimension == 2:
            normal = [component / volume for component in area]
            thickness = (row[15 + first] - row[12 + first]) / volume
            height = slab_cell_height(thickness, max(4.0 * longest, vacuum.least), vacuum.angstrom)
            volume = volume * height
            sides[free] = height
            for i in range(3):
                cell[3 * free + i] = normal[i] * height
        dimensions.append(dimension)
        lengths.append(sides)
        host_cells.append(cell)
        host_volumes.append(volume)
        heights.append(height)

    num_slabs, num_bulk = dimensions.count(2), dimensions.count(3)
    none = torch.zeros(len(counts), dtype=cells.dtype, device=cells.device)
    normals, height_tensor = none.unsqueeze(1), none
    if num_slabs > 0:
        is_slab = pbc.sum(dim=1) == 2
        normals = slab_normals(cells, pbc, is_slab)[0]
        height_tensor = torch.tensor(heights, dtype=cells.dtype, device=cells.device)
        padded = (normals * height_tensor.unsqueeze(-1)).unsqueeze(1)
        cells = torch.where(pbc.unsqueeze(-1), cells, padded)
    if 0 < num_slabs + num_bulk < len(counts):
        identity = torch.eye(3, dtype=cells.dtype, device=cells.device)
        cells = torch.where((pbc.sum(dim=1) >= 2).view(-1, 1, 1), cells, identity)
    return Boundaries(
        counts=counts,
        first=host_starts(counts),
        dimensions=dimensions,
        lengths=lengths,
        host_cells=host_cells,
        host_volumes=host_volumes,
        cells=cells,
        volumes=torch.det(cells).abs() if num_slabs + num_bulk > 0 else none,
        normals=normals,
        heights=height_tensor,
    )


def least_height(cell: list[float], volume: float) -> float:
    """
    :param cell: nine numbers, vectors in rows, Å
    :param volume: of the cell, Å³
    :return: least distance of opposite faces, Å
    """
    a, b, c = cell[:3], cell[3:6], cell[6:]
    largest = max(norm(cross(a, b)), norm(cross(b, c)), norm(cross(c, a)))
    return volume / largest


def smearings(boundaries: Boundaries, parameters: SumParameters) -> list[float]:
    r"""
    Width of the Gaussians of each structure's sum over k.

    Few atoms in a large cell have more k-vectors, or mesh points, than is worth while. Their
    Gaussians are as wide as the cell permits: to the same accuracy as ever, what these leave out
    then lies within half of the cell's least height :math:`h`, where each pair has one image,

    .. math:: \sigma' = \frac{h / 2}{k_c \sigma} , \quad k_c' = k_c \sigma / \sigma' .

    :param boundaries: of the batch
    :param parameters: of the sum
    :return: of each structure, Å; the smearing of the parameters unless it is sparse
    """
    result: list[float] = []
    for s, dimension in enumerate(boundaries.dimensions):
        smearing = parameters.smearing
        count, volume = boundaries.counts[s], boundaries.host_volumes[s]
        waves = num_waves(parameters.k_cutoff, volume)
        # as many as would be done on a mesh if the cell were full
        few = dimension > 0 and 4 * count * count < parameters.max_terms
        if few and count * waves > parameters.mesh_threshold:
            product = parameters.k_cutoff * smearing
            wide = 0.5 * least_height(boundaries.host_cells[s], volume) / product
            terms = count * (count + num_waves(product / wide, volume))
            if wide > smearing and terms < volume / parameters.mesh_spacing**3:
                smearing = wide
        result.append(smearing)
    return result


def sort_structures(
    boundaries: Boundaries, parameters: SumParameters
) -> tuple[list[int], list[int], list[int]]:
    """
    Which structures are summed directly, with explicit k-vectors, and on a mesh.

    :param boundaries: of the batch
    :param parameters: of the sum
    :return: numbers of isolated, small periodic and large periodic structures, none of them empty
    """
    isolated: list[int] = []
    small: list[int] = []
    large: list[int] = []
    widths = smearings(boundaries, parameters)
    for s, dimension in enumerate(boundaries.dimensions):
        if boundaries.counts[s] == 0:
            continue
        volume = boundaries.host_volumes[s]
        waves = num_waves(parameters.k_cutoff, volume)
        excess = max(1.0, volume / parameters.mesh_spacing**3 / parameters.mesh_points)
        if boundaries.counts[s] <= parameters.few_atoms:
            excess = max(16.0, excess)
        if dimension == 0:
            isolated.append(s)
        elif widths[s] > parameters.smearing:
            small.append(s)
        elif boundaries.counts[s] * waves > parameters.mesh_threshold * excess:
            large.append(s)
        else:
            small.append(s)
    return isolated, small, large
