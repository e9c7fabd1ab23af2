"""Electric fields in ASE: forces against finite differences of the energy in the field."""

import copy

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info

from metatrain_lorem.engines.ase import FieldCalculator

FIELD = np.array([0.11, -0.07, 0.05])
BORN = "mtt::born_effective_charge"
ENERGY = {"energy": get_energy_target_info("energy", {"unit": "eV"})}

pytestmark = pytest.mark.usefixtures("interpreted")


def calculator(lorem, folder, targets=None, conditional=True, **entries):
    hypers = {"enable": True, "tolerance": 1e-12, **entries}
    model = lorem.new_model(
        targets, charge_equilibration=hypers, conditional=conditional, long_range={"enable": False}
    )
    model.export().save(str(folder / "model.pt"))
    return FieldCalculator(folder / "model.pt", check_consistency=True)


def molecule(lorem, charge=0.0, field=FIELD):
    atoms = lorem.frames["molecule"].copy()
    atoms.info.update(charge=charge, electric_field=field)
    return atoms


def output(atoms, name, kind="system"):
    outputs = {name: ModelOutput(sample_kind=kind)}
    return atoms.calc.run_model(atoms, outputs)[name].block().values[..., 0].detach().numpy()


def energy_past_checks(atoms):
    """What the model itself says to a field, whatever the calculator checks before."""
    with atoms.calc._model.attached([np.asarray(atoms.info["electric_field"])]):
        MetatomicCalculator.run_model(atoms.calc, atoms, {"energy": ModelOutput()})


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "dense"},
        {"solver": "iterative", "energy": "celli"},
        {"long range": "charges"},
        pytest.param({"solver": "iterative"}, marks=pytest.mark.slow),
        pytest.param({"solver": "dense", "energy": "celli"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_forces(lorem, tmp_path, options, charge):
    """Far from the origin too, where an ion has a large energy."""
    atoms = molecule(lorem, charge)
    atoms.positions += [30.0, -20.0, 10.0]
    if "long range" in options:
        model = lorem.new_model(long_range={"energy": "charges"}, conditional=True)
        model.export().save(str(tmp_path / "model.pt"))
        atoms.calc = FieldCalculator(tmp_path / "model.pt", check_consistency=True)
    else:
        atoms.calc = calculator(lorem, tmp_path, **options)
    forces, h = atoms.get_forces(), 1e-4
    start = atoms.positions.copy()
    for i, beta in ((0, 0), (3, 1), (5, 2)):
        numerical = 0.0
        for steps, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            atoms.positions = start
            atoms.positions[i, beta] += steps * h
            numerical -= weight * atoms.get_potential_energy() / (12 * h)
        assert forces[i, beta] == pytest.approx(numerical, abs=1e-7)
    atoms.positions = start
    # the field pulls the ion as a whole
    np.testing.assert_allclose(forces.sum(axis=0), charge * FIELD, atol=1e-9)
    del atoms.info["electric_field"]
    assert abs(atoms.get_forces() - forces).max() > 0.01


@pytest.mark.parametrize("kind", ["equilibrated", "partial"])
def test_energy_of_charges_in_a_field(lorem, tmp_path, kind):
    """Its derivative by the field is the polarisation, and that of the polarisation the
    polarisability: of equilibrated charges without features that know them, when the energy is what
    they minimise; of partial ones always."""
    if kind == "partial":
        model = lorem.new_model(long_range={"energy": "charges"}, conditional=True)
    else:
        targets = {"mtt::nothing": get_energy_target_info("mtt::nothing", {"unit": "eV"}), **ENERGY}
        model = lorem.new_model(
            targets,
            charge_equilibration={"enable": True},
            conditional=True,
            long_range={"enable": False},
        )
        for head in model.readout.heads.values():
            head.invariants.last_layer.weight.data.zero_()
    model.export().save(str(tmp_path / "model.pt"))
    atoms = molecule(lorem, 1.0)
    atoms.positions -= atoms.get_center_of_mass()
    atoms.calc = FieldCalculator(tmp_path / "model.pt")
    polarization = output(atoms, "mtt::polarization")[0]
    polarizability = output(atoms, "mtt::polarizability")[0] / 14.399645
    assert abs(polarizability).max() > 0.01
    h = 1e-3
    for alpha in range(3):
        energies, polarizations = [], []
        for sign in (-1, 1):
            field = FIELD.copy()
            field[alpha] += sign * h
            atoms.info["electric_field"] = field
            energies.append(atoms.get_potential_energy())
            polarizations.append(output(atoms, "mtt::polarization")[0])
        slope = (energies[1] - energies[0]) / (2 * h)
        assert slope == pytest.approx(-polarization[alpha], abs=1e-8)
        change = (polarizations[1] - polarizations[0]) / (2 * h)
        np.testing.assert_allclose(change, polarizability[:, alpha], atol=1e-8)


def test_units(lorem, tmp_path):
    """A model in bohr and kcal/mol: the same field in V/Å."""
    bohr = 1 / 0.529177210903
    energies, forces = [], []
    for unit, energy, factor in (("angstrom", "eV", 1.0), ("bohr", "kcal/mol", bohr)):
        model = lorem.new_model(
            {"energy": get_energy_target_info("energy", {"unit": energy})},
            charge_equilibration={"enable": True},
            length_unit=unit,
            conditional=True,
            cutoff=4.0 * factor,
            long_range={"enable": False},
        )
        for head in model.readout.heads.values():
            head.invariants.last_layer.weight.data.zero_()
        energies.append(model)
    energies[1].load_state_dict(energies[0].state_dict())
    for number, model in enumerate(energies):
        model.export().save(str(tmp_path / f"{number}.pt"))
        atoms = molecule(lorem, 1.0)
        atoms.calc = FieldCalculator(tmp_path / f"{number}.pt")
        forces.append([atoms.get_potential_energy(), *atoms.get_forces().flatten()])
    np.testing.assert_allclose(forces[1], forces[0], atol=2e-5)


@pytest.mark.parametrize("boundary", ["bulk", "slab"])
def test_periodic(lorem, tmp_path, boundary):
    """Forces to first order; no energy, no stress, and nothing left from without the field."""
    atoms = lorem.frames[boundary].copy()
    atoms.info["charge"] = 0.0
    atoms.calc = calculator(lorem, tmp_path)
    without = atoms.get_forces()
    energy = atoms.get_potential_energy()
    born = output(atoms, BORN, "atom")
    atoms.info["electric_field"] = FIELD
    expected = without + np.einsum("iba,a->ib", born, FIELD)
    for _ in range(2):
        np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-10)
        assert abs(expected - without).max() > 0.01
        with pytest.raises(
            PropertyNotImplementedError, match="energy of a periodic structure in an"
        ):
            atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError, match="stress of a periodic structure"):
        atoms.get_stress()
    atoms.info["electric_field"] = [0, 0, 0]
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-12)
    # the model itself knows no more
    atoms.info["electric_field"] = FIELD
    with pytest.raises(ValueError, match="^structure 0 of the batch is periodic: it has no energy"):
        energy_past_checks(atoms)
    for function in (lambda: output(atoms, "energy"), lambda: atoms.calc.compute_energy(atoms)):
        with pytest.raises(
            PropertyNotImplementedError, match="structure 0 is periodic and has inf"
        ):
            function()


@pytest.mark.parametrize("field", [[1, 2], "up", [0, 0, np.nan]])
def test_fields_that_are_none(lorem, tmp_path, field):
    atoms = molecule(lorem, field=field)
    atoms.calc = calculator(lorem, tmp_path)
    with pytest.raises(ValueError, match="must be three finite numbers in V/Å"):
        atoms.get_forces()


def test_models_without_charges(lorem, tmp_path):
    """They are not run as if there were no field."""
    lorem.new_model().export().save(str(tmp_path / "model.pt"))
    for boundary, message in (
        ("molecule", "no output 'mtt::polarizability': fields need charge_equil"),
        ("bulk", "no output 'mtt::born_effective_charge': fields need Born charges"),
    ):
        atoms = lorem.frames[boundary].copy()
        atoms.info["electric_field"] = FIELD
        atoms.calc = FieldCalculator(tmp_path / "model.pt")
        with pytest.raises(ValueError, match=message):
            atoms.get_forces()
        with pytest.raises(ValueError, match="to a model whose charges do not answer to it"):
            energy_past_checks(atoms)


def test_atomic_dipoles(lorem, tmp_path):
    """Their energy in the field would be missing."""
    section = {"quantity": "", "unit": "e*A", "num_subtargets": 1, "sample_kind": "system"}
    section |= {"type": {"cartesian": {"rank": 1}}, "description": ""}
    name = "mtt::dipole_moment"
    targets = {**ENERGY, name: get_generic_target_info(name, section)}
    atoms = molecule(lorem)
    atoms.calc = calculator(lorem, tmp_path, targets, atomic_dipoles=True)
    message = (
        "^an electric field is given .* it needs charge_equilibration, without atomic_dipoles, or "
        "long_range.energy: charges$"
    )
    with pytest.raises(ValueError, match=message):
        atoms.get_forces()
    # nothing stays of the field
    del atoms.info["electric_field"]
    assert np.isfinite(output(atoms, "energy"))
    assert np.isfinite(atoms.get_forces()).all()


def test_every_structure_in_its_own_field(lorem, tmp_path):
    """In batches, and whatever was evaluated before."""
    calc = calculator(lorem, tmp_path, conditional=False)
    structures = [molecule(lorem, field=field) for field in (FIELD, [0, 0, 0], -2 * FIELD)]
    del structures[1].info["electric_field"]
    energies, charges, forces = [], [], []
    for atoms in structures:
        atoms.calc = calc
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        charges.append(output(atoms, "charge", "atom"))
    plain = MetatomicCalculator(tmp_path / "model.pt")
    expected = plain.get_potential_energy(structures[1])
    assert energies[1] == pytest.approx(expected, abs=1e-10)
    assert min(abs(energies[0] - energies[1]), abs(energies[2] - energies[1])) > 0.01
    # after a field, none
    structures[0].get_potential_energy()
    np.testing.assert_allclose(output(structures[1], "charge", "atom"), charges[1], atol=1e-10)
    assert calc.compute_energy(structures[1])["energy"] == pytest.approx(expected, abs=1e-10)
    results = calc.compute_energy(structures, compute_forces_and_stresses=True)
    np.testing.assert_allclose(results["energy"], energies, atol=1e-9)
    np.testing.assert_allclose(results["forces"], forces, atol=1e-9)
    together = calc.run_model(structures, {"charge": ModelOutput(sample_kind="atom")})["charge"]
    values = together.block().values.detach().numpy().reshape(3, -1)
    np.testing.assert_allclose(values, charges, atol=1e-9)
    assert abs(values[0] - values[1]).max() > 0.01
    # a copy has a calculator of its own
    other = copy.deepcopy(structures[0])
    other.info["electric_field"] = -2 * FIELD
    assert other.get_potential_energy() == pytest.approx(energies[2], abs=1e-10)
    assert other.calc is not calc and other.calc._model is not calc._model
    assert structures[0].get_potential_energy() == pytest.approx(energies[0], abs=1e-10)


def test_lone_ion(lorem, tmp_path):
    atoms = Atoms("O", [[1.0, 2.0, 3.0]], info={"charge": -2.0, "electric_field": FIELD})
    atoms.calc = calculator(lorem, tmp_path)
    np.testing.assert_allclose(atoms.get_forces()[0], -2.0 * FIELD, atol=1e-12)
