r"""From metatomic systems to one graph of plain tensors, built once per evaluation."""

import math
import warnings
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
from .indexing import host_starts, occurrences
from .nn.neighbors import PairBlock, Pairs, count_pairs, pair_blocks, sort_pairs

LARGEST_ATOMIC_TYPE = 255


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


class Graph(NamedTuple):
    """All structures of a batch as one graph, pairs sorted by blocks and species."""

    positions: torch.Tensor  # [atoms, 3] Å
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


class GraphBuilder(torch.nn.Module):
    """Systems to graph, with one look at the numbers before they spread and one transfer to the
    host, since each stops a GPU.

    :param atomic_types: atomic numbers of the species, sorted
    :param neighbor_list: which neighbour list of the systems to use (full and strict)
    :param vacuum: of slabs, for models with sums over periodic images
    :raises ValueError: for atomic types out of range
    """

    vacuum: Vacuum  # TorchScript needs the type

    def __init__(
        self,
        atomic_types: list[int],
        neighbor_list: NeighborListOptions,
        vacuum: Vacuum | None,
    ) -> None:
        super().__init__()
        if atomic_types[0] < 0 or atomic_types[-1] > LARGEST_ATOMIC_TYPE:
            raise ValueError(
                f"atomic types must be between 0 and {LARGEST_ATOMIC_TYPE}: {atomic_types}"
            )
        self.neighbor_list = neighbor_list
        self.num_species = len(atomic_types)
        self.electrostatics: bool = vacuum is not None
        self.vacuum = vacuum or Vacuum(least=0.0)
        types_to_species = torch.full((LARGEST_ATOMIC_TYPE + 2,), -1)
        types_to_species[atomic_types] = torch.arange(len(atomic_types))
        self.register_buffer("types_to_species", types_to_species, persistent=False)

    def forward(
        self, systems: list[System], total_charge: torch.Tensor, trained: torch.Tensor
    ) -> Graph:
        """
        :param systems: structures with their neighbour lists, none empty
        :param total_charge: of each ``[systems]``, e
        :param trained: smallest and largest total charge of the training data ``[2]``, infinite
            and negative infinite if unknown
        :return: the graph, differentiable with respect to positions and cells
        :raises ValueError: for structures that can't be evaluated
        """
        return self.build(concatenate(systems, self.neighbor_list, total_charge), trained)

    def build(self, batch: Batch, trained: torch.Tensor) -> Graph:
        """
        :param batch: structures as plain tensors
        :param trained: see :meth:`forward`
        :return: the graph
        :raises ValueError: for an unknown species, atoms on one spot, coordinates or total charges
            that are not numbers, and boundaries that the Coulomb sum cannot treat
        """
        device, counts = batch.positions.device, batch.counts
        largest = self.types_to_species.shape[0] - 1
        species = self.types_to_species[batch.types.clamp(-1, largest)]
        atoms = torch.arange(batch.positions.shape[0], device=device)
        if len(counts) == 1:
            system_index, atom_index = torch.zeros_like(atoms), atoms
        else:
            system_index = torch.arange(len(counts), device=device).repeat_interleave(
                torch.tensor(counts, device=device), output_size=atoms.shape[0]
            )
            first = torch.tensor(host_starts(counts), device=device)
            atom_index = atoms - first[system_index]

        known = species.clamp(min=0)
        order = sort_pairs(known, batch.centers, batch.neighbors, self.num_species)
        pairs = Pairs(
            centers=batch.centers[order],
            neighbors=batch.neighbors[order],
            species=known,
            num_species=self.num_species,
        )
        shifts = batch.shifts[order].to(batch.positions.dtype)
        if len(counts) == 1:
            # the general form has a slow backward pass
            offsets = shifts @ batch.cells[0]
        else:
            cells = batch.cells[system_index[pairs.centers]]
            offsets = torch.einsum("pa,pab->pb", shifts, cells)
        vectors = batch.positions[pairs.neighbors] - batch.positions[pairs.centers] + offsets
        distances = torch.linalg.vector_norm(vectors, dim=1)

        # the only look at numbers on the device
        looked_at = extremes(species, distances, batch.total_charge, trained)
        pair_counts = count_pairs(pairs)
        numbers = [looked_at, pair_counts.to(torch.float64)]
        if self.electrostatics:
            species_counts = occurrences(
                system_index * self.num_species + known, len(counts) * self.num_species
            )
            table = boundary_table(batch.positions, batch.cells, batch.pbc, system_index)
            numbers += [table.flatten(), species_counts.to(torch.float64)]
        host: list[float] = torch.cat(numbers).tolist()
        refuse(host, batch, species, pairs, distances)
        warn_of_total_charge(host)
        begin, end = looked_at.shape[0], looked_at.shape[0] + pair_counts.shape[0]
        present, blocks = pair_blocks(pairs, [int(n) for n in host[begin:end]])
        structure_species: list[list[int]] = []
        if self.electrostatics:
            last = len(host) - len(counts) * self.num_species
            boundaries = find_boundaries(
                batch.cells, batch.pbc, counts, host[end:last], self.vacuum
            )
            host_counts = host[last:]
            for n in range(len(counts)):
                occurring: list[int] = []
                for i in range(self.num_species):
                    if host_counts[n * self.num_species + i] > 0.0:
                        occurring.append(i)
                structure_species.append(occurring)
        else:
            boundaries = no_boundaries(counts, batch.cells)
        return Graph(
            positions=batch.positions,
            species=species,
            pbc=batch.pbc,
            cells=batch.cells,
            total_charge=batch.total_charge,
            system_index=system_index,
            atom_index=atom_index,
            centers=pairs.centers,
            neighbors=pairs.neighbors,
            vectors=vectors,
            distances=distances,
            present=present,
            blocks=blocks,
            boundaries=boundaries,
            structure_species=structure_species,
        )


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
