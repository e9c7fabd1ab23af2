"""What kind of boundary each structure has, and the three-dimensional cell its sum is done in."""

import math
from typing import NamedTuple

import torch


class BatchGeometry(NamedTuple):
    """
    Boundaries of the structures of one batch.

    ``cells`` [S, 3, 3]: cell of the three-dimensional sum (Angstrom), the identity if isolated.
    ``normals`` [S, 3]: unit normals of the slabs, zero for other structures.
    ``heights`` [S]: heights of the slabs' cells (Angstrom), zero for other structures.
    ``dimensions``, ``counts``: number of periodic directions and of atoms of each structure, on
    the host.
    ``lengths``: lengths of the three cell vectors of each structure (Angstrom), on the host.
    ``volumes``: cell volumes (cubic Angstrom), on the host.
    """

    cells: torch.Tensor
    normals: torch.Tensor
    heights: torch.Tensor
    dimensions: list[int]
    counts: list[int]
    lengths: list[list[float]]
    volumes: list[float]


def area_vectors(cells: torch.Tensor, pbc: torch.Tensor) -> torch.Tensor:
    """
    Vector product of the two periodic cell vectors of slabs, whichever these are.

    :param cells: cell vectors in rows, shape [S, 3, 3], Angstrom
    :param pbc: periodic directions, bool, shape [S, 3]
    :return: shape [S, 3], square Angstrom; without meaning for structures that are not slabs
    """
    a = cells * pbc.unsqueeze(-1).to(cells.dtype)
    return torch.linalg.cross(a, torch.roll(a, -1, dims=1)).sum(dim=1)


def slab_thickness(
    positions: torch.Tensor,
    normals: torch.Tensor,
    system_index: torch.Tensor,
) -> torch.Tensor:
    """
    Extent of the atoms along the normals.

    :param positions: shape [N, 3], Angstrom
    :param normals: unit vectors, shape [S, 3]
    :param system_index: structure of each atom, shape [N]
    :return: shape [S], Angstrom; zero for structures without atoms
    """
    z = (positions * normals[system_index]).sum(dim=-1)
    zero = torch.zeros(normals.size(0), dtype=z.dtype, device=z.device)
    top = zero.scatter_reduce(0, system_index, z, "amax", include_self=False)
    bottom = zero.scatter_reduce(0, system_index, z, "amin", include_self=False)
    return top - bottom


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


def slab_cell_height(thickness: float, longest: float, least_vacuum: float) -> float:
    """
    Height of the cell of a slab.

    Images across the vacuum act through plane waves that decay as exp(-2 pi z / length), so that
    a vacuum of four times the longest periodic vector leaves exp(-8 pi) = 1e-11. The height is a
    multiple of 5 Angstrom: it, and with it the set of k-vectors, then stays the same under small
    displacements and strains.

    :param thickness: extent of the atoms, Angstrom
    :param longest: length of the longest periodic cell vector, Angstrom
    :param least_vacuum: between images of the atoms, Angstrom
    :return: height in Angstrom
    """
    return 5.0 * math.ceil((thickness + max(4.0 * longest, least_vacuum)) / 5.0)


def batch_geometry(
    positions: torch.Tensor,
    cells: torch.Tensor,
    pbc: torch.Tensor,
    system_index: torch.Tensor,
    slab_height: float,
    slab_vacuum: float = 0.0,
) -> BatchGeometry:
    """
    Classify the structures of a batch and build the cells of their Coulomb sums.

    The vector of a slab along its non-periodic direction is replaced by one along the normal of
    the two periodic ones. Everything the host must know comes over in a single transfer.

    :param positions: shape [N, 3], Angstrom
    :param cells: cell vectors in rows, shape [S, 3, 3], Angstrom; rows of non-periodic directions
        are ignored
    :param pbc: periodic directions, bool, shape [S, 3]
    :param system_index: structure of each atom, shape [N]
    :param slab_height: height of the cells of slabs in Angstrom; 0 to derive it from the structure
    :param slab_vacuum: least vacuum of slabs in Angstrom, for charges that are not points
    :return: the boundaries of the batch
    :raises ValueError: for one periodic direction and for singular cells
    """
    num_structures = cells.size(0)
    dtype, device = positions.dtype, positions.device
    area = area_vectors(cells, pbc)
    is_slab = pbc.sum(dim=1) == 2
    is_bulk = pbc.all(dim=1)
    # a unit area in place of the others' avoids dividing by zero, also in derivatives
    safe_area = torch.where(is_slab.unsqueeze(-1), area, torch.ones_like(area))
    areas = torch.linalg.vector_norm(safe_area, dim=-1)
    normals = safe_area / areas.unsqueeze(-1) * is_slab.unsqueeze(-1).to(dtype)

    with torch.no_grad():
        counts = torch.zeros(num_structures, dtype=dtype, device=device)
        counts = counts.index_add(0, system_index, torch.ones_like(positions[:, 0]))
        volumes = torch.where(is_bulk, torch.det(cells).abs(), areas)
        thickness = slab_thickness(positions, normals, system_index)
        norms = torch.linalg.vector_norm(cells, dim=-1)
        columns = [pbc.to(dtype), norms, torch.stack([volumes, thickness, counts], dim=1)]
        table: list[list[float]] = torch.cat(columns, dim=1).cpu().double().tolist()

    dimensions: list[int] = []
    numbers: list[int] = []
    host_lengths: list[list[float]] = []
    host_volumes: list[float] = []
    heights: list[float] = []
    for number in range(num_structures):
        row = table[number]
        size = 1.0
        longest = 0.0
        for d in range(3):
            if row[d] > 0.0:
                size = size * row[3 + d]
                longest = max(longest, row[3 + d])
        dimension = int(sum(row[:3]))
        check_boundaries(number, dimension, row[6], size)
        lengths = row[3:6]
        volume = row[6]
        height = 0.0
        if dimension == 2:
            height = (
                slab_height if slab_height > 0.0 else slab_cell_height(row[7], longest, slab_vacuum)
            )
            lengths = [row[3 + d] if row[d] > 0.0 else height for d in range(3)]
            volume = volume * height
        dimensions.append(dimension)
        numbers.append(int(row[8]))
        host_lengths.append(lengths)
        host_volumes.append(volume)
        heights.append(height)

    height_tensor = torch.tensor(heights, dtype=dtype, device=device)
    padded = (normals * height_tensor.unsqueeze(-1)).unsqueeze(1)
    sum_cells = torch.where(pbc.unsqueeze(-1), cells, padded)
    identity = torch.eye(3, dtype=dtype, device=device)
    sum_cells = torch.where((is_slab | is_bulk).view(-1, 1, 1), sum_cells, identity)
    return BatchGeometry(
        sum_cells, normals, height_tensor, dimensions, numbers, host_lengths, host_volumes
    )


def sort_structures(
    geometry: BatchGeometry,
    k_cutoff: float,
    mesh_spacing: float,
    mesh_threshold: int,
    mesh_points: int,
) -> tuple[list[int], list[int], list[int]]:
    """
    Which structures are summed directly, with explicit k-vectors, and on a mesh.

    :param geometry: boundaries of the batch
    :param k_cutoff: length of the longest k-vector, 1/Angstrom
    :param mesh_spacing: distance of mesh points, Angstrom
    :param mesh_threshold: atoms times k-vectors above which the mesh is used
    :param mesh_points: mesh points from which on the threshold grows in proportion: a mesh of many
        points has to save more, at high accuracy it would fill the memory of a machine for a few
        atoms and their vacuum
    :return: numbers of isolated, small periodic and large periodic structures, none of them empty
    """
    isolated: list[int] = []
    small: list[int] = []
    large: list[int] = []
    for s, dimension in enumerate(geometry.dimensions):
        if geometry.counts[s] == 0:
            continue
        # half of the k-vectors in a sphere: k and -k count once
        num_k = k_cutoff**3 * geometry.volumes[s] / (12.0 * math.pi**2)
        num_points = geometry.volumes[s] / mesh_spacing**3
        if dimension == 0:
            isolated.append(s)
        elif geometry.counts[s] * num_k > mesh_threshold * max(1.0, num_points / mesh_points):
            large.append(s)
        else:
            small.append(s)
    return isolated, small, large


def first_atoms(counts: list[int]) -> list[int]:
    """
    :param counts: number of atoms of each structure
    :return: first atom of each structure, and the number of all atoms
    """
    first: list[int] = [0]
    for count in counts:
        first.append(first[-1] + count)
    return first
