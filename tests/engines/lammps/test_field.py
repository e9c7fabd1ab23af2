"""Electric fields in LAMMPS: the charges of the model answer, and forces are derivatives."""

import numpy as np
import pytest

from metatrain_lorem.engines.ase import FieldCalculator

from .test_structures import STEP, STRUCTURES

FIELD = np.array([0.11, -0.07, 0.05])
KCAL = 23.060549
"""Of kcal/mol in eV, LAMMPS's own number."""


def single_point(lammps, folder, model, frame, keywords, commands="run 0", units="metal"):
    script = lammps.header(folder, frame, model, keywords, units=units)
    script += lammps.record() + commands
    output = lammps.run(folder, script)
    frames, columns = lammps.read_dump(folder / "out.dump")
    return lammps.read_thermo(output)["PotEng"], frames, columns, output


@pytest.mark.parametrize(
    "model, structure, units, factor",
    [
        ("conditional", "isolated", "metal", 1.0),
        ("conditional", "triclinic", "real", KCAL),
        pytest.param("partial", "isolated", "metal", 1.0, marks=pytest.mark.slow),
        pytest.param("partial", "triclinic", "real", KCAL, marks=pytest.mark.slow),
        pytest.param("conditional", "isolated", "real", KCAL, marks=pytest.mark.slow),
        pytest.param("conditional", "triclinic", "metal", 1.0, marks=pytest.mark.slow),
    ],
)
def test_as_in_ase(lammps, tmp_path, model, structure, units, factor):
    """Energy and forces of a molecule, and forces of a crystal, in both units."""
    model = lammps.model_file(model)
    frame = STRUCTURES[structure](lammps.frames)
    keywords = "total_charge 1 electric_field 0.11 -0.07 0.05 check_consistency on"
    energies, (frame,), (columns,), output = single_point(
        lammps, tmp_path, model, frame, keywords, units=units
    )
    reference = frame.copy()
    reference.info.update(charge=1.0, electric_field=FIELD)
    reference.calc = FieldCalculator(model)
    forces = reference.get_forces()
    without = frame.copy()
    without.info["charge"] = 1.0
    without.calc = FieldCalculator(model)
    least = 0.05 if model.stem == "conditional" else 0.02  # of smaller charges
    assert abs(forces - without.get_forces()).max() > least
    np.testing.assert_allclose(columns[:, :3] / factor, forces, rtol=0, atol=2e-6)
    if structure == "isolated":
        expected = reference.get_potential_energy()
        np.testing.assert_allclose(energies[0] / factor, expected, rtol=1e-6)
        assert abs(expected - without.get_potential_energy()) > 0.05
        assert "to first order" not in output
    else:
        # that of the structure alone, as a warning says
        expected = without.get_potential_energy()
        np.testing.assert_allclose(energies[0] / factor, expected, rtol=1e-6)
        assert "its energy and virial do not contain the field" in output


@pytest.mark.slow
def test_finite_differences(lammps, tmp_path):
    """Of LAMMPS's own energy, in a field that changes with the step."""
    frame = STRUCTURES["isolated"](lammps.frames)
    commands = ["variable strength equal 0.05+0.01*step", "run 0"]
    for axis in ("1 0 0", "0 1 0", "0 0 1"):
        x, y, z = (float(n) for n in axis.split())
        for sign in (1, -2, 1):
            h = sign * STEP
            commands.append(f"displace_atoms one move {h * x} {h * y} {h * z} units box\nrun 0")
    script = lammps.header(
        tmp_path, frame, lammps.model_file("equilibrated"), "electric_field v_strength -0.07 0.05"
    ).replace("pair_style", "variable strength equal 0.05+0.01*step\ngroup one id 2\npair_style")
    script += lammps.record() + "\n".join(commands[1:])
    energies = lammps.read_thermo(lammps.run(tmp_path, script))["PotEng"]
    forces = lammps.read_dump(tmp_path / "out.dump")[1][0][1, :3]
    # runs: start; + , -, back along each axis
    for k in range(3):
        plus, minus = energies[1 + 3 * k], energies[2 + 3 * k]
        assert forces[k] == pytest.approx(-(plus - minus) / (2 * STEP), rel=1e-5)


@pytest.mark.slow
def test_variable(lammps, tmp_path):
    """It is evaluated at each step: the forces are those in the field of the moment."""
    model = lammps.model_file("equilibrated")
    frame = STRUCTURES["isolated"](lammps.frames)
    script = lammps.header(tmp_path, frame, model, "electric_field 0 v_strength 0")
    script = script.replace("pair_style", "variable strength equal 0.02*step\npair_style")
    script += lammps.record() + "timestep 0.0001\nfix move all nve\nrun 3\n"
    lammps.run(tmp_path, script)
    frames, columns = lammps.read_dump(tmp_path / "out.dump")
    for step, (moved, column) in enumerate(zip(frames, columns, strict=True)):
        moved.info["electric_field"] = [0.0, 0.02 * step, 0.0]
        moved.calc = FieldCalculator(model)
        np.testing.assert_allclose(column[:, :3], moved.get_forces(), rtol=0, atol=1e-8)
    assert len(frames) == 4


@pytest.mark.parametrize(
    "model, structure, keywords, message",
    [
        ("equilibrated", "isolated", "electric_field 0.1 0", "electric_field needs three numbers"),
        ("equilibrated", "isolated", "electric_field 0.1 0 up", "up"),
        (
            "equilibrated",
            "isolated",
            "electric_field 0.1 0 0 electric_field 0 0 0",
            "electric_field is given twice",
        ),
        ("equilibrated", "isolated", "electric_field v_x 0 0", "v_x is no equal-style variable"),
        ("long-range", "isolated", "electric_field 0.1 0 0", "no output mtt::polarizability"),
        ("long-range", "triclinic", "electric_field 0.1 0 0", "no output mtt::born_effective_char"),
    ],
)
@pytest.mark.slow
def test_errors(lammps, tmp_path, model, structure, keywords, message):
    frame = STRUCTURES[structure](lammps.frames)
    script = lammps.header(tmp_path, frame, lammps.model_file(model), keywords) + "run 0"
    assert message in lammps.failure(tmp_path, script)


@pytest.mark.slow
def test_zero(lammps, tmp_path):
    """Is as no field: no warning, and no Born charges asked for."""
    frame = STRUCTURES["triclinic"](lammps.frames)
    keywords = "electric_field 0 0.0 0"
    for name in ("equilibrated", "long-range"):
        model = lammps.model_file(name)
        script = lammps.header(tmp_path, frame, model, keywords) + "run 0"
        assert "to first order" not in lammps.run(tmp_path, script)
