r"""From metatomic systems to plain tensors, one structure after the other, and what is refused."""

import math
import warnings
from typing import NamedTuple

import torch
from metatensor.torch import TensorBlock
from metatomic.torch import NeighborListOptions, System, register_autograd_neighbors

from .indexing import host_starts, join
from .nn.neighbors import Pairs


class Batch(NamedTuple):
    """Structures one after the other; indices of atoms count through the whole batch."""

    positions: torch.Tensor  # [atoms, 3] Å
    types: torch.Tensor  # [atoms] atomic numbers
    cells: torch.Tensor  # [systems, 3, 3] vectors in rows, Å
    pbc: torch.Tensor  # [systems, 3]
    counts: list[int]  # atoms of each structure
    pairs: torch.Tensor  # [pairs, 5] central atom, neighbour, cells between them; in any order
    total_charge: torch.Tensor  # [systems] e


def tracked(systems: list[System]) -> list[System]:
    """Structures whose positions derivatives can be taken by, for outputs that are derivatives;
    these are switched on.

    :param systems: structures, left as they are
    :return: the same where their positions have derivatives already, else copies with the same data
    """
    torch.set_grad_enabled(True)
    result: list[System] = []
    for system in systems:
        if not system.positions.requires_grad:
            positions = system.positions.detach().requires_grad_(True)
            copy = System(system.types, positions, system.cell, system.pbc)
            for options in system.known_neighbor_lists():
                pairs = system.get_neighbor_list(options)
                pairs = TensorBlock(
                    pairs.values.detach(), pairs.samples, pairs.components, pairs.properties
                )
                register_autograd_neighbors(copy, pairs)
                copy.add_neighbor_list(options, pairs)
            for name in system.known_data():
                copy.add_data(name, system.get_data(name))
            system = copy
        result.append(system)
    return result


def electric_fields(systems: list[System]) -> torch.Tensor | None:
    """Uniform fields that act on the charges, which engines attach to structures as data
    ``mtt::electric_field``: no model asks for one.

    :param systems: structures
    :return: ``[systems, 3]`` V/Å, zero for structures without; None if there is none at all
    """
    found = False
    for system in systems:
        found = found or "mtt::electric_field" in system.known_data()
    if not found:
        return None
    fields: list[torch.Tensor] = []
    for system in systems:
        field = torch.zeros_like(system.positions[:1])
        if "mtt::electric_field" in system.known_data():
            field = system.get_data("mtt::electric_field").block().values.view(1, 3)
        fields.append(field)
    return torch.cat(fields)


def concatenate(
    systems: list[System], neighbors: NeighborListOptions, total_charge: torch.Tensor
) -> Batch:
    """
    :param systems: structures with their neighbour lists, none empty
    :param neighbors: which of their neighbour lists to use
    :param total_charge: of each structure ``[systems]``, e
    :return: the structures one after the other
    :raises ValueError: for a structure without atoms
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
    return Batch(
        positions=join(positions),
        types=join(types),
        cells=join([cell.unsqueeze(0) for cell in cells]),
        pbc=join([periodic.unsqueeze(0) for periodic in pbc]),
        counts=counts,
        pairs=join(samples).to(torch.int64),
        total_charge=total_charge,
    )


def refuse_spin(systems: list[System]) -> None:
    """
    :param systems: structures
    :raises ValueError: for a spin multiplicity
    """
    for i, system in enumerate(systems):
        if "spin_multiplicity" in system.known_data():
            raise ValueError(
                f"structure {i} of the batch has a spin multiplicity, which this model does not "
                "know; remove it from the data"
            )


def total_charges(
    systems: list[System], requested: bool, built_in: float, dtype: torch.dtype
) -> torch.Tensor:
    """Total charges of structures, the standard input ``charge`` of metatomic.

    :param systems: structures
    :param requested: whether the model asks for the input
    :param built_in: total charge of every structure if it does not
    :param dtype: floating-point type of the model
    :return: ``[systems]``, e
    :raises ValueError: where the input is missing
    """
    device = systems[0].positions.device
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
        return torch.cat(charges).to(device=device, dtype=dtype)
    return torch.full([len(systems)], built_in, dtype=dtype, device=device)


def refuse(
    shortest: list[float],
    charges: list[float],
    batch: Batch,
    pairs: Pairs,
    distances: torch.Tensor,
) -> None:
    """
    :param shortest: of the distances, if there is one, no number if one of them is none; Å
    :param charges: total charges of the structures, e
    :param batch: the structures
    :param pairs: pairs of the batch
    :param distances: their distances ``[pairs]``, Å
    :raises ValueError: naming structure and atoms
    """
    first = host_starts(batch.counts)
    if len(shortest) > 0 and not shortest[0] > 0.0:
        pair = int(torch.nonzero(torch.logical_not(distances > 0.0))[0, 0])
        i, j = int(pairs.centers[pair]), int(pairs.neighbors[pair])
        s = structure_of(i, first)
        raise ValueError(
            f"structure {s} of the batch: atoms {i - first[s]} and {j - first[s]} are on one spot, "
            "or their coordinates are not numbers"
        )
    for s, charge in enumerate(charges):
        if not math.isfinite(charge):
            raise ValueError(
                f"structure {s} of the batch has the total charge {charge}: correct it"
            )


def refuse_unknown(batch: Batch, unknown: torch.Tensor) -> None:
    """
    :param batch: the structures
    :param unknown: whether the model does not know the species of each atom, of some it does not
        ``[atoms]``
    :raises ValueError: naming structure and atom
    """
    first = host_starts(batch.counts)
    atom = int(torch.nonzero(unknown)[0, 0])
    s = structure_of(atom, first)
    raise ValueError(
        f"structure {s} of the batch, atom {atom - first[s]}: the model does not know atomic "
        f"type {int(batch.types[atom])}"
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


def warn_of_total_charge(charges: list[float], low: float, high: float) -> None:
    """Warn of total charges beyond the training data's.

    :param charges: total charges of the structures, e
    :param low: smallest of the training data
    :param high: largest of the training data
    """
    lowest, highest = min(charges), max(charges)
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
