r"""Pairs in an order that makes sums over neighbours cheap."""

from typing import NamedTuple

import torch

from ..indexing import chunk_sizes, cut, occurrences, starts


class Pairs(NamedTuple):
    """The pairs of a batch by blocks of central atoms, within a block by the species of both."""

    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    keys: torch.Tensor  # [pairs] what they are sorted by: number of block and of the two species
    species: torch.Tensor  # [atoms] 0 ... num_species - 1
    all_species: torch.Tensor  # the same, and of atoms that are neighbours only
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
    species: torch.Tensor, pairs: torch.Tensor, num_species: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param species: species of the atoms, 0 ... num_species - 1, ``[atoms]``
    :param pairs: central atoms and neighbours, in any order, ``[pairs, 2]``
    :param num_species: number of species that the model knows
    :return: places of the pairs in the order of :class:`Pairs`, and their keys, each ``[pairs]``
    """
    block = chunk_sizes(species.device)[0]
    center, neighbor = species[pairs].unbind(1)
    keys = torch.add(neighbor, center, alpha=num_species)
    if species.shape[0] > block:
        keys = (pairs[:, 0] // block) * (num_species * num_species) + keys
    keys, order = torch.sort(keys, stable=True)
    return order, keys


class Places(NamedTuple):
    """Where the pairs of each atom go."""

    ranks: torch.Tensor  # [atoms], places of the atoms when sorted by block and species
    lengths: torch.Tensor  # [atoms of whole chunks], their numbers of pairs


def count_pairs(pairs: Pairs) -> tuple[torch.Tensor, Places]:
    """All numbers that the host must know to cut the pairs into blocks, for a single transfer.

    :param pairs: sorted pairs
    :return: of each chunk the longest list of neighbours, of each block the atoms up to each
        species, of each block the pairs up to each two species; and what the host need not know
    """
    device = pairs.species.device
    block, chunk = chunk_sizes(device)
    num_atoms, num_species = pairs.species.shape[0], pairs.num_species
    num_blocks = (num_atoms + block - 1) // block
    species = pairs.species
    if num_blocks > 1:
        blocks = torch.arange(num_atoms, device=device) // block
        species = blocks * num_species + species
    lengths = occurrences(pairs.centers, num_atoms + -num_atoms % chunk)
    keys = torch.arange(num_blocks * num_species * num_species, device=device)
    species, order = torch.sort(species, stable=True)
    numbers = [
        lengths.view(-1, chunk).amax(dim=1),
        torch.searchsorted(species, keys[: num_blocks * num_species], right=True),
        torch.searchsorted(pairs.keys, keys, right=True),
    ]
    return torch.cat(numbers), Places(ranks=torch.argsort(order), lengths=lengths)


def pair_blocks(
    pairs: Pairs, counts: list[int], places: Places
) -> tuple[list[int], list[PairBlock]]:
    """
    :param pairs: sorted pairs
    :param counts: :func:`count_pairs` on the host
    :param places: from :func:`count_pairs`
    :return: numbers in the model of the species that occur, and the blocks
    """
    device = pairs.species.device
    block, chunk = chunk_sizes(device)
    num_atoms, num_species = pairs.species.shape[0], pairs.num_species
    num_blocks = (num_atoms + block - 1) // block
    num_chunks = (num_atoms + chunk - 1) // chunk
    first_key = num_chunks + num_blocks * num_species
    lengths = counts[:num_chunks]
    atom_ends, pair_ends = [0] + counts[num_chunks:first_key], [0] + counts[first_key:]
    atom_counts: list[int] = []
    for key in range(num_blocks * num_species):
        atom_counts.append(atom_ends[key + 1] - atom_ends[key])
    pair_counts: list[int] = []
    for key in range(num_blocks * num_species * num_species):
        pair_counts.append(pair_ends[key + 1] - pair_ends[key])
    present: list[int] = []
    numbers: list[int] = []
    for s in range(num_species):
        numbers.append(len(present))
        # as central atom or as neighbour
        if sum(atom_counts[s::num_species]) + sum(pair_counts[s::num_species]) > 0:
            present.append(s)
    species = pairs.all_species
    if len(present) > 0 and present[-1] >= len(present):
        species = torch.tensor(numbers, device=device)[species]

    species_sizes: list[list[int]] = []
    pair_sizes: list[list[int]] = []
    sizes: list[int] = []
    for n in range(num_blocks):
        species_sizes.append([atom_counts[n * num_species + a] for a in present])
        block_pairs: list[int] = []
        for a in present:
            for b in present:
                block_pairs.append(pair_counts[(n * num_species + a) * num_species + b])
        pair_sizes.append(block_pairs)
        sizes.append(sum(block_pairs))

    blocks: list[PairBlock] = []
    neighbor_species = cut(species[pairs.neighbors], sizes)
    block_lengths = places.lengths.split(block)
    for n, (ranks, centers) in enumerate(
        zip(places.ranks.split(block), cut(pairs.centers, sizes))  # noqa: B905
    ):
        if n > 0:
            ranks, centers = ranks - n * block, centers - n * block
        chunk_lengths = lengths[n * (block // chunk) : (n + 1) * (block // chunk)]
        sizes_of_chunks: list[int] = []
        for p in range(len(chunk_lengths)):
            sizes_of_chunks.append(min(chunk, ranks.shape[0] - p * chunk))
        blocks.append(
            PairBlock(
                num_atoms=ranks.shape[0],
                num_pairs=sizes[n],
                species_sizes=species_sizes[n],
                pair_sizes=pair_sizes[n],
                ranks=ranks,
                bins=torch.add(neighbor_species[n], ranks[centers], alpha=len(present)),
                slots=pad_slots(centers, block_lengths[n], sizes_of_chunks, chunk_lengths),
                chunk_sizes=sizes_of_chunks,
                chunk_lengths=chunk_lengths,
            )
        )
    return present, blocks


def pad_slots(
    centers: torch.Tensor, lengths: torch.Tensor, chunk_sizes: list[int], chunk_lengths: list[int]
) -> torch.Tensor:
    """Slots for the pairs of each atom, as many for all atoms of a chunk.

    :param centers: central atoms ``[pairs]``
    :param lengths: their pairs ``[atoms]``, anything after these
    :param chunk_sizes: atoms of each chunk
    :param chunk_lengths: slots of each of its atoms
    :return: the pair in each slot, the number of pairs where there is none ``[slots]``
    """
    device, num_pairs, num_atoms = centers.device, centers.shape[0], sum(chunk_sizes)
    num_slots = 0
    for p, length in enumerate(chunk_lengths):
        num_slots += chunk_sizes[p] * length
    lengths = lengths[:num_atoms]
    by_center = torch.argsort(centers, stable=True)
    if len(chunk_sizes) == 1:
        # all atoms have the same number of slots
        numbers = torch.arange(chunk_lengths[0], device=device).unsqueeze(0)
        pairs = (starts(lengths).unsqueeze(1) + numbers).flatten()
        padding = (numbers >= lengths.unsqueeze(1)).flatten()
    else:
        slots = torch.tensor(chunk_lengths, device=device).repeat_interleave(
            torch.tensor(chunk_sizes, device=device), output_size=num_atoms
        )
        atoms = torch.arange(num_atoms, device=device)
        atoms = atoms.repeat_interleave(slots, output_size=num_slots)
        numbers = torch.arange(num_slots, device=device) - starts(slots)[atoms]
        pairs = starts(lengths)[atoms] + numbers
        padding = numbers >= lengths[atoms]
    by_center = torch.nn.functional.pad(by_center, [0, 1], value=float(num_pairs))
    return by_center[pairs.masked_fill(padding, num_pairs)]
