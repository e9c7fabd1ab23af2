"""Few atoms in a large cell: they once took gigabytes for k-vectors or mesh points."""

import ase
import ase.io
import numpy as np
import pytest
import torch
from helpers import models
from helpers.batches import tune
from metatomic.torch import ModelOutput

from metatrain_lorem.electrostatics import ewald, mesh
from metatrain_lorem.electrostatics.boundaries import smearings, sort_structures
from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum
from metatrain_lorem.electrostatics.parameters import num_waves
from metatrain_lorem.training.memory import saved_bytes

PAIR = [[0.0, 0.0, 0.0], [0.2, 0.3, 1.0]]
WATER = [[0.0, 0.0, 0.0], [0.0, 0.8, 0.6], [0.1, -0.8, 0.6]]
HUGE = {
    "two atoms in 291 Å": ase.Atoms("OH", PAIR, cell=[291.0] * 3, pbc=True),
    "slab of 100 Å x 100 Å": ase.Atoms("OH", PAIR, cell=[100.0, 100.0, 0.0], pbc=[1, 1, 0]),
    "molecule in 120 Å": ase.Atoms("OHH", WATER, cell=[120.0] * 3, pbc=True),
}
ENERGY = {"energy": ModelOutput(sample_kind="system")}


def blocks(model):
    return [model.long_range.coulomb, model.long_range.dispersion] + (
        [model.charge_equilibration] if model.charge_equilibration else []
    )


def is_sparse(model, systems):
    """Of each structure, whether each of its sums takes wide Gaussians."""
    charges = torch.zeros(len(systems), dtype=torch.float64)
    boundaries = model.graph(systems, charges, model.total_charge_range).boundaries
    wide = [
        [width > block.settings.smearing for width in smearings(boundaries, block.settings)]
        for block in blocks(model)
    ]
    return [any(column) for column in zip(*wide, strict=True)]


def new_model(equilibrated, accuracy=1e-6):
    return models.new_model(
        long_range={"accuracy": accuracy, "exponents": [1, 6]},
        charge_equilibration={"enable": equilibrated, "accuracy": accuracy},
    )


@pytest.mark.parametrize("equilibrated", [False, True])
@pytest.mark.parametrize("name", HUGE)
def test_memory(monkeypatch, name, equilibrated):
    """What is stored for the backward pass, and the arrays on the way."""
    model = new_model(equilibrated)
    systems = models.systems(model, [HUGE[name]])
    systems[0].positions.requires_grad_(True)
    waves, original = [], ewald.half_space_integers

    def counted(cells, lengths, k_cutoffs):
        sizes = [
            2.0 * np.prod([k * x / np.pi + 1 for x in row])
            for k, row in zip(k_cutoffs, lengths, strict=True)
        ]
        waves.append(sum(sizes))
        assert waves[-1] < 1e6  # numbers of the box around the sphere
        return original(cells, lengths, k_cutoffs)

    monkeypatch.setattr(ewald, "half_space_integers", counted)
    monkeypatch.setattr(mesh.MeshSum, "forward", None)
    assert saved_bytes(lambda: model(systems, ENERGY)["energy"].block().values.sum()) < 20e6
    assert waves


CASES = {
    "cube": ase.Atoms("OHHN", [*WATER, [3.0, 2.0, 5.0]], cell=[18.0] * 3, pbc=True),
    "skewed": ase.Atoms(
        "OHHN",
        [*WATER, [3.0, 2.0, 11.0]],
        cell=[[16.0, 0.0, 0.0], [5.0, 17.0, 0.0], [-4.0, 3.0, 20.0]],
        pbc=True,
    ),
    "slab": ase.Atoms(
        "OHHN",
        [*WATER, [3.0, 6.0, 4.0]],
        cell=[[12.0, 1.0, 0.0], [0.0, 13.0, 0.0], [0.0] * 3],
        pbc=[True, True, False],
    ),
}


@pytest.mark.parametrize("equilibrated", [False, True])
def test_same_as_the_sum_over_all_waves(equilibrated):
    """Energies, forces and derivatives by cell vectors, in a batch with other structures."""
    frames = [models.bulk(), *CASES.values(), models.molecule()]
    results = []
    for sparse in (True, False):
        model = new_model(equilibrated, accuracy=1e-11)
        systems = models.systems(model, frames)
        for block in blocks(model):
            # the atoms are so few that it needs a low bar; without, none is done on a mesh
            threshold = 2_000 if sparse else 2**40
            block.settings = block.settings._replace(mesh_threshold=threshold)
        assert is_sparse(model, systems) == [False, sparse, sparse, sparse, False]
        leaves = []
        for system in systems:
            leaves += [system.positions, system.cell]
            system.positions.requires_grad_(True)
            system.cell.requires_grad_(True)
        values = model(systems, ENERGY)["energy"].block().values
        gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
        results.append([values, *(torch.zeros(1) if g is None else g for g in gradients)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("exponent", [1, 6])
def test_potentials_of_one_sum(name, exponent):
    """Against the sum over all waves, before networks that hide small errors."""
    charges = torch.tensor([[1.0], [-2.0], [0.5], [3.0]], dtype=torch.float64)
    results = []
    for threshold in (2_000, 2**40):
        model = new_model(equilibrated=False, accuracy=1e-10)
        module = CoulombSum(4.0, 1e-10, exponent).to(torch.float64)
        module.settings = module.settings._replace(mesh_threshold=threshold)
        (system,) = models.systems(model, [CASES[name]])
        system.positions.requires_grad_(True)
        graph = model.graph([system], charges[0], model.total_charge_range)
        wide = smearings(graph.boundaries, module.settings)[0] > module.settings.smearing
        assert wide == (threshold == 2_000)
        potentials = module(charges, graph)
        (forces,) = torch.autograd.grad((potentials * charges).sum(), system.positions)
        results.append([potentials, forces])
    for ours, expected in zip(*results, strict=True):
        atol = 1e-9 * float(expected.detach().abs().max())
        torch.testing.assert_close(ours, expected, rtol=0.0, atol=atol)


def test_exported(tmp_path):
    """TorchScript does the same."""
    model = new_model(equilibrated=True)
    frames = [HUGE["molecule in 120 Å"], models.bulk(), HUGE["slab of 100 Å x 100 Å"]]
    systems = models.systems(model, frames)
    expected = model(systems, ENERGY)["energy"].block().values
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(systems, ENERGY, None)["energy"].block().values, expected)


def test_limit_of_a_large_box():
    """A neutral molecule in a large box is that without a box, apart from dipoles of its images."""
    model = models.new_model(charge_equilibration={"enable": True}, long_range={"enable": False})
    molecule = ase.Atoms("OHH", WATER)
    energies = []
    for length in (60.0, 240.0):
        molecule.set_cell([length] * 3)
        molecule.pbc = True
        energies.append(models.values(model, [molecule]).item())
    molecule.pbc = False
    isolated = models.values(model, [molecule]).item()
    near, far = (abs(energy - isolated) for energy in energies)
    assert far < 1e-4
    assert near / far == pytest.approx(64.0, rel=0.2)


def test_estimate_names_the_largest_cell(small, tmp_path, monkeypatch, caplog):
    """Most atoms elsewhere, most memory here: a slab done on a mesh."""
    caplog.set_level("INFO")
    frames = small.structures(8)
    frames[2].set_cell([30.0, 30.0, 0.0])
    frames[2].pbc = [True, True, False]
    for frame in frames:
        frame.info["energy"] = 0.1
    ase.io.write(tmp_path / "slab.xyz", frames)
    dataset, info = small.read(tmp_path / "slab.xyz")
    model = small.new_model(info)
    block = model.long_range.coulomb
    block.settings = block.settings._replace(mesh_threshold=2**40)
    # nothing recomputed, so that it is stored
    monkeypatch.setattr("metatrain_lorem.electrostatics.ewald.recomputed", lambda f, *a: f(*a))
    trainer = small.new_trainer(num_epochs=1)
    monkeypatch.setattr(
        "metatrain_lorem.training.memory.available_memory", lambda device, sharing: 50e6
    )
    with pytest.raises(RuntimeError, match=r"number 2 of the training set .*in the cell \[\[30.0"):
        small.fit(trainer, model, dataset, dataset, tmp_path)


@pytest.mark.parametrize("cell", [[7.0, 8.0, 150.0], [60.0, 60.0, 6.5]], ids=["needle", "plate"])
def test_single_precision_with_many_waves(cell):
    """Sums over a million k-vectors in one product lost four digits of the self-interaction."""
    model = models.new_model(charge_equilibration={"enable": True, "solver": "dense"})
    frame = models.slab()
    frame.pbc = True
    frame.set_cell(cell)
    energies, forces = [], []
    for dtype in (torch.float64, torch.float32):
        model = model.to(dtype)
        (system,) = models.systems(model, [frame])
        system = system.to(dtype=dtype)
        system.positions.requires_grad_()
        energy = model([system], ENERGY)["energy"].block().values
        forces.append(torch.autograd.grad(energy.sum(), system.positions)[0].double())
        energies.append(energy.double())
    scale = forces[0].abs().max()
    assert (energies[1] - energies[0]).abs().max() < 2e-6 * energies[0].abs().max()
    assert (forces[1] - forces[0]).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("cell", [[7.0, 8.0, 150.0], [60.0, 60.0, 6.5]], ids=["needle", "plate"])
def test_few_atoms_in_a_thin_cell(cell):
    """No mesh, which has more points than they have waves, and charges from a stored matrix."""
    few = models.slab()
    few.pbc = True
    few.set_cell(cell)
    grid = np.stack(np.indices((4, 4, 5)), axis=-1).reshape(-1, 3) / [4, 4, 5]
    many = ase.Atoms("H80", grid @ few.cell.array, cell=few.cell, pbc=True)
    assert len(few) < 32 < len(many)
    model = new_model(equilibrated=True)
    charges = torch.zeros(2, dtype=torch.float64)
    systems = models.systems(model, [few, many])
    boundaries = model.graph(systems, charges, model.total_charge_range).boundaries
    for block in blocks(model):
        _, small, large = sort_structures(boundaries, block.settings)
        assert (small, large) == ([0], [1])
        waves = num_waves(block.settings.k_cutoff, boundaries.host_volumes[0])
        tune(block, few_atoms=len(few) - 1, mesh_threshold=int(len(few) * waves) - 1)
        assert sort_structures(boundaries, block.settings)[1] == []
