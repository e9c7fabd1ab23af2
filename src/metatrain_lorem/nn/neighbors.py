r"""Pairs in an order that makes sums over neighbours cheap."""

from typing import NamedTuple

import torch

PORTION = 256
"""Atoms whose neighbours are summed in one product, their lists filled up to the longest one."""


class SortedPairs(NamedTuple):
    """The pairs of a batch, sorted by the species of both atoms.

    Species are numbered among those that occur here.
    """

    order: torch.Tensor  # [pairs], places of the pairs in the list they came from
    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    present: torch.Tensor  # [species], their numbers in the model
    species_sizes: list[int]  # atoms of each species
    pair_sizes: list[int]  # pairs of each two species
    ranks: torch.Tensor  # [atoms], places of the atoms when sorted by species
    bins: torch.Tensor  # [pairs], rank of the center times number of species, plus the neighbor's
    slots: torch.Tensor  # pairs of the first atom, of the second, ...; what fills up is [pairs]
    portion_sizes: list[int]  # atoms of each portion
    portion_lengths: list[int]  # slots of each of its atoms


def occurrences(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """How often each number occurs; unlike ``torch.bincount`` without stopping a GPU.

    :param numbers: integers, 0 ... size - 1, ``[n]``
    :param size: number of different ones
    :return: ``[size]``
    """
    zeros = torch.zeros(size, dtype=numbers.dtype, device=numbers.device)
    return zeros.index_add(0, numbers, torch.ones_like(numbers))


def count_pairs(
    species: torch.Tensor,
    centers: torch.Tensor,
    neighbors: torch.Tensor,
    num_species: int,
    portion: int = PORTION,
) -> torch.Tensor:
    """All numbers that the host must know to sort the pairs, for a single transfer.

    :param species: species of the atoms, 0 ... num_species - 1, ``[atoms]``
    :param centers: central atoms ``[pairs]``
    :param neighbors: neighbours ``[pairs]``
    :param num_species: number of species that the model knows
    :param portion: atoms of a portion
    :return: atoms of each species, pairs of each two species, and the longest list of neighbours
        in each portion
    """
    pair_species = species[centers] * num_species + species[neighbors]
    lengths = occurrences(centers, species.shape[0])
    lengths = torch.nn.functional.pad(lengths, [0, -species.shape[0] % portion])
    return torch.cat(
        [
            occurrences(species, num_species),
            occurrences(pair_species, num_species * num_species),
            lengths.view(-1, portion).amax(dim=1),
        ]
    )


def sort_pairs(
    species: torch.Tensor,
    centers: torch.Tensor,
    neighbors: torch.Tensor,
    num_species: int,
    counts: list[int],
    portion: int = PORTION,
) -> SortedPairs:
    """
    :param species: species of the atoms, 0 ... num_species - 1, ``[atoms]``
    :param centers: central atoms ``[pairs]``, in any order
    :param neighbors: neighbours ``[pairs]``
    :param num_species: number of species that the model knows
    :param counts: :func:`count_pairs` on the host
    :param portion: atoms of a portion
    :return: the sorted pairs
    """
    device = species.device
    num_atoms, num_pairs = species.shape[0], centers.shape[0]
    present: list[int] = []
    species_sizes: list[int] = []
    for s in range(num_species):
        if counts[s] > 0:
            present.append(s)
            species_sizes.append(counts[s])
    pair_sizes: list[int] = []
    for a in present:
        for b in present:
            pair_sizes.append(counts[num_species + a * num_species + b])

    of_present = torch.tensor(present, device=device)
    places = torch.zeros(num_species, dtype=torch.long, device=device)
    places[of_present] = torch.arange(len(present), device=device)
    species = places[species]
    ranks = torch.argsort(torch.argsort(species, stable=True))
    order = torch.argsort(species[centers] * len(present) + species[neighbors], stable=True)
    centers, neighbors = centers[order], neighbors[order]

    portion_lengths = counts[num_species + num_species * num_species :]
    portion_sizes: list[int] = []
    num_slots = 0
    for p, length in enumerate(portion_lengths):
        portion_sizes.append(min(portion, num_atoms - p * portion))
        num_slots += portion_sizes[p] * length
    atoms_of_portions = torch.tensor(portion_sizes, device=device)
    lengths_of_portions = torch.tensor(portion_lengths, device=device)
    slots_of_atoms = lengths_of_portions.repeat_interleave(atoms_of_portions, output_size=num_atoms)
    atoms = torch.arange(num_atoms, device=device)
    atoms = atoms.repeat_interleave(slots_of_atoms, output_size=num_slots)
    first_slots = torch.cumsum(slots_of_atoms, 0) - slots_of_atoms
    numbers = torch.arange(num_slots, device=device) - first_slots[atoms]

    lengths = occurrences(centers, num_atoms)
    first_pairs = torch.cumsum(lengths, 0) - lengths
    last = torch.tensor([num_pairs], device=device)
    by_center = torch.cat([torch.argsort(centers, stable=True), last])
    filled = numbers < lengths[atoms]
    slots = by_center[torch.where(filled, first_pairs[atoms] + numbers, last)]
    return SortedPairs(
        order,
        centers,
        neighbors,
        of_present,
        species_sizes,
        pair_sizes,
        ranks,
        ranks[centers] * len(present) + species[neighbors],
        slots,
        portion_sizes,
        portion_lengths,
    )
