"""Checks of the data before training."""

import logging
import math

import pytest
import torch
from metatomic.torch import System
from metatrain.utils.data import get_dataset
from metatrain.utils.data.target_info import get_generic_target_info
from torch.utils.data import Subset

from metatrain_lorem.training.checks import check_data, check_structure, warn_of_missing_forces
from metatrain_lorem.training.distributed import Processes


def structure(positions, cell, pbc) -> System:
    """Hydrogen atoms."""
    return System(
        torch.ones(len(positions), dtype=torch.int32),
        torch.tensor(positions, dtype=torch.float64).reshape(-1, 3),
        torch.tensor(cell, dtype=torch.float64),
        torch.tensor(pbc),
    )


ATOM = [[0.0, 0.0, 0.0]]
NONE = [[0.0, 0.0, 0.0]] * 3
CUBE = [[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]]


@pytest.mark.parametrize(
    "positions, cell, pbc, message",
    [
        ([], NONE, [False] * 3, "no atoms"),
        ([[0.0, math.nan, 0.0]], NONE, [False] * 3, "NaN or infinite"),
        ([[0.0, math.inf, 0.0]], NONE, [False] * 3, "NaN or infinite"),
        (ATOM, [[5.0, 0, 0], [0, 5.0, 0], [0, math.nan, 5.0]], [True] * 3, "NaN or infinite"),
        (ATOM, [[5.0, 0, 0], [0, 5.0, 0], [5.0, 5.0, 1e-6]], [True] * 3, "in one plane"),
        (ATOM, [[5.0, 0, 0], [-3.0, 0, 0], NONE[0]], [True, True, False], "parallel"),
        (ATOM, NONE, [True] * 3, "zero"),
        (ATOM, [NONE[0], [1.0, 0, 0], NONE[0]], [False, True, True], "zero"),
    ],
)
def test_structures_without_neighbour_lists(positions, cell, pbc, message):
    with pytest.raises(ValueError, match=f"^Structure 7 .*{message}"):
        check_structure(structure(positions, cell, pbc), "Structure 7")


@pytest.mark.parametrize(
    "cell, pbc",
    [
        (NONE, [False] * 3),
        (CUBE, [True] * 3),
        ([[0.0, 0.0, 3.0], NONE[0], NONE[0]], [True, False, False]),
        # flat, small and left-handed cells are unusual, but they are cells
        ([[50.0, 0.0, 0.0], [49.0, 1.0, 0.0], NONE[0]], [True, True, False]),
        ([[0.0, 1e-3, 0.0], [1e-3, 0.0, 0.0], [0.0, 0.0, 1e-3]], [True] * 3),
    ],
)
def test_structures_in_order(cell, pbc):
    check_structure(structure(ATOM, cell, pbc), "Structure 7")


def test_structure_is_named_by_its_index_in_the_file(small):
    dataset, info = small.read(small.file)
    dataset[9].system.positions[1, 2] = math.nan
    train, part = Subset(dataset, range(4)), Subset(Subset(dataset, range(4, 24)), range(2, 20))
    with pytest.raises(ValueError, match="^Structure 9 of the validation set has positions"):
        check_data(small.new_model(info), [train], [part], Processes(torch.device("cpu")))


def test_warning_of_energies_without_forces(small, caplog):
    caplog.set_level(logging.WARNING)
    options = small.dataset_options(small.file)
    with_forces = get_dataset(options)[1]
    options["targets"]["energy"]["forces"]["key"] = "force"
    without_forces = get_dataset(options)[1]
    section = {**options["targets"]["energy"], "quantity": "", "per_atom": False}
    other = get_generic_target_info("mtt::total", section)
    caplog.clear()
    warn_of_missing_forces({**with_forces, "mtt::total": other})
    assert caplog.messages == []
    warn_of_missing_forces({"energy": other})
    warn_of_missing_forces(without_forces)
    assert [m.split(":")[0] for m in caplog.messages] == 2 * [
        "Target 'energy' is trained without forces"
    ]
