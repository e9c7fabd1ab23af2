r"""From metatomic systems to one batch of plain tensors."""

import warnings
from typing import NamedTuple

import torch
from metatomic.torch import NeighborListOptions, System


class Batch(NamedTuple):
    """All structures of a batch as one graph.

    ``pairs`` are directed; indices of atoms count through the whole batch.
    """

    positions: torch.Tensor  # [atoms, 3] Å
    types: torch.Tensor  # [atoms] atomic numbers
    cells: torch.Tensor  # [systems, 3, 3] Å, vectors in rows
    pbc: torch.Tensor  # [systems, 3]
    system_index: torch.Tensor  # [atoms]
    atom_index: torch.Tensor  # [atoms], within each structure
    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    vectors: torch.Tensor  # [pairs, 3] Å, from center to neighbor
    distances: torch.Tensor  # [pairs] Å


def concatenate_systems(systems: list[System], neighbors: NeighborListOptions) -> Batch:
    """Concatenate structures; differentiable with respect to positions and cells.

    :param systems: structures with their neighbour lists, none empty
    :param neighbors: which of their neighbour lists to use (full and strict)
    :return: the batch
    :raises ValueError: for a structure without atoms or with a spin multiplicity
    """
    positions: list[torch.Tensor] = []
    types: list[torch.Tensor] = []
    cells: list[torch.Tensor] = []
    pbc: list[torch.Tensor] = []
    sizes: list[int] = []
    centers: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    shifts: list[torch.Tensor] = []
    systems_of_pairs: list[torch.Tensor] = []
    first_atom = 0
    for i, system in enumerate(systems):
        if len(system) == 0:
            raise ValueError(f"structure {i} of the batch has no atoms; remove it")
        if "spin_multiplicity" in system.known_data():
            raise ValueError(
                f"structure {i} of the batch has a spin multiplicity, which this model does not "
                "know; remove it from the data"
            )
        positions.append(system.positions)
        types.append(system.types)
        cells.append(system.cell)
        pbc.append(system.pbc)
        sizes.append(len(system))
        pairs = system.get_neighbor_list(neighbors).samples.values
        centers.append(pairs[:, 0] + first_atom)
        others.append(pairs[:, 1] + first_atom)
        shifts.append(pairs[:, 2:])
        systems_of_pairs.append(torch.full_like(pairs[:, 0], i))
        first_atom += len(system)

    all_positions = torch.cat(positions)
    all_cells = torch.stack(cells)
    all_centers = torch.cat(centers).to(torch.int64)
    all_others = torch.cat(others).to(torch.int64)
    all_shifts = torch.cat(shifts).to(all_positions.dtype)
    device = all_positions.device
    if len(systems) == 1:
        # the general form has a slow backward pass
        offsets = all_shifts @ all_cells[0]
    else:
        offsets = torch.einsum("pa,pab->pb", all_shifts, all_cells[torch.cat(systems_of_pairs)])
    vectors = all_positions[all_others] - all_positions[all_centers] + offsets

    counts = torch.tensor(sizes, device=device)
    system_index = torch.arange(len(sizes), device=device).repeat_interleave(counts)
    first_atoms = (counts.cumsum(0) - counts)[system_index]
    return Batch(
        positions=all_positions,
        types=torch.cat(types).to(torch.int64),
        cells=all_cells,
        pbc=torch.stack(pbc),
        system_index=system_index,
        atom_index=torch.arange(first_atom, device=device) - first_atoms,
        centers=all_centers,
        neighbors=all_others,
        vectors=vectors,
        distances=torch.linalg.vector_norm(vectors, dim=1),
    )


def total_charges(systems: list[System], requested: bool, built_in: float) -> torch.Tensor:
    """Total charges of structures, the standard input ``charge`` of metatomic.

    :param systems: structures
    :param requested: whether the model asks for the input
    :param built_in: total charge of every structure if it does not
    :return: shape [systems], e
    :raises ValueError: where the input is missing
    """
    positions = systems[0].positions
    charges: list[torch.Tensor] = []
    for i, system in enumerate(systems):
        given = "charge" in system.known_data()
        if requested:
            if not given:
                raise ValueError(
                    f"structure {i} of the batch has no total charge, which this model needs: "
                    "extra_data: charge in options files, atoms.info['charge'] in ASE. For engines "
                    "that can't give it (and for metatrain's LLPR), build it into the model with "
                    "python -m metatrain_lorem set-charge"
                )
            charges.append(system.get_data("charge").block().values.flatten()[:1])
        elif given:
            warnings.warn(
                "total charges are given to a model that does not take any; they are ignored",
                stacklevel=2,
            )
    if requested:
        return torch.cat(charges).to(device=positions.device, dtype=positions.dtype)
    return torch.full([len(systems)], built_in, dtype=positions.dtype, device=positions.device)


def check_batch(
    batch: Batch,
    species: torch.Tensor,
    total_charge: torch.Tensor,
    trained: torch.Tensor,
    counts: torch.Tensor,
) -> list[int]:
    """One look at the numbers before they spread.

    :param batch: the batch
    :param species: index of each atom's species, -1 where unknown
    :param total_charge: shape [systems], e
    :param trained: smallest and largest total charge of the training data, infinite and negative
        infinite if unknown
    :param counts: integers that the host has to know; they come along, since every transfer stops
        a GPU
    :return: these integers
    :raises ValueError: for an unknown species, atoms on one spot, or coordinates or total charges
        that are not numbers
    """
    unknown = (species < 0).any()
    coincide = torch.logical_not(batch.distances > 0.0).any()
    no_number = torch.logical_not(torch.isfinite(total_charge)).any()
    low, high = trained[0] - 1e-3, trained[1] + 1e-3
    outside = ((total_charge < low) | (total_charge > high)).any() & (low <= high)
    flags = torch.stack([unknown, coincide, no_number, outside])
    numbers: list[int] = torch.cat([flags.to(counts.dtype), counts]).tolist()
    if numbers[0] > 0:
        atom = int(torch.nonzero(species < 0)[0, 0])
        raise ValueError(
            f"structure {int(batch.system_index[atom])} of the batch, atom "
            f"{int(batch.atom_index[atom])}: the model does not know atomic type "
            f"{int(batch.types[atom])}"
        )
    if numbers[1] > 0:
        pair = int(torch.nonzero(torch.logical_not(batch.distances > 0.0))[0, 0])
        i, j = int(batch.centers[pair]), int(batch.neighbors[pair])
        raise ValueError(
            f"structure {int(batch.system_index[i])} of the batch: atoms "
            f"{int(batch.atom_index[i])} and {int(batch.atom_index[j])} are on one spot, or "
            "their coordinates are not numbers"
        )
    if numbers[2] > 0:
        i = int(torch.nonzero(torch.logical_not(torch.isfinite(total_charge)))[0, 0])
        raise ValueError(
            f"structure {i} of the batch has the total charge {float(total_charge[i])}: correct it"
        )
    if numbers[3] > 0:
        warnings.warn(
            f"a total charge between {float(total_charge.min())} and {float(total_charge.max())} "
            f"is outside of what the model was trained on, {float(trained[0])} to "
            f"{float(trained[1])}",
            stacklevel=2,
        )
    return numbers[4:]
