"""A batch of dynamics in TorchSim, compared with ASE."""

import numpy as np
import pytest
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

ts = pytest.importorskip(
    "torch_sim", reason="needs TorchSim and Python 3.12: pip install metatomic-torchsim"
)
torchsim = pytest.importorskip("metatomic_torchsim", reason="pip install metatomic-torchsim")
import torch  # noqa: E402

pytestmark = pytest.mark.slow
CHARGE = {"charge": ModelOutput(unit="e", sample_kind="atom")}
PERIODIC = ["crystal", "charged", "triclinic", "large"]
STEPS = 100


def split(state, values):
    """Values of atoms, structure by structure."""
    return [values[state.system_idx == i] for i in range(state.n_systems)]


def evaluated_by_ase(calculator, frame, positions, cell):
    frame = frame.copy()
    frame.set_cell(cell.numpy())
    frame.positions = positions.numpy()
    frame.calc = calculator
    return frame


@pytest.mark.parametrize("name", ["long_range", "qeq_plus1"])
def test_batch_at_constant_energy(exported, structures, name):
    """Energies, forces and stress of every structure of every step."""
    frames = [structures[kind] for kind in PERIODIC]
    outputs = CHARGE if name == "qeq_plus1" else None
    model = torchsim.MetatomicModel(exported[name], device="cpu", additional_outputs=outputs)
    calculator = MetatomicCalculator(exported[name])
    state = ts.initialize_state(frames, device=torch.device("cpu"), dtype=torch.float64)
    state.rng = 1
    timestep = 0.25 * 1e-3 * ts.units.MetalUnits.time
    state = ts.nve_init(state, model, kT=100 * ts.units.MetalUnits.temperature)
    start = state.positions.clone()
    totals, kinetics, errors = [], [], []
    for _ in range(STEPS):
        state = ts.nve_step(state, model, dt=timestep)
        kinetic = torch.stack(
            [(p.square().sum(1) / (2 * m)).sum() for p, m in pairs(state, state.momenta)]
        )
        kinetics.append(kinetic)
        totals.append(state.energy + kinetic)
        stresses = model(state)["stress"]
        if outputs is not None:
            charges = model.additional_outputs["charge"].block().values.detach().flatten()
            assert len(charges) == len(state.positions)
        moved = zip(frames, split(state, state.positions), split(state, state.forces), strict=True)
        for i, (frame, positions, forces) in enumerate(moved):
            atoms = evaluated_by_ase(calculator, frame, positions, state.row_vector_cell[i])
            stress = stresses[i].numpy() - atoms.get_stress(voigt=False)
            energy = float(state.energy[i]) - atoms.get_potential_energy()
            force = forces.numpy() - atoms.get_forces()
            errors.append([abs(energy), np.abs(force).max(), np.abs(stress).max()])
            if outputs is not None:
                atomic_charges = split(state, charges)[i].numpy()
                assert atomic_charges.sum() == pytest.approx(1.0, abs=1e-9)
                expected = calculator.run_model(atoms, outputs)["charge"].block().values
                expected = expected.detach().numpy().flatten()
                np.testing.assert_allclose(atomic_charges, expected, atol=1e-9)
    energy, force, stress = np.max(errors, axis=0)
    print(f"{name}: {energy:.1e} eV, {force:.1e} eV/Å, {stress:.1e} eV/Å³")
    assert energy < 1e-9 and force < 1e-9 and stress < 1e-10
    assert (state.positions - start).abs().max() > 1e-3
    spread, kinetic_spread = torch.stack(totals).std(0), torch.stack(kinetics).std(0)
    print("fluctuation of the total energy, eV:", spread, "of the kinetic energy:", kinetic_spread)
    assert (spread < 0.01 * kinetic_spread).all()


def pairs(state, values):
    return zip(split(state, values), split(state, state.masses), strict=True)


def test_isolated_molecule(exported, structures):
    """Without a cell there is no stress: it has to be switched off."""
    frames = [structures["molecule"], structures["ion"]]
    model = torchsim.MetatomicModel(exported["qeq"], device="cpu", compute_stress=False)
    state = ts.initialize_state(frames, device=torch.device("cpu"), dtype=torch.float64)
    results = model(state)
    calculator = MetatomicCalculator(exported["qeq"])
    for i, frame in enumerate(frames):
        frame.calc = calculator
        assert float(results["energy"][i]) == pytest.approx(frame.get_potential_energy(), abs=1e-9)
        forces = split(state, results["forces"])[i]
        np.testing.assert_allclose(forces, frame.get_forces(), atol=1e-9)


def test_slab(exported, structures):
    """The vector that is not periodic has to be zero."""
    frame = structures["slab"]
    frame.cell[2] = 0.0
    model = torchsim.MetatomicModel(exported["qeq"], device="cpu", compute_stress=False)
    results = model(ts.initialize_state([frame], device=model.device, dtype=model.dtype))
    frame.calc = MetatomicCalculator(exported["qeq"])
    assert float(results["energy"][0]) == pytest.approx(frame.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(results["forces"], frame.get_forces(), atol=1e-9)


def test_forces_are_derivatives(exported, structures):
    """Of the energies of a batch, inside TorchSim."""
    frames = [structures["charged"], structures["triclinic"]]
    model = torchsim.MetatomicModel(exported["qeq_plus1"], device="cpu")
    state = ts.initialize_state(frames, device=model.device, dtype=model.dtype)
    start, forces = state.positions.clone(), model(state)["forces"]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(start.shape, generator=generator, dtype=start.dtype)

    def energies(size):
        state.positions = start + size * direction
        return model(state)["energy"]

    # forces jump where a scalar density changes sign; larger steps may reach across
    h = 2e-6
    difference = energies(-2 * h) - 8 * energies(-h) + 8 * energies(h) - energies(2 * h)
    state.positions = start
    for i, forces_along in enumerate(split(state, forces * direction)):
        expected = float(difference[i]) / (12 * h)
        assert abs(expected) > 1e-3
        assert abs(float(forces_along.sum()) + expected) < 2e-6 * float(forces.norm())


def test_conditional_model_is_refused(exported):
    """A total charge can't be given; the documentation tells how to build it in."""
    with pytest.raises(ValueError, match="requests extra inputs.*charge.*not implemented"):
        torchsim.MetatomicModel(exported["qeq_conditional"], device="cpu")
