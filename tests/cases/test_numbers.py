"""Inputs whose numbers once were wrong, or not given."""

import ase
import ase.build
import numpy as np
import pytest
import torch
from helpers import models
from helpers.batches import make_batch, make_random_structure, tune
from metatensor.torch import Labels
from metatomic.torch import ModelOutput
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum
from metatrain_lorem.model import Lorem

ITERATIVE = {"enable": True, "solver": "iterative"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("charge", [1.0, -1.0])
@pytest.mark.parametrize("lattice, a, rattle", [("bcc", 4.29, 0.0), ("fcc", 5.3, 0.05)])
def test_charged_crystals_of_one_element_converge(lattice, a, rattle, charge, dtype):
    """The rounding error of the mean was left in the residual."""
    model = models.new_model(
        charge_equilibration=ITERATIVE, conditional=True, atomic_types=(1, 6, 8, 11)
    ).to(dtype)
    atoms = ase.build.bulk("Na", lattice, a, cubic=True).repeat(4)
    atoms.rattle(rattle, seed=1)
    atoms.info["charge"] = charge
    (system,) = models.systems(model, [atoms])
    outputs = {"charge": ModelOutput(sample_kind="atom")}
    charges = model([system.to(dtype=dtype)], outputs)["charge"].block().values
    assert charges.double().sum().item() == pytest.approx(charge, abs=1e-5)


def test_second_derivatives_of_iterative_charges_are_not_silently_wrong():
    """In TorchScript; eager ones are right, see the finite differences of training."""
    model = models.new_model(charge_equilibration=ITERATIVE)
    scripted = torch.jit.script(model)
    (system,) = models.systems(model, [models.bulk()])
    system.positions.requires_grad_()
    outputs = {"energy": ModelOutput(sample_kind="system")}
    for function, right in [(model, True), (scripted, False)]:
        energy = function([system], outputs)["energy"].block().values.sum()
        (gradient,) = torch.autograd.grad(energy, system.positions, create_graph=True)
        assert torch.isfinite(gradient).all()
        (second,) = torch.autograd.grad(gradient[0, 0], system.positions)
        assert torch.isfinite(second).all() == right


@pytest.mark.parametrize("accuracy", [1e-4, 1e-6])
def test_slab_whose_cell_is_smaller_than_the_cutoff(accuracy):
    """The neighbor list does not reach across the vacuum, which must be as wide as the cutoff."""
    cutoff = 12.0
    atoms = ase.build.graphene(a=2.46, vacuum=None)
    atoms.set_cell(atoms.cell.array + np.diag([0.0, 0.0, 1.0]))
    atoms.pbc = [True, True, False]
    charges = [np.array([[1.0, 0.3], [-1.0, 0.4]])]
    model = models.new_model(cutoff=cutoff)
    vacuum = model.graph.vacuum.least
    data = make_batch([atoms], charges, cutoff)
    found = data.potentials(CoulombSum(cutoff, accuracy), least_vacuum=vacuum)
    exact = make_batch([atoms], charges, 30.0)
    exact = exact.potentials(CoulombSum(30.0, 1e-12), least_vacuum=100.0)
    error = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 2.0 * accuracy


@pytest.mark.parametrize("unit, angstrom", [("nm", 0.1), ("bohr", 1.889726124626)])
def test_meshes_in_other_units(unit, angstrom):
    """The mesh has as many points, and slabs the same cells, in every unit."""
    hypers = get_default_hypers("lorem")["model"]
    hypers["long_range"]["accuracy"] = 1e-8
    hypers["charge_equilibration"]["enable"] = True
    targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    model, other = (
        Lorem({**hypers, "cutoff": 4.0 * factor}, DatasetInfo(name, [1, 6, 7, 8], targets))
        for name, factor in (("angstrom", 1.0), (unit, angstrom))
    )
    for block in ("long_range", "charge_equilibration"):
        sums = [
            getattr(getattr(m, block), "coulomb", getattr(m, block)).settings
            for m in (model, other)
        ]
        spacings = [s.mesh_spacing for s in sums]
        assert spacings[1] / spacings[0] == pytest.approx(angstrom, rel=1e-6)
    slab = models.slab()
    cells = []
    for m, factor in ((model, 1.0), (other, angstrom)):
        scaled = slab.copy()
        scaled.set_cell(slab.cell.array * factor)
        scaled.positions *= factor
        zero = torch.zeros(1, dtype=torch.float64)
        graph = m.graph(models.systems(m, [scaled]), zero, m.total_charge_range)
        cells.append(graph.boundaries.heights.item() / factor)
    assert cells[0] == pytest.approx(cells[1], rel=1e-6)


def test_accuracy_of_a_mesh_in_nanometres():
    angstrom = 0.1
    atoms = make_random_structure(60, [True] * 3, 1)
    charges = [np.random.default_rng(2).normal(size=(60, 2))]
    atoms.set_cell(atoms.cell.array * angstrom)
    atoms.positions *= angstrom
    module = CoulombSum(4.0 * angstrom, 1e-8, angstrom=angstrom)
    data = make_batch([atoms], charges, 4.0 * angstrom)
    tune(module, mesh_threshold=10**15)
    expected = data.potentials(module)
    tune(module, mesh_threshold=0)
    error = (data.potentials(module) - expected).square().mean().sqrt()
    assert error < 2e-8 * expected.square().mean().sqrt()


SELECTIONS = {
    "none of the first": [[1, 0], [1, 2]],
    "a gap": [[0, 1], [2, 0]],
    "nothing": [],
}


@pytest.mark.parametrize("charges", [{}, ITERATIVE], ids=["no charges", "iterative"])
@pytest.mark.parametrize("sample_kind", ["system", "atom"])
@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_selected_atoms_of_some_structures(selection, scripted, sample_kind, charges):
    """Baselines appeared for structures without a selected atom, or did not fit."""
    model = models.new_model(charge_equilibration=charges)
    with torch.no_grad():
        weights = model.additive_models[0].model.weights["energy"]
        weights.block().values[:] = torch.tensor([[-500.0], [-300.0], [-200.0], [-100.0]])
    frames = [models.molecule(), models.bulk(), models.molecule()]
    systems = models.systems(model, frames)
    evaluate = torch.jit.script(model) if scripted else model
    rows = torch.tensor(SELECTIONS[selection], dtype=torch.long).reshape(-1, 2)
    selected = Labels(["system", "atom"], rows)
    outputs = {"energy": ModelOutput(sample_kind=sample_kind)}
    block = evaluate(systems, outputs, selected)["energy"].block()

    per_atom = {"energy": ModelOutput(sample_kind="atom")}
    everything = model(systems, per_atom)["energy"].block()
    atoms = {tuple(s.tolist()): v for s, v in zip(everything.samples.values, everything.values)}  # noqa: B905
    expected = {}
    for system, atom in rows.tolist():
        key = (system, atom) if sample_kind == "atom" else (system,)
        expected[key] = expected.get(key, 0.0) + atoms[system, atom].item()
    found = {tuple(s.tolist()): v.item() for s, v in zip(block.samples.values, block.values)}  # noqa: B905
    assert found == pytest.approx(expected, rel=1e-10)
