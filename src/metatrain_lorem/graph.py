r"""From metatomic systems to one graph of plain tensors, built once per evaluation."""

from typing import NamedTuple

import torch
from metatomic.torch import NeighborListOptions, System

from .electrostatics.boundaries import (
    Boundaries,
    Vacuum,
    boundary_table,
    find_boundaries,
    no_boundaries,
)
from .indexing import host_starts, occurrences, of_systems, sum_systems
from .nn.neighbors import PairBlock, Pairs, count_pairs, pair_blocks, sort_pairs
from .systems import (
    Batch,
    concatenate,
    electric_fields,
    refuse,
    refuse_spin,
    refuse_unknown,
    warn_of_total_charge,
)

LARGEST_ATOMIC_TYPE = 255


class Graph(NamedTuple):
    """All structures of a batch as one graph, pairs sorted by blocks and species."""

    positions: torch.Tensor  # [atoms, 3] Å, in mixed precision about the mean of the structure
    species: torch.Tensor  # [atoms] numbers among the species of the model
    pbc: torch.Tensor  # [systems, 3]
    cells: torch.Tensor  # [systems, 3, 3] vectors in rows, Å
    total_charge: torch.Tensor  # [systems] e
    system_index: torch.Tensor  # [atoms], not decreasing
    atom_index: torch.Tensor  # [atoms], within each structure
    centers: torch.Tensor  # [pairs]
    neighbors: torch.Tensor  # [pairs]
    vectors: torch.Tensor  # [pairs, 3] from centre to neighbour, Å
    distances: torch.Tensor  # [pairs] Å
    present: torch.Tensor  # [species that occur] their numbers
    blocks: list[PairBlock]  # the same pairs
    boundaries: Boundaries  # counts of atoms, and what sums over images need
    structure_species: list[list[int]]  # species that occur in each structure, with electrostatics
    given: list[torch.Tensor]  # positions of each structure, which all else is a function of
    field: torch.Tensor | None  # [systems, 3] electric, V/Å


class Whole(NamedTuple):
    """What a process that has some atoms of a structure knows of all (see :mod:`.stages`)."""

    mean: torch.Tensor  # [3] of the positions, Å
    extents: list[float]  # bottom (3) and top (3), see :func:`boundary_table`
    species: list[int]  # numbers of those that occur


class GraphBuilder(torch.nn.Module):
    """Systems to graph, with one look at the numbers before they spread and one transfer to the
    host, since each stops a GPU.

    :param atomic_types: atomic numbers of the species, sorted
    :param neighbor_list: which neighbour list of the systems to use (full and strict)
    :param vacuum: of slabs, for models with sums over periodic images
    :param takes_spin: whether structures may have a spin multiplicity
    :raises ValueError: for atomic types out of range
    """

    vacuum: Vacuum  # TorchScript needs the type

    def __init__(
        self,
        atomic_types: list[int],
        neighbor_list: NeighborListOptions,
        vacuum: Vacuum | None,
        takes_spin: bool = False,
    ) -> None:
        super().__init__()
        if atomic_types[0] < 0 or atomic_types[-1] > LARGEST_ATOMIC_TYPE:
            raise ValueError(
                f"atomic types must be between 0 and {LARGEST_ATOMIC_TYPE}: {atomic_types}"
            )
        self.neighbor_list = neighbor_list
        self.takes_spin = takes_spin
        self.num_species = len(atomic_types)
        self.electrostatics: bool = vacuum is not None
        self.vacuum = vacuum or Vacuum(least=0.0)
        # one more species stands for those that the model does not know
        types_to_species = torch.full((LARGEST_ATOMIC_TYPE + 2,), self.num_species)
        types_to_species[atomic_types] = torch.arange(len(atomic_types))
        self.register_buffer("types_to_species", types_to_species, persistent=False)

    def forward(
        self,
        systems: list[System],
        total_charge: torch.Tensor,
        trained: torch.Tensor,
    ) -> Graph:
        """
        :param systems: structures with their neighbour lists, none empty
        :param total_charge: of each ``[systems]``, e, in the floating-point type of the model
        :param trained: smallest and largest total charge of the training data ``[2]``, infinite
            and negative infinite if unknown, in the floating-point type of the model
        :return: the graph in this type, differentiable with respect to positions and cells
        :raises ValueError: for structures that can't be evaluated
        """
        if not self.takes_spin:
            refuse_spin(systems)
        given: list[torch.Tensor] = []
        for system in systems:
            given.append(system.positions)
        batch = concatenate(systems, self.neighbor_list, total_charge)
        return self.build(batch, trained, given, electric_fields(systems))

    def build(
        self,
        batch: Batch,
        trained: torch.Tensor,
        given: list[torch.Tensor] | None = None,
        field: torch.Tensor | None = None,
        whole: Whole | None = None,
    ) -> Graph:
        """
        Differences of positions are taken in the precision of the structures, before they are
        rounded to that of the model.

        :param batch: structures as plain tensors
        :param trained: see :meth:`forward`
        :param given: positions of each structure, where those of the batch are made of them
        :param field: electric field on each structure ``[systems, 3]``, V/Å
        :param whole: where the batch holds a part of one structure: its own atoms, which the counts
            are of, and neighbours of these after them
        :return: the graph, of the atoms that are counted; positions of a part are about the mean
            of the whole
        :raises ValueError: for an unknown species, atoms on one spot, coordinates or total charges
            that are not numbers, and boundaries that the Coulomb sum cannot treat
        """
        device, counts = batch.positions.device, batch.counts
        largest = self.types_to_species.shape[0] - 1
        species = self.types_to_species[batch.types.clamp(-1, largest)]
        all_species, positions = species, batch.positions
        if whole is not None:
            species, positions = species[: counts[0]], positions[: counts[0]]
        atoms = torch.arange(positions.shape[0], device=device)
        if len(counts) == 1:
            system_index, atom_index = torch.zeros_like(atoms), atoms
        else:
            system_index = torch.arange(len(counts), device=device).repeat_interleave(
                torch.tensor(counts, device=device), output_size=atoms.shape[0]
            )
            first = torch.tensor(host_starts(counts), device=device)
            atom_index = atoms - first[system_index]

        num_species = self.num_species + 1
        order, keys = sort_pairs(all_species, batch.pairs[:, :2], num_species)
        sorted_pairs = batch.pairs[order]
        pairs = Pairs(
            centers=sorted_pairs[:, 0],
            neighbors=sorted_pairs[:, 1],
            keys=keys,
            species=species,
            all_species=all_species,
            num_species=num_species,
        )
        shifts = sorted_pairs[:, 2:].to(batch.positions.dtype)
        starts, ends = batch.positions[sorted_pairs[:, :2]].unbind(1)
        vectors = ends - starts
        if len(counts) == 1:
            # the general form has a slow backward pass
            vectors = torch.addmm(vectors, shifts, batch.cells[0])
        else:
            cells_of_pairs = batch.cells[system_index[pairs.centers]]
            vectors = vectors + torch.einsum("pa,pab->pb", shifts, cells_of_pairs)
        cells = batch.cells
        if whole is not None:
            positions = (positions - whole.mean).to(trained.dtype)
        elif positions.dtype != trained.dtype:
            positions = centered(positions, system_index, len(counts)).to(trained.dtype)
        if cells.dtype != trained.dtype:
            cells, vectors = cells.to(trained.dtype), vectors.to(trained.dtype)
        distances = torch.linalg.vector_norm(vectors, dim=1)

        # the only look at numbers on the device
        shortest = distances if len(distances) == 0 else distances.amin(0, keepdim=True)
        pair_counts, places = count_pairs(pairs)
        # in double precision, which holds all integers too
        numbers = [shortest, batch.total_charge, trained.to(torch.float64), pair_counts]
        table_size = 0
        if self.electrostatics:
            table = boundary_table(batch.positions, batch.cells, batch.pbc, system_index)
            table_size = table.numel()
            numbers.append(table.flatten())
            if len(counts) > 1:
                keys = system_index * num_species + species
                numbers.append(occurrences(keys, len(counts) * num_species))
        host: list[float] = torch.cat(numbers).tolist()
        begin = len(shortest) + len(counts) + 2
        end = begin + pair_counts.shape[0]
        host_counts = [int(n) for n in host[begin:end]]
        present, blocks = pair_blocks(pairs, host_counts, places)
        if self.num_species in present:
            refuse_unknown(batch, all_species == self.num_species)
        charges = host[len(shortest) : begin - 2]
        refuse(host[: len(shortest)], charges, batch, pairs, distances)
        warn_of_total_charge(charges, host[begin - 2], host[begin - 1])
        structure_species = [present]
        if self.electrostatics:
            last = end + table_size
            rows = host[end:last]
            if whole is not None:
                rows, structure_species = rows[:12] + whole.extents, [whole.species]
            boundaries = find_boundaries(cells, batch.pbc, counts, rows, self.vacuum)
            if len(counts) > 1:
                structure_species = occurring_species(host[last:], num_species)
        else:
            boundaries = no_boundaries(counts, cells)
        return Graph(
            positions=positions,
            species=species,
            pbc=batch.pbc,
            cells=cells,
            total_charge=batch.total_charge,
            system_index=system_index,
            atom_index=atom_index,
            centers=pairs.centers,
            neighbors=pairs.neighbors,
            vectors=vectors,
            distances=distances,
            present=torch.tensor(present, device=device),
            blocks=blocks,
            boundaries=boundaries,
            structure_species=structure_species,
            given=[batch.positions] if given is None else given,
            field=field,
        )


def centered(positions: torch.Tensor, system_index: torch.Tensor, num_systems: int) -> torch.Tensor:
    """
    Positions about the mean of each structure.

    What is computed from them loses no digits far from the origin. It does not change when the
    whole structure moves, so that forces sum to zero, and no part of the virial comes from a
    remaining force times the distance to the origin.

    :param positions: ``[atoms, 3]``
    :param system_index: structure of each atom ``[atoms]``
    :param num_systems: number of structures
    :return: ``[atoms, 3]``
    """
    if num_systems == 1:
        return positions - positions.mean(0)
    ones = torch.ones_like(positions[:, :1])
    sums = sum_systems(torch.cat([positions, ones], dim=1), system_index, num_systems)
    return positions - of_systems(sums[:, :3] / sums[:, 3:], system_index)


def occurring_species(counts: list[float], num_species: int) -> list[list[int]]:
    """
    :param counts: atoms of each species in each structure
    :param num_species: number of species
    :return: numbers of those that occur in each structure
    """
    result: list[list[int]] = []
    for start in range(0, len(counts), num_species):
        occurring: list[int] = []
        for i in range(num_species):
            if counts[start + i] > 0.0:
                occurring.append(i)
        result.append(occurring)
    return result
