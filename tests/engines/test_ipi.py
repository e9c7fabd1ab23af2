"""i-PI with its own metatomic driver and with ours, every run away from this package."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ase
import numpy as np
import pytest
from helpers import away
from helpers.backbones import PACKAGES
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

pytest.importorskip("ipi", reason="needs i-PI: pip install ipi")
# i-PI's factors from its documented units to its internal ones: eight digits, of which the energy's
# and the force's differ from those of CODATA by 1e-7
from ipi.utils.units import unit_to_internal  # noqa: E402

import metatrain_lorem.engines.ipi_driver as driver_module  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "ipi"
BIN = Path(sys.executable).parent
EV = unit_to_internal("energy", "electronvolt", 1.0)
ANGSTROM = unit_to_internal("length", "angstrom", 1.0)
FORCE = unit_to_internal("force", "ev/ang", 1.0)

INPUT = """
<simulation verbosity='low' floatformat='%24.16e'>
  <output prefix='run'>
    <properties stride='1' filename='out'>
      [ step, conserved, potential, kinetic_md, virial_md, volume, cell_h COORDINATES ]
    </properties>
    OUTPUTS
  </output>
  <total_steps> STEPS </total_steps>
  <prng> <seed> 1 </seed> </prng>
  FORCEFIELD
  <system>
    <initialize nbeads='BEADS'>
      <file mode='xyz'> init.xyz </file>
      <velocities mode='thermal' units='kelvin'> 100 </velocities>
    </initialize>
    <forces> <force forcefield='lorem'/> </forces>
    <motion mode='dynamics'> DYNAMICS </motion>
    <ensemble>
      <temperature units='kelvin'> 100 </temperature> <pressure units='bar'> 1 </pressure>
    </ensemble>
  </system>
</simulation>
"""
STOCK = """
  <ffdirect name='lorem'>
    <pes> metatomic </pes> <parameters> PARAMETERS </parameters>
  </ffdirect>
"""
OURS = STOCK.replace("metatomic </pes>", "custom </pes> <pes_path> ipi_driver.py </pes_path>")
NVE = "<dynamics mode='nve'> <timestep units='femtosecond'> 0.25 </timestep> </dynamics>"
THERMOSTAT = "<thermostat mode='pile_g'> <tau units='femtosecond'> 25 </tau> </thermostat>"
NVT = NVE.replace("nve", "nvt").replace("</dyn", THERMOSTAT + "</dyn")
TAU = "<tau units='femtosecond'> 50 </tau>"
LANGEVIN = f"<thermostat mode='langevin'> {TAU} </thermostat>"
BAROSTAT = f"<barostat mode='isotropic'> {TAU} {LANGEVIN} </barostat>"
NPT = NVT.replace("nvt", "npt").replace("</dyn", BAROSTAT + "</dyn")


def extra(name):
    return f"<trajectory stride='1' filename='{name}' extra_type='{name}'> extras </trajectory>"


@pytest.fixture(scope="module")
def driver() -> str:
    """Path of our driver, as the command prints it."""
    command = [sys.executable, "-m", "metatrain_lorem", "ipi-driver"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def folder(driver, exported, tmp_path):
    """Make a folder with a model, a structure and our driver, and run programs in it."""

    class Folder:
        path = tmp_path / "elsewhere"

        def __init__(self):
            self.path.mkdir()
            shutil.copy(driver, self.path / "ipi_driver.py")

        def fill(self, name: str, atoms: ase.Atoms) -> None:
            """:param name: of a model"""
            shutil.copy(exported[name], self.path / "model.pt")
            cell = " ".join(f"{x:.17g}" for x in atoms.cell.array.T.flatten())
            lines = [str(len(atoms)), f"# CELL{{H}}: {cell} positions{{angstrom}} cell{{angstrom}}"]
            for symbol, position in zip(atoms.symbols, atoms.positions, strict=True):
                lines.append(" ".join([symbol, *(f"{x:.17g}" for x in position)]))
            (self.path / "init.xyz").write_text("\n".join(lines) + "\n")
            self.atoms = atoms

        def start(self, program, *arguments):
            command = [sys.executable, str(BIN / program), *arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            return subprocess.Popen(command, cwd=self.path, env=away.environment(), **pipes)

        def run(self, *command):
            """Output and exit status."""
            with self.start(*command) as process:
                output, _ = process.communicate(timeout=200)
            return output, process.returncode

        def write(self, forcefield, dynamics, steps, beads=1, outputs="", **parameters):
            """The input file."""
            parameters = {"template": "init.xyz", "model": "model.pt", **parameters}
            text = "{" + ", ".join(f"{key}: {value}" for key, value in parameters.items()) + "}"
            filled = INPUT.replace("FORCEFIELD", forcefield).replace("PARAMETERS", text)
            filled = filled.replace("STEPS", str(steps)).replace("BEADS", str(beads))
            filled = filled.replace("OUTPUTS", outputs).replace("DYNAMICS", dynamics)
            filled = filled.replace("COORDINATES", self.coordinates(beads))
            (self.path / "input.xml").write_text(filled)

        def simulate(self, *arguments, **parameters):
            self.write(*arguments, **parameters)
            output, status = self.run("i-pi", "input.xml")
            assert status == 0, output

        def coordinates(self, beads):
            """As properties, since trajectories have too few digits; forces of the centroid."""
            columns = ""
            for atom in range(len(self.atoms)):
                columns += f", atom_f(atom={atom})"
            for bead in range(beads):
                for atom in range(len(self.atoms)):
                    columns += f", atom_x(atom={atom};bead={bead})"
            return columns

        def properties(self):
            """Step, conserved, potential, kinetic, virial over volume (6), volume, cell (6),
            forces, positions of each bead."""
            return np.loadtxt(self.path / "run.out")

        def forces(self):
            """Shape [steps, N, 3], eV/Å."""
            count = 3 * len(self.atoms)
            return self.properties()[:, 17 : 17 + count].reshape(-1, len(self.atoms), 3) / FORCE

        def frames(self, like: ase.Atoms, bead=0):
            """Positions and cells as the driver got them, of one bead.

            :param like: with elements, boundaries and total charge
            """
            frames = []
            count = 3 * len(like)
            for row in self.properties():
                frame = like.copy()
                xx, yy, zz, xy, xz, yz = row[11:17] / ANGSTROM
                frame.set_cell([[xx, 0, 0], [xy, yy, 0], [xz, yz, zz]])
                positions = row[17 + count * (1 + bead) : 17 + count * (2 + bead)]
                frame.positions = positions.reshape(-1, 3) / ANGSTROM
                frames.append(frame)
            return frames

        def extras(self, name, bead=0):
            return np.loadtxt(self.path / f"run.{name}_{bead}", ndmin=2)

    return Folder()


def check_against_ase(folder, atoms, calculator):
    """Energies, forces and virials of every step. Returns the frames, with the calculator."""
    properties = folder.properties()
    frames = folder.frames(atoms)
    forces = folder.forces()
    assert len(frames) == len(forces) == len(properties) > 5
    errors = []
    for row, frame, force in zip(properties, frames, forces, strict=True):
        frame.calc = calculator
        energy = row[2] / EV - frame.get_potential_energy()
        force = force - frame.get_forces()
        virial = row[4:10] * row[10] / EV
        if frame.pbc.all():
            # xx, yy, zz, xy, xz, yz
            expected = -frame.get_stress()[[0, 1, 2, 5, 4, 3]] * frame.get_volume()
            virial = virial - expected
        errors.append([abs(energy), np.abs(force).max(), np.abs(virial).max()])
    energy, force, virial = np.max(errors, axis=0)
    print(f"{len(frames)} frames: {energy:.1e} eV, {force:.1e} eV/Å, virial {virial:.1e} eV")
    assert energy < 1e-9 and force < 1e-9
    assert virial < 1e-8 or not atoms.pbc.all()
    assert np.abs(frames[-1].positions - frames[0].positions).max() > 1e-3
    return frames


def charges_of(calculator, atoms):
    outputs = calculator.run_model(atoms, {"charge": ModelOutput(unit="e", sample_kind="atom")})
    return outputs["charge"].block().values.detach().numpy().flatten()


def check_conservation(properties, part=0.01):
    total, kinetic = np.std(properties[:, [1, 3]], axis=0)
    print(f"conserved quantity {total / EV:.1e} eV, kinetic energy {kinetic / EV:.1e} eV")
    assert total < part * kinetic


@pytest.mark.parametrize(
    "name, kind, steps",
    [
        ("long_range", "triclinic", 20),
        pytest.param("long_range", "triclinic", 100, marks=pytest.mark.slow),
        pytest.param("qeq_plus1", "charged", 100, marks=pytest.mark.slow),
    ],
)
def test_stock_driver(folder, exported, structures, name, kind, steps):
    """A model with its total charge built in."""
    atoms = structures[kind]
    folder.fill(name, atoms)
    folder.simulate(STOCK, NVE, steps)
    check_against_ase(folder, atoms, MetatomicCalculator(exported[name]))
    check_conservation(folder.properties())


def test_total_charge_and_charges(folder, exported, structures):
    atoms = structures["charged"]
    folder.fill("qeq_conditional", atoms)
    folder.simulate(OURS, NVE, 15, outputs=extra("charges"), total_charge=1)
    calculator = MetatomicCalculator(exported["qeq_conditional"])
    frames = check_against_ase(folder, atoms, calculator)
    check_conservation(folder.properties())
    charges = folder.extras("charges")
    np.testing.assert_allclose(charges.sum(axis=1), 1.0, atol=1e-9)
    for row, frame in zip(charges, frames, strict=True):
        np.testing.assert_allclose(row, charges_of(calculator, frame), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["backbone", *PACKAGES])
def test_with_a_backbone(folder, exported, structures, name):
    """Of a slab: virials of PET are not symmetric, and those of ASE are."""
    if name not in exported:
        pytest.skip(f"needs {PACKAGES[name]}")
    atoms = structures["slab"]
    folder.fill(name, atoms)
    folder.simulate(OURS, NVE, 15, outputs=extra("charges"), total_charge=0, pbc="TTF")
    calculator = MetatomicCalculator(exported[name])
    check_against_ase(folder, atoms, calculator)
    check_conservation(folder.properties())
    charges = folder.extras("charges")
    assert np.ptp(charges) > 1e-3
    np.testing.assert_allclose(charges.sum(axis=1), 0.0, atol=1e-9)


@pytest.mark.slow
def test_constant_pressure(folder, exported, structures):
    atoms = structures["crystal"]
    folder.fill("qeq_conditional", atoms)
    folder.simulate(OURS, NPT, 30, total_charge=0)
    check_against_ase(folder, atoms, MetatomicCalculator(exported["qeq_conditional"]))
    properties = folder.properties()
    check_conservation(properties, part=0.05)
    assert np.ptp(properties[:, 10]) > 1e-4 * properties[0, 10]


@pytest.mark.slow
def test_path_integrals_of_an_isolated_ion(folder, exported, structures):
    """Without periodic images, though i-PI has a box; every bead with charges and a dipole."""
    atoms = structures["ion"]
    boxed = atoms.copy()
    boxed.set_cell([12.0, 13.0, 14.0])
    folder.fill("qeq_conditional", boxed)
    forcefield = OURS.replace("</ff", "<batch_size> 4 </batch_size> </ff")
    outputs = extra("charges") + extra("dipole")
    parameters = {"total_charge": 1, "pbc": "FFF"}
    folder.simulate(forcefield, NVT, 20, beads=4, outputs=outputs, **parameters)
    calculator = MetatomicCalculator(exported["qeq_conditional"])
    energies = []
    masses = atoms.get_masses()
    for bead in range(4):
        frames = folder.frames(atoms, bead=bead)
        charges, dipoles = folder.extras("charges", bead), folder.extras("dipole", bead)
        energies.append([calculator.get_property("energy", frame) for frame in frames])
        for row, dipole, frame in zip(charges, dipoles, frames, strict=True):
            frame.set_cell(None)
            np.testing.assert_allclose(row, charges_of(calculator, frame), atol=1e-9)
            center = masses @ frame.positions / masses.sum()
            expected = row @ (frame.positions - center)
            # from Å to Bohr with the digits of metatomic
            np.testing.assert_allclose(dipole / ANGSTROM, expected, rtol=1e-6, atol=1e-6)
    assert np.ptp(energies, axis=0).max() > 1e-3
    potential = folder.properties()[:, 2] / EV
    np.testing.assert_allclose(potential, np.mean(energies, axis=0), atol=1e-9)


def new_driver(folder, **parameters):
    template, model = str(folder.path / "init.xyz"), str(folder.path / "model.pt")
    return driver_module.LoremDriver(template, model, **parameters)


def derivative(function, h):
    return (function(-2 * h) - 8 * function(-h) + 8 * function(h) - function(2 * h)) / (12 * h)


@pytest.mark.parametrize(
    "kind, pbc",
    [
        pytest.param("triclinic", "TTT", marks=pytest.mark.slow),
        ("slab", "TTF"),
        ("molecule", "FFF"),
    ],
)
def test_finite_differences_in_the_driver(folder, exported, structures, kind, pbc):
    """Of energy and dipole moment, in i-PI's units. The energy is that of ASE's boundaries."""
    atoms = structures[kind]
    boxed = atoms.copy()
    if not boxed.cell:
        boxed.set_cell([12.0, 13.0, 14.0])
    folder.fill("qeq_conditional", boxed)
    driver = new_driver(folder, total_charge=0, pbc=pbc, born_charges=kind == "molecule")
    cell, start = boxed.cell.array.T * ANGSTROM, atoms.positions * ANGSTROM
    energy, forces, virial, extras = driver(cell, start)
    reference = MetatomicCalculator(exported["qeq_conditional"])
    assert energy / EV == pytest.approx(reference.get_property("energy", atoms), abs=1e-9)
    rng = np.random.default_rng(1)
    direction = rng.normal(size=start.shape)

    def displaced(size):
        return driver(cell, start + size * direction)

    expected = derivative(lambda size: displaced(size)[0], 4e-6)
    assert abs(expected) > 1e-3
    # energy over length and force differ by 1e-7 in i-PI's factors
    assert abs((forces * direction).sum() + expected) < 2e-6 * np.linalg.norm(forces)
    direction = rng.normal(size=(3, 3))
    direction += direction.T

    def strained(size):
        strain = np.eye(3) + size * direction
        return driver(strain @ cell, start @ strain)[0]

    expected = derivative(strained, 2e-6)
    assert abs(expected) > 1e-3
    assert abs((virial * direction).sum() + expected) < 2e-6 * np.linalg.norm(virial)
    if kind == "molecule":
        born = np.array(json.loads(extras)["BEC"])
        direction = rng.normal(size=start.shape)
        expected = derivative(lambda size: np.array(json.loads(displaced(size)[3])["dipole"]), 1e-5)
        assert born.shape == (15, 3) and np.abs(expected).min() > 1e-2
        np.testing.assert_allclose(born.T @ direction.flatten(), expected, rtol=1e-5, atol=1e-6)


DRIVEN = """
<driven_dynamics mode='eda-nve'>
  <timestep units='femtosecond'> 0.25 </timestep>
  <bec mode='driver'/>
  <efield>
    <amp units='v/ang'> [ 0.0, 0.3, -0.2 ] </amp>
  </efield>
</driven_dynamics>
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, pbc, model",
    [("triclinic", "TTT", "qeq"), ("molecule", "FFF", "qeq"), ("ion", "FFF", "qeq_plus1")],
)
def test_driven_dynamics(folder, exported, structures, kind, pbc, model):
    """In a static field: i-PI's own accelerations are those of the forces in the field, of an ion
    as a whole too, if i-PI is told to take its Born charges and not to hold it."""
    atoms = structures[kind]
    if not atoms.cell:
        atoms.set_cell([12.0, 13.0, 14.0])
    folder.fill(model, atoms)
    driven, total_charge = DRIVEN, 0.0
    if kind == "ion":
        total_charge = 1.0
        threshold = f"<asr_threshold> {1.01 / len(atoms) ** 2} </asr_threshold> </driven"
        driven = DRIVEN.replace("</driven", threshold) + "<fixcom> False </fixcom>"
    folder.write(OURS, driven, 4, outputs=extra("BEC"), pbc=pbc, born_charges="True")
    text = (
        (folder.path / "input.xml").read_text().replace("mode='dynamics'", "mode='driven_dynamics'")
    )
    velocities = "".join(f", atom_v(atom={i})" for i in range(len(atoms)))
    text = text.replace("cell_h ", f"cell_h{velocities} ")
    (folder.path / "input.xml").write_text(text)
    output, status = folder.run("i-pi", "input.xml")
    assert status == 0, output
    rows = folder.properties()
    count = 3 * len(atoms)
    velocities = rows[:, 17 : 17 + count].reshape(len(rows), -1, 3)
    forces = rows[:, 17 + count : 17 + 2 * count].reshape(len(rows), -1, 3)
    born = folder.extras("BEC").reshape(len(rows), count, 3)
    step, mass = 0.25 * 41.341373, 1822.888486
    field = np.array([0.0, 0.3, -0.2]) / 51.4220675
    total = forces + (born @ field).reshape(forces.shape)
    accelerations = total / (mass * atoms.get_masses()[:, None])
    # velocity Verlet; i-PI has masses of its own
    change = 0.5 * step * (accelerations[:-1] + accelerations[1:])
    found = velocities[1:] - velocities[:-1]
    np.testing.assert_allclose(found, change, atol=2e-4 * abs(change).max())
    assert abs(total - forces).max() > 0.01 * abs(forces).max()
    # the tensors are the model's
    frame = atoms.copy()
    frame.pbc = [letter == "T" for letter in pbc]
    frame.positions = rows[0, 17 + 2 * count : 17 + 3 * count].reshape(-1, 3) / ANGSTROM
    if kind == "triclinic":
        name = "mtt::born_effective_charge"
        outputs = {name: ModelOutput(unit="e", sample_kind="atom")}
        calculator = MetatomicCalculator(exported["qeq"])
        expected = calculator.run_model(frame, outputs)[name].block().values.detach()
        np.testing.assert_allclose(born[0], expected.numpy().reshape(-1, 3), atol=1e-7)
    excess = born.reshape(len(rows), -1, 3, 3).sum(axis=1) - total_charge * np.eye(3)
    assert abs(excess).max() < 1e-8


def test_born_charges_of_an_ion(folder, exported, structures):
    """They are the model's output, whose sum is the total charge, beside the dipole moment too."""
    atoms = structures["ion"]
    boxed = atoms.copy()
    boxed.set_cell([12.0, 13.0, 14.0])
    folder.fill("qeq_plus1", boxed)
    driver = new_driver(folder, pbc="FFF", born_charges=True)
    _, _, _, extras = driver(boxed.cell.array.T * ANGSTROM, atoms.positions * ANGSTROM)
    extras = json.loads(extras)
    name = "mtt::born_effective_charge"
    outputs = {name: ModelOutput(unit="e", sample_kind="atom")}
    calculator = MetatomicCalculator(exported["qeq_plus1"])
    expected = calculator.run_model(atoms, outputs)[name].block().values.detach()[..., 0].numpy()
    born = np.array(extras["BEC"]).reshape(-1, 3, 3)
    np.testing.assert_allclose(born, expected, atol=1e-7)
    np.testing.assert_allclose(born.sum(axis=0), np.eye(3), atol=1e-8)
    assert len(extras["dipole"]) == 3


def test_refused(folder, structures):
    """Our driver names the parameter."""
    folder.fill("qeq_conditional", structures["crystal"])
    with pytest.raises(ValueError, match=r"model.pt needs the total charge.*add `total_charge: 0`"):
        new_driver(folder)
    with pytest.raises(ValueError, match="pbc: 'TT' is not three letters"):
        new_driver(folder, total_charge=0, pbc="TT")
    with pytest.raises(ValueError, match="total_charge: 'one' is not a number, in e"):
        new_driver(folder, total_charge="one")
    with pytest.raises(ValueError, match="born_charges: 'yes' is neither True nor False"):
        new_driver(folder, total_charge=0, born_charges="yes")
    folder.fill("qeq_plus1", structures["crystal"])
    with pytest.raises(ValueError, match="takes no total charge.*set-charge"):
        new_driver(folder, total_charge=1)


def test_stock_driver_refuses_a_conditional_model(folder, structures):
    """The model's own error tells what to do."""
    folder.fill("qeq_conditional", structures["crystal"])
    folder.write(STOCK, NVE, 1)
    output, status = folder.run("i-pi", "input.xml")
    assert status != 0
    assert "set-charge" in output


@pytest.mark.slow
def test_socket(folder, exported, structures):
    """The driver as a program of its own, the socket in a folder that nothing else uses."""
    atoms = structures["slab"]
    folder.fill("qeq_conditional", atoms)
    socket = "<ffsocket mode='unix' name='lorem'> <address> lorem </address> </ffsocket>"
    folder.write(socket, NVE, 10)
    prefix = ["-S", f"{folder.path}/s_"]
    parameters = "template=init.xyz,model=model.pt,total_charge=1,pbc=TTF"
    ours = ["-m", "custom", "-P", "ipi_driver.py", "-o", parameters, "-u", "-a", "lorem"]
    with folder.start("i-pi", "input.xml", *prefix) as server:
        while server.poll() is None and not (folder.path / "s_lorem").exists():
            time.sleep(0.1)
        with folder.start("i-pi-py_driver", *ours, *prefix) as driver:
            output, _ = server.communicate(timeout=200)
            driver.communicate(timeout=60)
    assert server.returncode == 0, output
    atoms.info["charge"] = 1.0
    check_against_ase(folder, atoms, MetatomicCalculator(exported["qeq_conditional"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, model, kind",
    [
        ("nve", "qeq_plus1", "charged"),
        ("pimd", "qeq_conditional", "charged"),
        ("driven", "qeq_conditional", "molecule"),
    ],
)
def test_examples(folder, structures, name, model, kind):
    """The inputs of the documentation."""
    atoms = structures[kind]
    if not atoms.cell:
        atoms.set_cell([12.0, 13.0, 14.0])
    folder.fill(model, atoms)
    shutil.copy(EXAMPLES / f"{name}.xml", folder.path)
    output, status = folder.run("i-pi", f"{name}.xml")
    assert status == 0, output
    rows = np.loadtxt(folder.path / f"{name}.out")
    assert len(rows) == {"nve": 51, "pimd": 21, "driven": 201}[name]
    if name == "driven":
        # what the molecule takes up is the work of the field on its dipole moment
        energies, fields = rows[:, 3] + rows[:, 4], rows[:, 5:8]
        dipoles = np.loadtxt(folder.path / "driven.dipole_0") / ANGSTROM
        work = ((fields[1:] + fields[:-1]) / 2 * np.diff(dipoles, axis=0)).sum(axis=1).cumsum()
        assert abs(fields).max() > 0.09
        assert np.ptp(work) > 0.1
        np.testing.assert_allclose(energies[1:] - energies[0], work, atol=0.1 * np.ptp(work))
        return
    assert np.std(rows[:, 2]) < 0.05
    if name == "pimd":
        charges = np.loadtxt(folder.path / "pimd.charges_3")
        np.testing.assert_allclose(charges.sum(axis=1), 1.0, atol=1e-6)
