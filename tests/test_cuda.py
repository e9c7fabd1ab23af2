"""A GPU gives what the CPU gives. All tests are skipped where there is none."""

import numpy as np
import pytest
import torch
from ase.calculators.calculator import all_changes
from helpers.batches import tune
from metatomic.torch import ModelOutput, System
from metatomic_ase import MetatomicCalculator
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from torch.utils.data import Subset

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ITERATIVE = {"enable": True, "solver": "iterative", "tolerance": 1e-13}
SHORT = {"long_range": {"enable": False}}
MODELS = {
    "long range": {},
    "short range": SHORT,
    "message passing": {"num_message_passing": 1},
    "ZBL": {"zbl": True},
    "dispersion": {"long_range": {"exponents": [1, 6]}},
    "dense": {"charge_equilibration": {"enable": True, "solver": "dense"}, "conditional": True},
    "iterative": {"charge_equilibration": ITERATIVE, "conditional": True, **SHORT},
    "both": {"charge_equilibration": ITERATIVE, "conditional": True},
}
OUTPUTS = {"energy": ModelOutput(unit="eV", sample_kind="system")}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-5}
"""Relative to the norm, ten times as much for second derivatives. On the CPU, single precision has
errors up to 7e-6 and 6e-5."""


def eager(model):
    return lambda systems: model(systems, OUTPUTS)["energy"].block().values


def derivatives(energies, model, frames, lorem, device, dtype):
    """Energies of a function of systems, their derivatives by all positions and strains, and those
    of a loss of these by all parameters."""
    leaves, systems = [], []
    for system in lorem.systems(model, frames):
        charge = system.get_data("charge") if "charge" in system.known_data() else None
        system = system.to(device=device, dtype=dtype)
        positions = system.positions.detach().requires_grad_(True)
        strain = torch.zeros(3, 3, dtype=dtype, device=device, requires_grad=True)
        deformation = torch.eye(3, dtype=dtype, device=device) + strain
        cell = system.cell @ deformation
        strained = System(system.types, positions @ deformation, cell, system.pbc)
        get_system_with_neighbor_lists(strained, get_requested_neighbor_lists(model))
        if charge is not None:
            strained.add_data("charge", charge.to(device=device, dtype=dtype))
        leaves += [positions, strain]
        systems.append(strained)
    values = energies(systems)
    parameters = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(values.sum(), leaves, create_graph=True)
    loss = sum(gradient.square().sum() for gradient in first)
    second = torch.autograd.grad(loss, parameters, allow_unused=True)
    second = torch.cat([gradient.flatten() for gradient in second if gradient is not None])
    return [part.detach().cpu().double().flatten() for part in (values, *first, second)]


def check(found, expected, tolerance):
    tolerances = [tolerance] * (len(expected) - 1) + [10 * tolerance]
    for value, reference, largest in zip(found, expected, tolerances, strict=True):
        error = float((value - reference).norm() / reference.norm())
        print(f"relative error {error:.1e}")
        assert error <= largest


@pytest.fixture
def frames(lorem):
    """Structures of each kind of boundary, with a total charge for models that take it."""
    copies = [frame.copy() for frame in lorem.frames.values()]
    for frame in copies:
        frame.info["charge"] = 0.7
    return copies


@pytest.mark.parametrize("mesh", [False, True], ids=["waves", "mesh"])
@pytest.mark.parametrize("name", MODELS)
def test_eager(lorem, frames, name, mesh):
    """In double precision, then in single."""
    model = lorem.new_model(**MODELS[name])
    charges = model.charge_equilibration
    if mesh and model.long_range is not None:
        tune(model.long_range.coulomb, mesh_threshold=0)
    if mesh and charges is not None:
        tune(charges, mesh_threshold=0)
    expected = derivatives(eager(model), model, frames, lorem, CPU, torch.float64)
    for dtype, tolerance in TOLERANCES.items():
        if name == "ZBL":
            tolerance = max(
                tolerance, 1e-6
            )  # metatrain takes powers of numbers in single precision
        if dtype == torch.float32 and charges is not None:
            charges.solver = charges.solver._replace(tolerance=1e-6)
        model = model.to(device=CUDA, dtype=dtype)
        check(derivatives(eager(model), model, frames, lorem, CUDA, dtype), expected, tolerance)


@pytest.mark.parametrize("name", ["long range", "dispersion", "dense", "both"])
def test_exported(lorem, frames, tmp_path, name):
    """Also once TorchScript has compiled what it saw in the first calls."""
    lorem.new_model(**MODELS[name]).export().save(str(tmp_path / "model.pt"))
    cpu, gpu = (MetatomicCalculator(tmp_path / "model.pt", device=d) for d in ("cpu", "cuda"))
    for frame in frames:
        properties = ["energy", "forces", "stress"][: 3 if frame.pbc.all() else 2]
        cpu.calculate(frame, properties, all_changes)
        expected = [np.array(cpu.results[name]) for name in properties]
        for _ in range(4):
            gpu.calculate(frame, properties, all_changes)
            for name, reference in zip(properties, expected, strict=True):
                error = np.linalg.norm(gpu.results[name] - reference)
                assert error <= TOLERANCES[torch.float64] * np.linalg.norm(reference)


def test_training(small, tmp_path):
    """Two epochs end where they end on the CPU."""
    dataset, info = small.read(small.file)
    train, valid = Subset(dataset, range(18)), Subset(dataset, range(18, 24))
    metrics = []
    for device in (CPU, CUDA):
        model, trainer = small.new_model(info), small.new_trainer()
        torch.manual_seed(0)
        trainer.train(model, torch.float64, [device], [train], [valid], str(tmp_path))
        assert {p.device.type for p in model.parameters()} == {device.type}
        metrics.append(trainer.best_metric)
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-6)
