"""What an evaluation costs, in numbers that do not depend on the machine.

Bounds are a few percent above what was counted when they were set; a change that needs more should
say what for. Times are the matter of ``benchmarks/``.
"""

import importlib
from collections import Counter
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from metatomic.torch import ModelOutput, systems_to_torch
from metatrain.utils.architectures import get_default_hypers, import_architecture
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)

from metatrain_lorem.electrostatics import ewald
from metatrain_lorem.model import Lorem

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OUTPUTS = {"energy": ModelOutput(unit="eV", sample_kind="system")}

pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason=f"needs the repository: no folder {BENCHMARKS}"
)


@pytest.fixture
def count(monkeypatch):
    """Counter of operators, FFTs and bytes."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("roofline").Counter


def default_model(long_range, charges=False):
    """Default hypers, as exported but not yet compiled."""
    hypers = get_default_hypers("lorem")["model"]
    hypers["long_range"]["enable"] = long_range
    hypers["charge_equilibration"]["enable"] = charges
    torch.manual_seed(0)
    targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    model = Lorem(hypers, DatasetInfo("angstrom", [11, 17], targets))
    return model.requires_grad_(False).export().module


def rocksalt(repeat):
    frame = ase.build.bulk("NaCl", "rocksalt", 5.64, cubic=True).repeat(repeat)
    frame.positions += np.random.default_rng(0).normal(scale=0.1, size=frame.positions.shape)
    return frame


def prepared(model, frames, dtype=torch.float32):
    systems = systems_to_torch(frames, dtype=dtype)
    for system in systems:
        system.positions.requires_grad_()
    lists = model.requested_neighbor_lists()
    return [get_system_with_neighbor_lists(system, lists) for system in systems]


def evaluate(model, systems):
    """Energies and forces."""
    energies = model(systems, OUTPUTS)["energy"].block().values
    torch.autograd.grad(energies.sum(), [system.positions for system in systems])


@pytest.mark.parametrize(
    "long_range, atoms, periodic, operators, ffts, kilobytes",
    [
        (False, 16, False, 290, 0, 355),
        (True, 16, False, 390, 0, 460),
        (True, 16, True, 440, 0, 620),
        (False, 216, True, 290, 0, 465),
        (True, 216, True, 600, 20, 740),
    ],
)
def test_operators_and_bytes(count, long_range, atoms, periodic, operators, ffts, kilobytes):
    """20 FFTs: five complex ones for the ten channels of charges, there and back, and once more for
    the derivatives."""
    model = default_model(long_range)
    frame = rocksalt({16: (2, 1, 1), 216: 3}[atoms])
    frame.pbc = periodic
    systems = prepared(model, [frame])
    evaluate(model, systems)
    counter = count()
    with counter:
        evaluate(model, systems)
    assert counter.operators <= operators
    assert counter.ffts == ffts
    assert counter.allocated / atoms / 1e3 <= kilobytes


def test_operators_with_a_backbone(count):
    """Those of both models, and few that join them."""
    info = DatasetInfo(
        "angstrom", [11, 17], {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    )
    hypers = get_default_hypers("lorem")["model"]
    pet = import_architecture("pet").__model__(get_default_hypers("pet")["model"], info)
    numbers = []
    for backbone in (None, "pet"):
        hypers["backbone"] = hypers["backbone"] | {"name": backbone}
        model = Lorem(hypers, info).requires_grad_(False).export().module
        numbers.append(operators(count, model))
    alone = operators(count, pet.requires_grad_(False).export().module)
    print(f"PET {alone}, without it {numbers[0]}, both {numbers[1]}")
    assert numbers[1] - numbers[0] - alone <= 10


def operators(count, model):
    lists = get_requested_neighbor_lists(model)
    (system,) = systems_to_torch([rocksalt((2, 1, 1))], dtype=torch.float32)
    system.positions.requires_grad_()
    systems = [get_system_with_neighbor_lists(system, lists)]
    evaluate(model, systems)
    counter = count()
    with counter:
        evaluate(model, systems)
    return counter.operators


@pytest.mark.parametrize("periodic, operators", [(False, 400), (True, 450)])
def test_operators_of_mixed_precision(count, periodic, operators):
    """Few more for structures in double precision, which exported models take: rounding, and
    positions about their mean."""
    model = default_model(True)
    numbers = []
    for dtype in (torch.float32, torch.float64):
        frame = rocksalt((2, 1, 1))
        frame.pbc = periodic
        systems = prepared(model, [frame], dtype)
        evaluate(model, systems)
        counter = count()
        with counter:
            evaluate(model, systems)
        numbers.append(counter.operators)
    assert numbers[1] - numbers[0] <= 13
    assert numbers[1] <= operators


def test_operators_do_not_grow_with_the_batch(count):
    """No loops over structures: eight clusters take as many operators as two, and these few more
    than one, which needs no padding."""
    model = default_model(True)
    numbers = []
    for size in (1, 2, 8):
        frames = [rocksalt((2, 1, 1)) for _ in range(size)]
        for frame in frames:
            frame.pbc = False
        systems = prepared(model, frames)
        counter = count()
        with counter:
            evaluate(model, systems)
        numbers.append(counter.operators)
    assert numbers[1] - numbers[0] <= 50
    # what joins structures: indices of each one's pairs and their number
    assert numbers[2] - numbers[1] <= 4 * 6


@pytest.mark.parametrize("charges", [False, True], ids=["long range", "and charges"])
@pytest.mark.parametrize("periodic", [False, True], ids=["isolated", "periodic"])
def test_numbers_that_the_host_reads(monkeypatch, charges, periodic):
    """Each would stop a GPU: one before the first stage."""
    model = default_model(True, charges)
    frames = [rocksalt((2, 1, 1)), rocksalt((2, 1, 1))]
    for frame in frames:
        frame.pbc = periodic
    systems = prepared(model, frames)
    reads = Counter()
    paused = []

    def counted(name):
        original = getattr(torch.Tensor, name)

        def method(tensor, *arguments, **options):
            reads[name] += not paused
            return original(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, method)

    def on_the_host(*arguments):
        """k-vectors are found with tensors of the host, which stop nothing."""
        paused.append(True)
        result = half_space_integers(*arguments)
        assert result[0].device.type == "cpu"
        paused.clear()
        return result

    half_space_integers = ewald.half_space_integers
    monkeypatch.setattr(ewald, "half_space_integers", on_the_host)

    for name in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        counted(name)
    evaluate(model, systems)
    assert sum(reads.values()) == 1


def test_a_profile_shows_the_stages():
    """In eager mode and in an exported file alike."""
    model = default_model(True, True)
    systems = prepared(model, [rocksalt((2, 1, 1))])
    for function in (model, torch.jit.script(model)):
        with torch.profiler.profile() as profile:
            function(systems, OUTPUTS)
        names = {event.key for event in profile.key_averages()}
        stages = (
            "graph",
            "short_range",
            "charge_equilibration",
            "long_range",
            "readout",
            "outputs",
        )
        assert {f"lorem::{stage}" for stage in stages} <= names
