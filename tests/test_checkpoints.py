"""Checkpoints of older versions give what they gave: numbers recorded with version 2."""

import gzip
import json
from pathlib import Path

import ase.io
import pytest
import torch
from metatomic.torch import ModelOutput, systems_to_torch
from metatrain.utils.io import model_from_checkpoint
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)

import metatrain_lorem.model  # noqa: F401  (its import makes the classes in checkpoints known)

TESTS = Path(__file__).parent
RESOURCES = TESTS / "resources"
# the order of additions changed with version 3, and the height of a slab's cell
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def load(name):
    folder = RESOURCES if name.startswith("llpr") else TESTS / "checkpoints"
    with gzip.open(folder / f"{name}.ckpt.gz") as file:
        return torch.load(file, weights_only=False)


def frames():
    """Two molecules, one of them again in a periodic box and as a slab."""
    two = ase.io.read(RESOURCES / "molecules.xyz", ":2")
    box = two[1].copy()
    box.set_cell([[5.1, 0.3, 0.0], [0.0, 4.9, 0.2], [0.4, 0.0, 5.3]])
    box.pbc = True
    slab = box.copy()
    slab.pbc = [True, True, False]
    return [*two, box, slab]


def evaluate(model, names):
    systems = systems_to_torch(frames(), dtype=torch.float64)
    lists = get_requested_neighbor_lists(model)
    systems = [get_system_with_neighbor_lists(system, lists) for system in systems]
    outputs = {name: ModelOutput(sample_kind="system") for name in names}
    return {name: values.block().values for name, values in model(systems, outputs).items()}


@pytest.mark.parametrize("name", ["model-v1_trainer-v1", "model-v2_trainer-v1", "llpr-on-model-v2"])
def test_old_checkpoints_give_the_same(name, tmp_path):
    expected = json.loads((RESOURCES / "old-checkpoints.json").read_text())[name]
    model = model_from_checkpoint(load(name), "export").to(torch.float64).eval()
    found = evaluate(model, expected)
    for key, values in expected.items():
        reference = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found[key], reference, **TOLERANCE)
    model.export().save(str(tmp_path / "model.pt"))


@pytest.mark.parametrize("version", [1, 2])
def test_parameters_keep_their_order(version):
    """The state of an optimizer knows parameters by number only."""
    checkpoint = load(f"model-v{version}_trainer-v1")
    before = [n.removeprefix("readout.") for n in checkpoint["model_state_dict"]]
    model = model_from_checkpoint(checkpoint, "restart")
    after = [name.removeprefix("readout.") for name, _ in model.named_parameters()]
    assert after == [name for name in before if name in set(after)]
