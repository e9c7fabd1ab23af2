r"""Pairs in an order that makes sums over neighbours cheap."""

from typing import NamedTuple

import torch

from ..indexing import chunk_sizes, occurrences, starts


class Pairs(NamedTuple):
    """The pairs of a batch by blocks of central atoms, within a block by the species of both."""

    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    species: torch.Tensor  # [atoms] 0 ... num_species - 1
    num_species: int  # that the model knows


class PairBlock(NamedTuple):
    """The pairs of a block of consecutive atoms, sorted by the species of both atoms.

    Species are numbered among those that occur in the batch, atoms and pairs within the block.
    """

    num_atoms: int
    num_pairs: int
    species_sizes: list[int]  # atoms of each species
    pair_sizes: list[int]  # pairs of each two species
    ranks: torch.Tensor  # [atoms], places of the atoms when sorted by species
    bins: torch.Tensor  # [pairs], rank of the centre times number of species, plus the neighbour's
    slots: torch.Tensor  # pairs of the first atom, of the second, ...; padding is [pairs]
    chunk_sizes: list[int]  # atoms of each chunk
    chunk_lengths: list[int]  # slots of each of its atoms


def sort_pairs(
    species: torch.Tensor, centers: torch.Tensor, neighbors: torch.Tensor, num_species: int
) -> torch.Tensor:
    """
    :param species: species of the atoms, 0 ... num_species - 1, ``[atoms]``
    :param centers: central atoms, in any order, ``[pairs]``
    :param neighbors: neighbours ``[pairs]``
    :param num_species: number of species that the model knows
    :return: places of the pairs in the order of :class:`Pairs` ``[pairs]``
    """
    block = chunk_sizes(species.device)[0]
    keys = species[centers] * num_species + species[neighbors]
    if species.shape[0] > block:
        keys = (centers // block) * (num_species * num_species) + keys
    return torch.argsort(keys, stable=True)


def count_pairs(pairs: Pairs) -> torch.Tensor:
    """All numbers that the host must know to cut the pairs into blocks, for a single transfer.

    :param pairs: sorted pairs
    :return: of each block the atoms of each species; of each block the pairs of each two species;
        of each chunk the longest list of neighbours
    """
    block, chunk = chunk_sizes(pairs.species.device)
    num_atoms, num_species = pairs.species.shape[0], pairs.num_species
    num_blocks = (num_atoms + block - 1) // block
    species_of_atoms = pairs.species
    species_of_pairs = species_of_atoms[pairs.centers] * num_species
    species_of_pairs = species_of_pairs + species_of_atoms[pairs.neighbors]
    if num_blocks > 1:
        blocks = torch.arange(num_atoms, device=pairs.species.device) // block
        species_of_atoms = blocks * num_species + species_of_atoms
        species_of_pairs = blocks[pairs.centers] * (num_species * num_species) + species_of_pairs
    lengths = occurrences(pairs.centers, num_atoms)
    lengths = torch.nn.functional.pad(lengths, [0, -num_atoms % chunk])
    return torch.cat(
        [
            occurrences(species_of_atoms, num_blocks * num_species),
            occurrences(species_of_pairs, num_blocks * num_species * num_species),
            lengths.view(-1, chunk).amax(dim=1),
        ]
    )


def pair_blocks(pairs: Pairs, counts: list[int]) -> tuple[torch.Tensor, list[PairBlock]]:
    """
    :param pairs: sorted pairs
    :param counts: :func:`count_pairs` on the host
    :return: numbers in the model of the species that occur ``[species]``, and the blocks
    """
    device = pairs.species.device
    block, chunk = chunk_sizes(device)
    num_atoms, num_species = pairs.species.shape[0], pairs.num_species
    num_blocks = (num_atoms + block - 1) // block
    pair_counts = counts[num_blocks * num_species :]
    lengths = counts[num_blocks * (num_species + num_species * num_species) :]
    present: list[int] = []
    places: list[int] = []
    for s in range(num_species):
        places.append(len(present))
        if sum(counts[s : num_blocks * num_species : num_species]) > 0:
            present.append(s)
    species = torch.tensor(places, device=device)[pairs.species]

    species_sizes: list[list[int]] = []
    pair_sizes: list[list[int]] = []
    sizes: list[int] = []
    for n in range(num_blocks):
        species_sizes.append([counts[n * num_species + a] for a in present])
        block_pairs: list[int] = []
        for a in present:
            for b in present:
                block_pairs.append(pair_counts[(n * num_species + a) * num_species + b])
        pair_sizes.append(block_pairs)
        sizes.append(sum(block_pairs))

    blocks: list[PairBlock] = []
    neighbor_species = species[pairs.neighbors].split(sizes)
    for n, (block_species, centers) in enumerate(
        zip(species.split(block), pairs.centers.split(sizes))  # noqa: B905
    ):
        if n > 0:
            centers = centers - n * block
        ranks = torch.argsort(torch.argsort(block_species, stable=True))
        chunk_lengths = lengths[n * (block // chunk) : (n + 1) * (block // chunk)]
        sizes_of_chunks: list[int] = []
        for p in range(len(chunk_lengths)):
            sizes_of_chunks.append(min(chunk, block_species.shape[0] - p * chunk))
        blocks.append(
            PairBlock(
                num_atoms=block_species.shape[0],
                num_pairs=sizes[n],
                species_sizes=species_sizes[n],
                pair_sizes=pair_sizes[n],
                ranks=ranks,
                bins=ranks[centers] * len(present) + neighbor_species[n],
                slots=pad_slots(centers, sizes_of_chunks, chunk_lengths),
                chunk_sizes=sizes_of_chunks,
                chunk_lengths=chunk_lengths,
            )
        )
    return torch.tensor(present, device=device), blocks


def pad_slots(
    centers: torch.Tensor, chunk_sizes: list[int], chunk_lengths: list[int]
) -> torch.Tensor:
    """Slots for the pairs of each atom, as many for all atoms of a chunk.

    :param centers: central atoms ``[pairs]``
    :param chunk_sizes: atoms of each chunk
    :param chunk_lengths: slots of each of its atoms
    :return: the pair in each slot, the number of pairs where there is none ``[slots]``
    """
    device, num_pairs, num_atoms = centers.device, centers.shape[0], sum(chunk_sizes)
    num_slots = 0
    for p, length in enumerate(chunk_lengths):
        num_slots += chunk_sizes[p] * length
    lengths = occurrences(centers, num_atoms)
    by_center = torch.argsort(centers, stable=True)
    if len(chunk_sizes) == 1:
        # all atoms have the same number of slots
        numbers = torch.arange(chunk_lengths[0], device=device).unsqueeze(0)
        pairs = (starts(lengths).unsqueeze(1) + numbers).flatten()
        mask = (numbers < lengths.unsqueeze(1)).flatten()
    else:
        slots = torch.tensor(chunk_lengths, device=device).repeat_interleave(
            torch.tensor(chunk_sizes, device=device), output_size=num_atoms
        )
        atoms = torch.arange(num_atoms, device=device)
        atoms = atoms.repeat_interleave(slots, output_size=num_slots)
        numbers = torch.arange(num_slots, device=device) - starts(slots)[atoms]
        pairs = starts(lengths)[atoms] + numbers
        mask = numbers < lengths[atoms]
    last = torch.tensor([num_pairs], device=device)
    return torch.cat([by_center, last])[torch.where(mask, pairs, last)]
