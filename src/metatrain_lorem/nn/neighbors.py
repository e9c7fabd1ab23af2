r"""Pairs in an order that makes sums over neighbours cheap."""

from typing import NamedTuple

import torch


class PairBlock(NamedTuple):
    """The pairs of a block of consecutive atoms, sorted by the species of both atoms.

    Species are numbered among those that occur in the batch, atoms and pairs within the block.
    """

    num_atoms: int
    num_pairs: int
    species_sizes: list[int]  # atoms of each species
    pair_sizes: list[int]  # pairs of each two species
    ranks: torch.Tensor  # [atoms], places of the atoms when sorted by species
    bins: torch.Tensor  # [pairs], rank of the center times number of species, plus the neighbor's
    slots: torch.Tensor  # pairs of the first atom, of the second, ...; what fills up is [pairs]
    portion_sizes: list[int]  # atoms of each portion
    portion_lengths: list[int]  # slots of each of its atoms


class SortedPairs(NamedTuple):
    """The pairs of a batch, those of one block after those of another."""

    order: torch.Tensor  # [pairs], places of the pairs in the list they came from
    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    present: torch.Tensor  # [species], numbers in the model of the species that occur
    blocks: list[PairBlock]


def block_and_portion(device: torch.device) -> tuple[int, int]:
    """
    :param device: the pairs' device
    :return: atoms of a block, whose pairs are stored in one array: such arrays stay below the
        32 MB beyond which the C library asks for new memory each time; and atoms of a portion,
        whose neighbours are summed in one product, their lists filled up to the longest one
    """
    if device.type == "cpu":
        return 2048, 256
    return 131072, 16384


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
    block: int,
    portion: int,
) -> torch.Tensor:
    """All numbers that the host must know to sort the pairs, for a single transfer.

    :param species: species of the atoms, 0 ... num_species - 1, ``[atoms]``
    :param centers: central atoms ``[pairs]``
    :param neighbors: neighbours ``[pairs]``
    :param num_species: number of species that the model knows
    :param block: atoms of a block, see :func:`block_and_portion`
    :param portion: atoms of a portion, of which a block has a whole number
    :return: of each block the atoms of each species; of each block the pairs of each two species;
        of each portion the longest list of neighbours
    """
    num_atoms = species.shape[0]
    num_blocks = (num_atoms + block - 1) // block
    species_of_pairs = species[centers] * num_species + species[neighbors]
    species_of_atoms = species
    if num_blocks > 1:
        blocks = torch.arange(num_atoms, device=species.device) // block
        species_of_atoms = blocks * num_species + species
        species_of_pairs = blocks[centers] * (num_species * num_species) + species_of_pairs
    lengths = occurrences(centers, num_atoms)
    lengths = torch.nn.functional.pad(lengths, [0, -num_atoms % portion])
    return torch.cat(
        [
            occurrences(species_of_atoms, num_blocks * num_species),
            occurrences(species_of_pairs, num_blocks * num_species * num_species),
            lengths.view(-1, portion).amax(dim=1),
        ]
    )


def sort_pairs(
    species: torch.Tensor,
    centers: torch.Tensor,
    neighbors: torch.Tensor,
    num_species: int,
    counts: list[int],
    block: int,
    portion: int,
) -> SortedPairs:
    """
    :param species: species of the atoms, 0 ... num_species - 1, ``[atoms]``
    :param centers: central atoms ``[pairs]``, in any order
    :param neighbors: neighbours ``[pairs]``
    :param num_species: number of species that the model knows
    :param counts: :func:`count_pairs` on the host
    :param block: atoms of a block
    :param portion: atoms of a portion
    :return: the sorted pairs
    """
    num_atoms = species.shape[0]
    num_blocks = (num_atoms + block - 1) // block
    pair_counts = counts[num_blocks * num_species :]
    lengths = counts[num_blocks * (num_species + num_species * num_species) :]
    present: list[int] = []
    for s in range(num_species):
        if sum(counts[s : num_blocks * num_species : num_species]) > 0:
            present.append(s)
    of_present = torch.tensor(present, device=species.device)
    places = torch.zeros(num_species, dtype=torch.long, device=species.device)
    places[of_present] = torch.arange(len(present), device=species.device)
    species = places[species]

    species_sizes: list[list[int]] = []
    pair_sizes: list[list[int]] = []
    sizes: list[int] = []
    for n in range(num_blocks):
        species_sizes.append([counts[n * num_species + a] for a in present])
        of_pairs: list[int] = []
        for a in present:
            for b in present:
                of_pairs.append(pair_counts[(n * num_species + a) * num_species + b])
        pair_sizes.append(of_pairs)
        sizes.append(sum(of_pairs))
    keys = species[centers] * len(present) + species[neighbors]
    if num_blocks > 1:
        keys = (centers // block) * (len(present) * len(present)) + keys
    order = torch.argsort(keys, stable=True)
    centers, neighbors = centers[order], neighbors[order]

    blocks: list[PairBlock] = []
    of_neighbors = species[neighbors].split(sizes)
    for n, (of_atoms, local) in enumerate(zip(species.split(block), centers.split(sizes))):  # noqa: B905
        ranks = torch.argsort(torch.argsort(of_atoms, stable=True))
        local = local - n * block
        bins = ranks[local] * len(present) + of_neighbors[n]
        portions = block // portion
        portion_lengths = lengths[n * portions : (n + 1) * portions]
        portion_sizes: list[int] = []
        for p in range(len(portion_lengths)):
            portion_sizes.append(min(portion, of_atoms.shape[0] - p * portion))
        blocks.append(
            PairBlock(
                of_atoms.shape[0],
                sizes[n],
                species_sizes[n],
                pair_sizes[n],
                ranks,
                bins,
                fill_slots(local, portion_sizes, portion_lengths),
                portion_sizes,
                portion_lengths,
            )
        )
    return SortedPairs(order, centers, neighbors, of_present, blocks)


def fill_slots(
    centers: torch.Tensor, portion_sizes: list[int], portion_lengths: list[int]
) -> torch.Tensor:
    """Places for the pairs of each atom, as many for all atoms of a portion.

    :param centers: central atoms ``[pairs]``
    :param portion_sizes: atoms of each portion
    :param portion_lengths: places of each of its atoms
    :return: the pair in each place, the number of pairs where there is none ``[places]``
    """
    device, num_pairs, num_atoms = centers.device, centers.shape[0], sum(portion_sizes)
    num_slots = 0
    for p, length in enumerate(portion_lengths):
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
    return by_center[torch.where(filled, first_pairs[atoms] + numbers, last)]
