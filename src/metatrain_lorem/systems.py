r"""From metatomic systems to plain tensors, one structure after the other, and what is refused."""

import math
import warnings
from typing import NamedTuple

import torch
from metatomic.torch import NeighborListOptions, System

from .indexing import host_starts
from .nn.neighbors import Pairs


class Batch(NamedTuple):
    """Structures one after the other; indices of atoms count through the whole batch."""

    positions: torch.Tensor  # [atoms, 3] Å
    types: torch.Tensor  # [atoms] atomic numbers
    cells: torch.Tensor  # [systems, 3, 3] vectors in rows, Å
    pbc: torch.Tensor  # [systems, 3]
    counts: list[int]  # atoms of each structure
    centers: torch.Tensor  # [pairs] directed, in any order
    neighbors: torch.Tensor  # [pairs]
    shifts: torch.Tensor  # [pairs, 3] cells between the two
    total_charge: torch.Tensor  # [systems] e


def concatenate(
    systems: list[System], neighbors: NeighborListOptions, total_charge: torch.Tensor
) -> Batch:
    """
    :param systems: structures with their neighbour lists, none empty
    :param neighbors: which of their neighbour lists to use
    :param total_charge: of each structure ``[systems]``, e
    :return: the structures one after the other
    :raises ValueError: for a structure without atoms or with a spin multiplicity
    """
    positions: list[torch.Tensor] = []
    types: list[torch.Tensor] = []
    cells: list[torch.Tensor] = []
    pbc: list[torch.Tensor] = []
    counts: list[int] = []
    samples: list[torch.Tensor] = []
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
        counts.append(len(system))
        # first atom, second atom, cells between them
        pairs = system.get_neighbor_list(neighbors).samples.values
        if i > 0:
            pairs = pairs + torch.tensor([first_atom, first_atom, 0, 0, 0], device=pairs.device)
        samples.append(pairs)
        first_atom += len(system)
    all_pairs = torch.cat(samples).to(torch.int64)
    return Batch(
        positions=torch.cat(positions),
        types=torch.cat(types).to(torch.int64),
        cells=torch.stack(cells),
        pbc=torch.stack(pbc),
        counts=counts,
        centers=all_pairs[:, 0],
        neighbors=all_pairs[:, 1],
        shifts=all_pairs[:, 2:],
        total_charge=total_charge,
    )


def total_charges(systems: list[System], requested: bool, built_in: float) -> torch.Tensor:
    """Total charges of structures, the standard input ``charge`` of metatomic.

    :param systems: structures
    :param requested: whether the model asks for the input
    :param built_in: total charge of every structure if it does not
    :return: ``[systems]``, e
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
                    "that can't give it, build it into the model with "
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


def extremes(
    species: torch.Tensor,
    distances: torch.Tensor,
    total_charge: torch.Tensor,
    trained: torch.Tensor,
) -> torch.Tensor:
    """
    What the host has to look at before numbers spread.

    :param species: number of each atom's species, -1 where unknown, ``[atoms]``
    :param distances: of the pairs ``[pairs]``, Å
    :param total_charge: ``[systems]``, e
    :param trained: smallest and largest total charge of the training data ``[2]``
    :return: the least number of a species and the shortest distance, which is no number if one of
        them is none; smallest and largest total charge; the last two again; ``[6]``, float64
    """
    shortest = torch.nn.functional.pad(distances, [0, 1], value=1.0).amin()
    least = torch.nn.functional.pad(species, [0, 1]).amin().to(distances.dtype)
    lowest, highest = torch.aminmax(total_charge)
    numbers = torch.stack([least, shortest, lowest, highest])
    return torch.cat([numbers, trained.to(distances.dtype)]).to(torch.float64)


def refuse(
    numbers: list[float],
    batch: Batch,
    species: torch.Tensor,
    pairs: Pairs,
    distances: torch.Tensor,
) -> None:
    """
    :param numbers: :func:`extremes` on the host
    :param batch: the structures
    :param species: number of each atom's species, -1 where unknown, ``[atoms]``
    :param pairs: pairs of the batch
    :param distances: their distances ``[pairs]``, Å
    :raises ValueError: naming structure and atoms
    """
    first = host_starts(batch.counts)
    if numbers[0] < 0.0:
        atom = int(torch.nonzero(species < 0)[0, 0])
        s = structure_of(atom, first)
        raise ValueError(
            f"structure {s} of the batch, atom {atom - first[s]}: the model does not know atomic "
            f"type {int(batch.types[atom])}"
        )
    if not numbers[1] > 0.0:
        pair = int(torch.nonzero(torch.logical_not(distances > 0.0))[0, 0])
        i, j = int(pairs.centers[pair]), int(pairs.neighbors[pair])
        s = structure_of(i, first)
        raise ValueError(
            f"structure {s} of the batch: atoms {i - first[s]} and {j - first[s]} are on one spot, "
            "or their coordinates are not numbers"
        )
    if not (math.isfinite(numbers[2]) and math.isfinite(numbers[3])):
        s = int(torch.nonzero(torch.logical_not(torch.isfinite(batch.total_charge)))[0, 0])
        raise ValueError(
            f"structure {s} of the batch has the total charge {float(batch.total_charge[s])}: "
            "correct it"
        )


def structure_of(atom: int, first: list[int]) -> int:
    """
    :param atom: its number in the batch
    :param first: first atom of each structure, and the number of all atoms
    :return: the structure that it belongs to
    """
    s = 0
    while first[s + 1] <= atom:
        s += 1
    return s


def warn_of_total_charge(numbers: list[float]) -> None:
    """Warn of total charges beyond the training data's.

    :param numbers: :func:`extremes` on the host
    """
    lowest, highest, low, high = numbers[2], numbers[3], numbers[4], numbers[5]
    if low <= high and (lowest < low - 1e-3 or highest > high + 1e-3):
        warnings.warn(
            f"a total charge between {lowest} and {highest} is outside of what the model was "
            f"trained on, {low} to {high}",
            stacklevel=2,
        )


def warn_of_built_in_charge(charge: str) -> None:
    """Say, in engines too, what the charges of the structures can't tell: only a model that asks
    for them sees those that an engine has.

    :param charge: of every structure in e, empty if none was built in
    """
    if len(charge) > 0:
        warnings.warn(
            f"this model takes every structure to have the total charge {charge} e, which was "
            "built in (set-charge); charges that the structures may have are not looked at",
            stacklevel=2,
        )
