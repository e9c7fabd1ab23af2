"""Charges of the model: their sums, symmetries, units, derivatives in training and in export."""

import copy
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from metatomic.torch import ModelEvaluationOptions, ModelOutput, System, load_atomistic_model
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from scipy.spatial.transform import Rotation

ENERGY = get_energy_target_info("energy", {"unit": "eV"})
DIPOLE = get_generic_target_info(
    "mtt::dipole_moment",
    {
        "quantity": "",
        "unit": "e*A",
        "type": {"cartesian": {"rank": 1}},
        "num_subtargets": 1,
        "sample_kind": "system",
    },
)
SHORT = {"long_range": {"enable": False}}


def equilibrated(lorem, targets=None, conditional=True, **entries):
    hypers = {"enable": True, "accuracy": 1e-4, **entries}
    return lorem.new_model(targets, charge_equilibration=hypers, conditional=conditional, **SHORT)


def charged_frames(lorem):
    """All boundaries and sizes from one atom, with total charges."""
    frames = [frame.copy() for frame in lorem.frames.values()]
    frames += [Atoms("O"), lorem.frames["bulk"].repeat((2, 1, 1))]
    frames.append(Atoms("O", cell=[9, 9, 9], pbc=True))
    for frame, charge in zip(frames, [1.0, -1.0, 0.0, 1.0, 2.0, -0.5], strict=True):
        frame.info["charge"] = charge
    return frames


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_sums(lorem, solver, dtype):
    model = equilibrated(lorem, solver=solver).to(dtype)
    frames = charged_frames(lorem)
    # equal charges in each cell, whose rounding errors add up
    frames.append(lorem.frames["bulk"].repeat(4))
    frames[-1].info["charge"] = 3.0
    systems = [system.to(dtype) for system in lorem.systems(model, frames)]
    with torch.no_grad():
        block = model(systems, {"charge": ModelOutput(sample_kind="atom")})["charge"].block()
    for i, frame in enumerate(frames):
        charges = block.values[block.samples.column("system") == i].double()
        assert len(charges) == len(frame)
        assert len(frame) == 1 or charges.std() > 0.01
        absolute, per_atom = (1e-6, 1e-7 * len(frame) ** 0.5)
        if dtype == torch.float64:
            absolute, per_atom = 1e-12, 1e-15 * len(frame)
        assert abs(charges.sum() - frame.info["charge"]) < max(absolute, per_atom)


@pytest.mark.parametrize("output", ["charge", "energy"])
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_batch_equals_one_by_one(lorem, solver, output):
    model = equilibrated(lorem, solver=solver, tolerance=1e-12)
    frames = charged_frames(lorem)
    single = [lorem.values(model, [frame], output, "atom") for frame in frames]
    order = [4, 1, 5, 3, 0, 2]
    together = lorem.values(model, [frames[i] for i in order], output, "atom")
    expected = torch.cat([single[i] for i in order])
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("boundary", ["bulk", "slab", "molecule"])
def test_solvers_agree(lorem, boundary):
    frame = lorem.frames[boundary].copy()
    frame.info["charge"] = 1.0
    for output, kind in (("charge", "atom"), ("energy", "system")):
        dense, iterative = (
            lorem.values(equilibrated(lorem, solver=solver), [frame], output, kind)
            for solver in ("dense", "iterative")
        )
        # the accuracy of the sums over images
        assert (dense - iterative).abs().max() < 1e-3 * dense.abs().max()


@pytest.mark.parametrize("boundary", ["bulk", "slab", "molecule"])
def test_symmetries(lorem, boundary):
    """Permutation, translation, rotation and inversion at a total charge."""
    model = equilibrated(lorem, accuracy=1e-10, solver="dense")
    frame = lorem.frames[boundary].copy()
    frame.info["charge"] = -1.0
    before = lorem.values(model, [frame], "charge", "atom")
    order = np.random.default_rng(0).permutation(len(frame))
    other = frame[order]
    other.info["charge"] = -1.0
    other.positions += [0.3, -5.0, 2.0]
    matrix = -Rotation.from_euler("xyz", [0.4, 1.1, -2.3]).as_matrix()
    other.set_cell(other.cell.array @ matrix.T)
    other.positions = other.positions @ matrix.T
    after = lorem.values(model, [other], "charge", "atom")
    torch.testing.assert_close(after, before[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("solver, tolerance", [("dense", 1e-9), ("iterative", 1e-5)])
def test_supercell(lorem, solver, tolerance, charge):
    model = equilibrated(lorem, solver=solver, accuracy=tolerance / 10)
    frame = lorem.frames["bulk"].copy()
    frame.info["charge"] = charge
    copies = frame.repeat((2, 2, 1))
    copies.info["charge"] = 4 * charge
    for output in ("charge", "energy"):
        before = lorem.values(model, [frame], output, "atom").repeat(4, 1)
        after = lorem.values(model, [copies], output, "atom")
        assert (after - before).abs().max() < tolerance * before.std()


def energy_of_charges_only(model):
    """Let the heads of energies return zero."""
    for name, head in model.readout.heads.items():
        if name != "mtt::dipole_moment":
            torch.nn.init.zeros_(head.invariants.last_layer.weight)
    return model


@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_units(lorem, solver):
    """The same physics for lengths in bohr and energies in kcal/mol."""
    bohr = 1 / 0.529177210903
    energy = get_energy_target_info("energy", {"unit": "kcal/mol"})
    hypers = {"enable": True, "solver": solver, "tolerance": 1e-12, "accuracy": 1e-6}
    hypers["hardness"] = "features"
    models, frames = [], []
    for unit, target, factor in (("angstrom", ENERGY, 1.0), ("bohr", energy, bohr)):
        model = lorem.new_model(
            {"energy": target},
            charge_equilibration=hypers,
            length_unit=unit,
            conditional=True,
            cutoff=4.0 * factor,
            **SHORT,
        )
        models.append(energy_of_charges_only(model))
        frames.append(charged_frames(lorem)[:4])
        for frame in frames[-1]:
            frame.set_cell(frame.cell.array * factor)
            frame.positions *= factor
    models[1].load_state_dict(models[0].state_dict())
    charges, energies = (
        [
            lorem.values(model, own_frames, output, kind)
            for model, own_frames in zip(models, frames, strict=True)
        ]
        for output, kind in (("charge", "atom"), ("energy", "system"))
    )
    assert charges[0].std() > 0.05
    # heights of the cells of slabs are round numbers in either unit
    torch.testing.assert_close(charges[1], charges[0], rtol=0, atol=2e-6)
    assert energies[0].abs().min() > 0.1
    torch.testing.assert_close(energies[1], 23.060548 * energies[0], rtol=1e-5, atol=0)


def test_two_energies(lorem):
    """Each of its own unit, both with the energy of the charges."""
    other = get_energy_target_info("mtt::other", {"unit": "meV"})
    model = energy_of_charges_only(equilibrated(lorem, {"energy": ENERGY, "mtt::other": other}))
    frames = charged_frames(lorem)
    outputs = {name: ModelOutput(sample_kind="system") for name in ("energy", "mtt::other")}
    with torch.no_grad():
        both = model(lorem.systems(model, frames), outputs)
    first, second = (both[name].block().values for name in outputs)
    assert first.abs().max() > 0.1
    torch.testing.assert_close(second, 1000 * first)
    # not asked for at the same time
    torch.testing.assert_close(lorem.values(model, frames, "mtt::other"), second)


@pytest.mark.parametrize("charge", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_single_atom(lorem, solver, charge):
    """Its charge is the total one, and its energy that of a uniform background around it."""
    model = energy_of_charges_only(equilibrated(lorem, solver=solver, accuracy=1e-8))
    free = Atoms("O", info={"charge": charge})
    periodic = Atoms("O", cell=[9.0] * 3, pbc=True, info={"charge": charge})
    names = ("mtt::aux::electronegativity", "mtt::aux::hardness")
    chi, hardness = (lorem.values(model, [free], name, "atom").item() for name in names)
    k_e = 14.399645
    width = 0.66
    gaussian = 1 / (width * np.pi**0.5)
    # a point charge in its cubic lattice and background; the Gaussian adds to the background
    madelung = 2.837297479480619 / 9.0
    lattice = gaussian - madelung + 4 * np.pi * width**2 / 9.0**3
    for frame, coulomb in ((free, gaussian), (periodic, lattice)):
        expected = chi * charge + 0.5 * (hardness + k_e * coulomb) * charge**2
        assert lorem.values(model, [frame]).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert lorem.values(model, [frame], "charge", "atom").item() == pytest.approx(charge)


def test_energy_joins_after_the_scale(lorem):
    """In training the scale is removed from the target, and must be from this energy too."""
    model = equilibrated(lorem)
    frames = charged_frames(lorem)
    systems = lorem.systems(model, frames)
    outputs = {"energy": ModelOutput(sample_kind="system")}
    heads = lorem.values(model, frames)
    charge_energies = lorem.values(energy_of_charges_only(equilibrated(lorem)), frames)
    scale = 7.0
    scales = model.scaler.model.per_target_scales["energy"].block().values
    scales[:] = scale
    model.scaler.model.scales["energy"].block().values[:] = scale
    with torch.no_grad():
        evaluated = model(systems, outputs)["energy"].block().values
        trained = model.train()(systems, outputs)["energy"].block().values
    torch.testing.assert_close(evaluated, scale * (heads - charge_energies) + charge_energies)
    torch.testing.assert_close(scale * trained, evaluated)


def moved(model, system, positions):
    copy = System(system.types, positions, system.cell, system.pbc)
    copy = get_system_with_neighbor_lists(copy, get_requested_neighbor_lists(model))
    copy.add_data("charge", system.get_data("charge"))
    return copy


WEIGHTS = [
    "charge_equilibration.species_electronegativity",
    "charge_equilibration.raw_hardness",
    "charge_equilibration.local_hardness.2.bias",
    "charge_equilibration.update.input_mlp.2.bias",
]


def gradients_of_forces(lorem, solver, boundary, energy):
    """How a combination of forces and charges depends on positions and weights."""
    hypers = {"solver": solver, "energy": energy, "tolerance": 1e-13, "accuracy": 1e-4}
    hypers["hardness"] = "features"
    model = equilibrated(lorem, **hypers)
    frame = lorem.frames[boundary].copy()
    frame.info["charge"] = 1.0
    system = lorem.systems(model, [frame])[0]
    outputs = {
        "energy": ModelOutput(sample_kind="system"),
        "charge": ModelOutput(sample_kind="atom"),
    }
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(len(frame), 4, generator=generator, dtype=torch.float64)

    def function(positions):
        results = model([moved(model, system, positions)], outputs)
        total = results["energy"].block().values.sum()
        (forces,) = torch.autograd.grad(total, positions, create_graph=True)
        charges = results["charge"].block().values
        return (torch.cat([forces, charges], dim=1) * factors).sum()

    return model, system.positions.detach(), function


@pytest.mark.parametrize("energy", ["variational", "celli"])
@pytest.mark.parametrize("boundary", ["bulk", "molecule"])
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_second_derivatives(lorem, solver, boundary, energy):
    """Training on forces: against finite differences of them."""
    model, positions, function = gradients_of_forces(lorem, solver, boundary, energy)
    parameters = [model.get_parameter(name) for name in WEIGHTS]
    positions.requires_grad_(True)
    analytic = torch.autograd.grad(function(positions), [positions, *parameters])
    generator = torch.Generator().manual_seed(1)
    h = 1e-5
    for tensor, gradient in zip([positions, *parameters], analytic, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        start = tensor.detach().clone()
        numerical = 0.0
        for step, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            tensor.data = start + step * h * direction
            numerical += weight * function(positions).item() / (12 * h)
        tensor.data = start
        assert abs(numerical) > 1e-3
        assert (gradient * direction).sum().item() == pytest.approx(numerical, rel=1e-6)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_gradgradcheck(lorem, solver):
    model = equilibrated(lorem, solver=solver, energy="celli", tolerance=1e-13)
    frame = Atoms("OHC", [[0, 0, 0], [0.9, 0.4, 0], [-0.5, 0.9, 0.4]], info={"charge": 1.0})
    system = lorem.systems(model, [frame])[0]
    outputs = {"energy": ModelOutput(sample_kind="system")}
    name = WEIGHTS[0]

    def energy(positions, weight):
        arguments = ([moved(model, system, positions)], outputs)
        results = torch.func.functional_call(model, {name: weight}, arguments)
        return results["energy"].block().values.sum()

    weight = model.get_parameter(name).detach().clone().requires_grad_(True)
    positions = system.positions.detach().requires_grad_(True)
    assert torch.autograd.gradgradcheck(energy, (positions, weight), atol=1e-5, rtol=1e-4)


def test_exported_iterative(lorem, tmp_path):
    """What has no exact derivative has none, and none is prepared where none is asked for."""
    targets = {"energy": ENERGY, "mtt::dipole_moment": DIPOLE}
    model = equilibrated(lorem, targets, solver="iterative")
    model.export().save(str(tmp_path / "model.pt"))
    exported = load_atomistic_model(str(tmp_path / "model.pt"))
    frame = lorem.frames["molecule"]
    per_atom = ["charge", "feature", "mtt::aux::electronegativity", "mtt::aux::hardness"]
    per_atom.append("mtt::aux::energy_last_layer_features")
    outputs = {name: ModelOutput(sample_kind="atom") for name in per_atom}
    outputs["energy"] = ModelOutput(sample_kind="system")
    outputs["mtt::dipole_moment"] = ModelOutput(sample_kind="system")
    options = ModelEvaluationOptions(length_unit="angstrom", outputs=outputs)
    system = lorem.systems(model, [frame])[0]
    with torch.profiler.profile() as profile:
        still = exported([system], options, check_consistency=True)
    names = {event.key for event in profile.key_averages()}
    assert not any("evaluate_function" in name for name in names)

    positions = system.positions.clone().requires_grad_(True)
    results = exported([moved(model, system, positions)], options, check_consistency=True)
    for name, result in results.items():
        assert result.block().values.requires_grad == (name == "energy"), name
        torch.testing.assert_close(result.block().values, still[name].block().values)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(results["charge"].block().values.sum(), positions)


@pytest.mark.parametrize("boundary", ["bulk", pytest.param("molecule", marks=pytest.mark.slow)])
def test_energies_of_atoms_exported_iterative(lorem, tmp_path, boundary):
    """Engines that want energies of atoms take the forces of their sum from the same evaluation."""
    model = equilibrated(lorem, solver="iterative")
    model.export().save(str(tmp_path / "model.pt"))
    exported = load_atomistic_model(str(tmp_path / "model.pt"))
    frames = [lorem.frames[boundary], lorem.frames[boundary][:-2]]
    systems = lorem.systems(model, frames)
    energies, forces = {}, {}
    for kind in ("system", "atom"):
        outputs = {"energy": ModelOutput(unit="eV", sample_kind=kind)}
        options = ModelEvaluationOptions(length_unit="angstrom", outputs=outputs)
        positions = [system.positions.clone().requires_grad_(True) for system in systems]
        batch = [moved(model, *pair) for pair in zip(systems, positions, strict=True)]
        energies[kind] = exported(batch, options, check_consistency=True)["energy"].block().values
        forces[kind] = torch.cat(
            torch.autograd.grad(energies[kind].sum(), positions, retain_graph=True)
        )
    torch.testing.assert_close(energies["atom"].sum(), energies["system"].sum())
    torch.testing.assert_close(forces["atom"], forces["system"], rtol=1e-10, atol=1e-12)
    # two structures may be weighted, their atoms may not
    weights = torch.tensor([0.3] * len(frames[0]) + [0.7] * len(frames[1]), dtype=torch.float64)
    weighted = (weights.unsqueeze(1) * energies["atom"]).sum()
    weighted = torch.cat(torch.autograd.grad(weighted, positions, retain_graph=True))
    torch.testing.assert_close(weighted, weights.unsqueeze(1) * forces["system"])
    for part in (slice(2, 3), slice(0, 5)):
        one = torch.autograd.grad(energies["atom"][part].sum(), positions, retain_graph=True)
        assert torch.cat(one).abs().max() > 1e20


def test_dipole(lorem):
    """From the charges about the centre of mass; refused for periodic structures."""
    model = equilibrated(lorem, {"energy": ENERGY, "mtt::dipole_moment": DIPOLE})
    frame = lorem.frames["molecule"].copy()
    frame.info["charge"] = 1.0
    charges = lorem.values(model, [frame], "charge", "atom").numpy()
    expected = (charges * (frame.positions - frame.get_center_of_mass())).sum(axis=0)
    dipole = lorem.values(model, [frame], "mtt::dipole_moment").numpy()[0, :, 0]
    assert np.abs(expected).min() > 0.01
    np.testing.assert_allclose(dipole, expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="structure 1 of the batch is periodic: its dipole"):
        lorem.values(model, [frame, lorem.frames["slab"]], "mtt::dipole_moment")


def test_too_few_iterations(lorem):
    model = equilibrated(lorem, solver="iterative")
    solver = model.charge_equilibration.solver
    model.charge_equilibration.solver = solver._replace(max_iterations=2)
    message = (
        "charge equilibration of structure 1 of the batch did not converge: after 2 iterations the "
        r"relative residual is \S+, the tolerance 1e-10. .* raise charge_equilibration.max_iter"
    )
    frames = [Atoms("O"), lorem.frames["molecule"]]
    with pytest.raises(ValueError, match=message):
        lorem.values(model, frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    with pytest.raises(torch.jit.Error, match="structure 1 .* did not converge"):
        scripted(lorem.systems(model, frames), {"energy": ModelOutput(sample_kind="system")})


def test_charges_of_a_head(lorem):
    """Without charge equilibration the output is what the target of reference charges predicts."""
    options = {"quantity": "charge", "unit": "e", "type": "scalar", "num_subtargets": 1}
    name = "mtt::atomic_charge"
    target = get_generic_target_info(name, {**options, "sample_kind": "atom", "description": ""})
    energy = get_energy_target_info("energy", {"unit": "eV"})
    model = lorem.new_model(targets={"energy": energy, name: target})
    # a scale that only an older version can have
    for part in (model.scaler.model.scales[name], model.scaler.model.per_target_scales[name]):
        part.block().values[:] = 3.0
    frames = [lorem.frames["bulk"], lorem.frames["molecule"]]
    charges = lorem.values(model, frames, "charge", "atom")
    torch.testing.assert_close(charges, lorem.values(model, frames, name, "atom"))
    assert charges.abs().max() > 1e-3
    model.export()


def test_distant_ions_do_not_see_the_charge_of_each_other(lorem):
    """Two equal ions share twice the charge, and have twice the energy but for Q²/r."""
    model = equilibrated(lorem)
    frame = lorem.frames["molecule"].copy()
    frame.info["charge"] = 1.0
    distance = 3000.0
    pair = frame + frame
    pair.positions[len(frame) :, 0] += distance
    pair.info["charge"] = 2.0
    single = lorem.values(model, [frame]).item()
    both = lorem.values(model, [pair]).item()
    assert abs(both - 2 * single - 14.399645 / distance) < 1e-4
    charges = lorem.values(model, [pair], "charge", "atom")
    assert abs(charges[: len(frame)].sum() - 1.0) < 1e-3


def test_dipoles_of_periodic_structures_in_training(lorem):
    """They have no labels; the dipoles of the other structures of the batch do not change."""
    model = equilibrated(lorem, {"energy": ENERGY, "mtt::dipole_moment": DIPOLE})
    model.train()
    frames = [lorem.frames["molecule"].copy(), lorem.frames["bulk"].copy()]
    for frame in frames:
        frame.info["charge"] = 0.0
    both = lorem.values(model, frames, "mtt::dipole_moment")
    torch.testing.assert_close(both[0], lorem.values(model, frames[:1], "mtt::dipole_moment")[0])
    assert (both[1] == 0).all() and both[0].abs().max() > 1e-3


def test_solver_may_change_at_a_restart(lorem):
    model = equilibrated(lorem, solver="dense")
    hypers = copy.deepcopy(model.hypers)
    hypers["charge_equilibration"].update(solver="iterative", tolerance=1e-3, max_iterations=7)
    model.restart(model.dataset_info, hypers)
    assert model.charge_equilibration.solver[:3] == ("iterative", 1e-3, 7)
    reloaded = type(model).load_checkpoint(model.get_checkpoint(), "export")
    assert reloaded.charge_equilibration.solver[:3] == ("iterative", 1e-3, 7)
    hypers["charge_equilibration"]["energy"] = "celli"
    with pytest.raises(ValueError, match="charge_equilibration"):
        model.restart(model.dataset_info, hypers)


def test_new_charge_equilibration_takes_over_the_target_of_a_head(lorem):
    """A model that learned charges by a head goes on with those that minimise an energy."""
    options = {"quantity": "charge", "unit": "e", "type": "scalar", "num_subtargets": 1}
    name = "mtt::atomic_charge"
    target = get_generic_target_info(name, {**options, "sample_kind": "atom", "description": ""})
    model = lorem.new_model(targets={"energy": ENERGY, name: target})
    hypers = copy.deepcopy(model.hypers)
    hypers["charge_equilibration"]["enable"] = True
    extended = model.restart(model.dataset_info, hypers).to(torch.float64).eval()
    frame = lorem.frames["molecule"]
    charges = lorem.values(extended, [frame], name, "atom")
    torch.testing.assert_close(charges, lorem.values(extended, [frame], "charge", "atom"))
    assert abs(charges.sum()) < 1e-12 and charges.abs().max() > 1e-3
