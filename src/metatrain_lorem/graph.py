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
from .indexing import host_starts, occurrences
from .nn.neighbors import PairBlock, Pairs, count_pairs, pair_blocks, sort_pairs
from .systems import Batch, concatenate, extremes, refuse, warn_of_total_charge

LARGEST_ATOMIC_TYPE = 255


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
            and negative infinite if unknown, in the floating-point type of the model
        :return: the graph in this type, differentiable with respect to positions and cells
        :raises ValueError: for structures that can't be evaluated
        """
        graph = self.build(concatenate(systems, self.neighbor_list, total_charge), trained)
        return in_precision(graph, trained.dtype)

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


def in_precision(graph: Graph, dtype: torch.dtype) -> Graph:
    """
    The same graph in the floating-point type of a model, for models that take structures in double
    precision and evaluate in single.

    Differences of positions are taken before, so that their digits do not depend on where the
    structure is or on how large the cell is. Positions, which enter sums over images, are counted
    from a point near the first atom of each structure; it moves by jumps, and has no derivatives.

    :param graph: of the batch
    :param dtype: wanted floating-point type
    :return: the graph itself if it has that type
    """
    if graph.positions.dtype == dtype:
        return graph
    first = torch.tensor(graph.boundaries.first[:-1], device=graph.positions.device)
    jump = 16.0
    origins = jump * torch.round(graph.positions.detach()[first] / jump)
    b = graph.boundaries
    return Graph(
        positions=(graph.positions - origins[graph.system_index]).to(dtype),
        species=graph.species,
        pbc=graph.pbc,
        cells=graph.cells.to(dtype),
        total_charge=graph.total_charge.to(dtype),
        system_index=graph.system_index,
        atom_index=graph.atom_index,
        centers=graph.centers,
        neighbors=graph.neighbors,
        vectors=graph.vectors.to(dtype),
        distances=graph.distances.to(dtype),
        present=graph.present,
        blocks=graph.blocks,
        boundaries=Boundaries(
            counts=b.counts,
            first=b.first,
            dimensions=b.dimensions,
            lengths=b.lengths,
            host_cells=b.host_cells,
            host_volumes=b.host_volumes,
            cells=b.cells.to(dtype),
            volumes=b.volumes.to(dtype),
            normals=b.normals.to(dtype),
            heights=b.heights.to(dtype),
        ),
        structure_species=graph.structure_species,
    )
