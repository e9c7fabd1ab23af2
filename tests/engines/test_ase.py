"""ASE's calculator with exported models."""

import shutil
import subprocess
import sys

import ase.build
import ase.units
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from helpers import away
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

KINDS = ["crystal", "charged", "triclinic", "slab", "molecule", "ion"]
ITERATIVE = pytest.param("qeq_iterative", marks=pytest.mark.slow)
MODELS = ["short_range", "long_range", "qeq_conditional", ITERATIVE]
PER_ATOM = ModelOutput(unit="e", sample_kind="atom")


@pytest.fixture(scope="session")
def calculators(exported):
    """Shared, since TorchScript takes seconds to compile a model that was read anew."""
    return {name: MetatomicCalculator(path) for name, path in exported.items()}


def derivative(energy, h):
    """Five-point formula."""
    return (energy(-2 * h) - 8 * energy(-h) + 8 * energy(h) - energy(2 * h)) / (12 * h)


def charges_of(calculator, atoms):
    outputs = calculator.run_model(atoms, {"charge": PER_ATOM})
    return outputs["charge"].block().values.detach().numpy().flatten()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_forces_and_stress_are_derivatives(calculators, structures, name, kind):
    atoms = structures[kind]
    atoms.calc = calculators[name]
    forces = atoms.get_forces()
    start, cell = atoms.positions.copy(), atoms.cell.array.copy()
    rng = np.random.default_rng(1)
    direction = rng.normal(size=start.shape)

    def displaced(size):
        atoms.positions = start + size * direction
        return atoms.get_potential_energy()

    # forces jump where a scalar density changes sign; larger steps may reach across
    expected = derivative(displaced, 2e-6)
    assert abs(expected) > 1e-2
    assert abs((forces * direction).sum() + expected) < 2e-6 * np.linalg.norm(forces)
    atoms.positions = start
    if not atoms.pbc.all():
        return
    virial = atoms.get_stress(voigt=False) * atoms.get_volume()
    direction = rng.normal(size=(3, 3))
    if name == "backbone":
        # PET's energy changes with a rotation, of which ASE's symmetric stress knows nothing
        direction += direction.T

    def strained(size):
        atoms.set_cell(cell @ (np.eye(3) + size * direction), scale_atoms=True)
        return atoms.get_potential_energy()

    # larger strains change the set of wave vectors
    expected = derivative(strained, 2e-6)
    assert abs(expected) > 1e-2
    assert abs((virial * direction).sum() - expected) < 1e-6 * np.linalg.norm(virial)


@pytest.mark.parametrize(
    "kind", ["crystal", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_with_a_backbone(calculators, structures, kind):
    test_forces_and_stress_are_derivatives(calculators, structures, "backbone", kind)
    atoms = structures[kind]
    charges = charges_of(calculators["backbone"], atoms)
    assert np.ptp(charges) > 1e-3
    assert charges.sum() == pytest.approx(atoms.info.get("charge", 0.0), abs=1e-10)


@pytest.mark.parametrize("name", ["short_range", "long_range", "qeq"])
def test_energies_of_atoms(calculators, structures, name):
    atoms = structures["crystal"]
    atoms.calc = calculators[name]
    energies = atoms.get_potential_energies()
    assert np.ptp(energies) > 1e-2
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    forces = atoms.get_forces()
    atoms.calc.reset()
    # energies of atoms and forces of one evaluation
    atoms.calc.calculate(atoms, ["energies", "forces"], [])
    np.testing.assert_allclose(atoms.calc.results["energies"], energies, rtol=1e-12)
    np.testing.assert_allclose(atoms.calc.results["forces"], forces, atol=1e-12)


@pytest.mark.slow
def test_energies_of_atoms_with_the_iterative_solver(calculators, structures):
    test_energies_of_atoms(calculators, structures, "qeq_iterative")


def test_energies_of_atoms_belong_to_the_atoms(calculators, structures):
    """Without long range, an atom beyond the cutoff has the energy it has alone."""
    calculator = calculators["short_range"]
    atoms = structures["molecule"]
    both = calculator.get_property("energies", atoms)
    salt = calculator.get_property("energies", atoms[:2])
    water = calculator.get_property("energies", atoms[2:])
    np.testing.assert_allclose(both, np.concatenate([salt, water]), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_total_charge(calculators, structures, kind):
    """It comes from ``info["charge"]``, and is 0, without a word, where this is missing."""
    atoms = structures[kind]
    atoms.calc = calculators["qeq_conditional"]
    built_in = {0.0: calculators["qeq"], 1.0: calculators["qeq_plus1"]}
    energies = []
    # the calculator sees that only the total charge has changed
    for charge in [0.0, 1.0, None]:
        atoms.info["charge"] = charge
        if charge is None:
            del atoms.info["charge"]
        reference = built_in[charge or 0.0]
        energies.append(atoms.get_potential_energy())
        assert energies[-1] == pytest.approx(reference.get_property("energy", atoms), abs=1e-9)
        np.testing.assert_allclose(
            atoms.get_forces(), reference.get_property("forces", atoms), atol=1e-9
        )
        charges = charges_of(atoms.calc, atoms)
        assert charges.sum() == pytest.approx(charge or 0.0, abs=1e-10)
        np.testing.assert_allclose(charges, charges_of(reference, atoms), atol=1e-10)
    assert abs(energies[0] - energies[1]) > 1.0
    assert energies[2] == energies[0]


def test_additional_outputs(exported, structures):
    """Charges and dipole moment come along with the energy; ASE's own getters refuse."""
    dipole = "mtt::dipole_moment"
    additional = {"charge": PER_ATOM, dipole: ModelOutput(unit="e*A", sample_kind="system")}
    calculator = MetatomicCalculator(exported["qeq"], additional_outputs=additional)
    atoms = structures["molecule"]
    atoms.calc = calculator
    atoms.get_potential_energy()
    charges = calculator.additional_outputs["charge"].block().values.detach().numpy()
    moment = calculator.additional_outputs[dipole].block().values.detach().numpy()
    assert np.abs(charges).max() > 0.1
    assert charges.shape == (5, 1) and moment.shape == (1, 3, 1)
    np.testing.assert_allclose(moment[0, :, 0], charges[:, 0] @ atoms.positions, atol=1e-6)
    with pytest.raises(PropertyNotImplementedError, match="charges"):
        atoms.get_charges()
    with pytest.raises(Exception, match="periodic: its dipole"):
        calculator.get_property("energy", structures["crystal"])


def test_batch(calculators, structures):
    frames = [structures[kind] for kind in ("crystal", "charged", "triclinic")]
    for name in ["long_range", "qeq"]:
        calculator = calculators[name]
        batch = calculator.compute_energy(frames, compute_forces_and_stresses=True)
        for i, frame in enumerate(frames):
            frame.calc = calculator
            assert batch["energy"][i] == pytest.approx(frame.get_potential_energy(), rel=1e-11)
            np.testing.assert_allclose(batch["forces"][i], frame.get_forces(), atol=1e-10)
            stress = frame.get_stress(voigt=False)
            np.testing.assert_allclose(batch["stress"][i], stress, atol=1e-11)


def test_batch_with_total_charges(calculators, structures):
    """``compute_energy`` gives no total charge to the model, which says what to do;
    ``run_model`` does."""
    frames = list(structures.values())
    calculator = calculators["qeq_conditional"]
    with pytest.raises(Exception, match="charge"):
        calculator.compute_energy(frames)
    outputs = {"charge": PER_ATOM, "energy": ModelOutput(unit="eV", sample_kind="system")}
    batch = calculator.run_model(frames, outputs)
    energies = batch["energy"].block().values.flatten().tolist()
    charges = batch["charge"].block()
    systems = charges.samples.column("system").numpy()
    for i, frame in enumerate(frames):
        energy = calculator.get_property("energy", frame)
        assert energies[i] == pytest.approx(energy, rel=1e-11)
        total = charges.values.detach().numpy()[systems == i].sum()
        assert total == pytest.approx(frame.info.get("charge", 0.0), abs=1e-9)


@pytest.mark.parametrize("name, kind", [("long_range", "crystal"), ("qeq_conditional", "charged")])
def test_relaxation_of_the_cell(calculators, structures, name, kind):
    atoms = structures[kind]
    atoms.calc = calculators[name]
    energies, volume = [], atoms.get_volume()
    optimizer = BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.05)
    optimizer.attach(lambda: energies.append(atoms.get_potential_energy()))
    optimizer.run(fmax=1e-3, steps=30)
    assert energies[-1] < energies[0] - 1e-2
    assert (np.diff(energies) < 1e-3).all()
    assert abs(atoms.get_volume() - volume) > 1e-3 * volume


@pytest.mark.parametrize(
    "name, kind",
    [
        ("long_range", "triclinic"),
        ("qeq_conditional", "charged"),
        ("qeq", "slab"),
        ("qeq", "molecule"),
    ],
)
def test_constant_energy(calculators, structures, name, kind):
    """The total energy fluctuates by a small part of what the kinetic energy does."""
    atoms = structures[kind]
    atoms.calc = calculators[name]
    MaxwellBoltzmannDistribution(atoms, temperature_K=100, rng=np.random.default_rng(1))
    dynamics = VelocityVerlet(atoms, 0.25 * ase.units.fs)
    energies = []
    dynamics.attach(lambda: energies.append([atoms.get_total_energy(), atoms.get_kinetic_energy()]))
    dynamics.run(60)
    total, kinetic = np.std(energies, axis=0)
    drift = (energies[-1][0] - energies[0][0]) / len(atoms)
    print(f"{name} {kind}: {total:.1e} of {kinetic:.1e} eV, drift {drift:.1e} eV per atom in 15 fs")
    assert total < 0.01 * kinetic


def test_constant_pressure(calculators, structures):
    """What a barostat and thermostat conserve."""
    atoms = structures["large"]
    atoms.calc = calculators["qeq"]
    MaxwellBoltzmannDistribution(atoms, temperature_K=100, rng=np.random.default_rng(1))
    volume = atoms.get_volume()
    fs = ase.units.fs
    # what ASE adds up is the free energy, which metatomic's calculator does not know by this name
    atoms.get_potential_energy = lambda force_consistent=False: atoms.calc.get_property(
        "energy", atoms
    )
    dynamics = IsotropicMTKNPT(atoms, 1.0 * fs, 100.0, 0.0, tdamp=50 * fs, pdamp=100 * fs)
    conserved, potential = [], []
    dynamics.attach(lambda: conserved.append(dynamics.get_conserved_energy()))
    dynamics.attach(lambda: potential.append(atoms.get_potential_energy()))
    dynamics.run(40)
    print(np.std(conserved), np.std(potential), atoms.get_volume() / volume)
    assert np.std(conserved) < 0.05 * np.std(potential)
    assert abs(atoms.get_volume() - volume) > 1e-3 * volume


AWAY = """
import ase.io
from metatomic_ase import MetatomicCalculator

for package in ["metatrain", "metatrain_lorem", "sphericart"]:
    try:
        __import__(package)
    except ImportError:
        continue
    raise AssertionError(package)
atoms = ase.io.read("atoms.traj")
atoms.calc = MetatomicCalculator("moved.pt")
print(repr(float(atoms.get_potential_energy())), repr(float(abs(atoms.get_forces()).sum())))
"""


def test_the_file_alone(exported, structures, tmp_path):
    """Without this package and metatrain, moved, in another folder."""
    atoms = structures["charged"]
    atoms.calc = MetatomicCalculator(exported["qeq_conditional"])
    expected = [atoms.get_potential_energy(), abs(atoms.get_forces()).sum()]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(exported["qeq_conditional"], folder / "moved.pt")
    atoms.calc = None
    atoms.write(folder / "atoms.traj")
    command = [sys.executable, "-c", AWAY]
    environment = away.environment()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], expected, rtol=1e-12)
