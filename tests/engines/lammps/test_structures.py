"""Energies, forces and virials of one structure of each kind."""

import ase
import numpy as np
import pytest

STEP = 1e-4
"""Of finite differences, Å."""

STRAIN = 1e-5

EV_PER_A3 = 1.6021765e6
"""In bar, LAMMPS's own number in units metal."""

PRESSURE = """
compute pressure all pressure NULL virial
compute energies all pe/atom
"""
PRESSURES = " ".join(f"c_pressure[{i}]" for i in (1, 2, 3, 4, 5, 6))


def small_cell(frames) -> ase.Atoms:
    """Three atoms in a cell much smaller than the cutoff of 4 Å."""
    cell = [[3.1, 0, 0], [0, 2.9, 0], [0, 0, 3.3]]
    return ase.Atoms(
        "CHO", positions=[[0.1, 0.2, 0.3], [1.2, 1.3, 0.2], [1.5, 0.3, 1.9]], cell=cell, pbc=True
    )


def isolated(frames) -> ase.Atoms:
    """A molecule in a box that has no meaning but for LAMMPS."""
    frame = frames.molecule()
    frame.center(vacuum=4.0)
    frame.pbc = False
    return frame


def upright_slab(frames) -> ase.Atoms:
    """A slab, not periodic along its third vector: LAMMPS does not tilt along that."""
    cell = [[4.7, 0, 0], [0.6, 5.2, 0], [0, 0, 14.0]]
    frame = ase.Atoms(
        "OCNHH", scaled_positions=frames.spread(5) * [1, 1, 0.3] + [0, 0, 0.3], cell=cell
    )
    frame.pbc = [True, True, False]
    return frame


STRUCTURES = {
    "triclinic": lambda frames: frames.bulk(),
    "small": small_cell,
    "slab": upright_slab,
    "isolated": isolated,
}


@pytest.mark.parametrize(
    ("name", "structure", "charge", "newton"),
    [
        ("conditional", "triclinic", 1.0, "on"),
        ("equilibrated", "slab", None, "on"),
        ("messages", "small", None, "off"),
        pytest.param("conditional", "isolated", -1.0, "off", marks=pytest.mark.slow),
        pytest.param("backbone", "small", 1.0, "on", marks=pytest.mark.slow),
        pytest.param("backbone-short-range", "triclinic", None, "off", marks=pytest.mark.slow),
        pytest.param("lorem", "triclinic", None, "on", marks=pytest.mark.slow),
        pytest.param("soap_bpnn", "triclinic", None, "on", marks=pytest.mark.slow),
        pytest.param("experimental.mace", "triclinic", None, "on", marks=pytest.mark.slow),
        pytest.param("long-range", "small", None, "off", marks=pytest.mark.slow),
        pytest.param("conditional-short-range", "small", 1.0, "on", marks=pytest.mark.slow),
    ],
)
def test_as_in_ase(lammps, tmp_path, name, structure, charge, newton):
    """A single point, per atom too, with the total charge given in the script."""
    model = lammps.model_file(name)
    frame = STRUCTURES[structure](lammps.frames)
    keywords = "check_consistency on" + ("" if charge is None else f" total_charge {charge}")
    script = lammps.header(tmp_path, frame, model, keywords, before=f"newton {newton}")
    script += PRESSURE + lammps.record(PRESSURES, "c_energies") + "run 0"
    thermo = lammps.read_thermo(lammps.run(tmp_path, script))
    (frame,), (columns,) = lammps.read_dump(tmp_path / "out.dump")
    (reference,) = lammps.calculate(model, [frame], charge)
    forces = reference.get_forces()
    assert abs(forces).max() > 0.1
    np.testing.assert_allclose(
        thermo["PotEng"][0], reference.get_potential_energy(), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(columns[:, :3], forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(columns[:, 3], reference.get_potential_energies(), rtol=0, atol=1e-9)
    if frame.pbc.all():
        stress = -np.array([thermo[name][0] for name in PRESSURES.split()]) / EV_PER_A3
        expected = reference.get_stress()[[0, 1, 2, 5, 4, 3]]
        np.testing.assert_allclose(stress, expected, rtol=0, atol=1e-9 * abs(expected).max())


@pytest.mark.slow
def test_outside_of_the_box(lammps, tmp_path):
    """Atoms that are read outside of the box and pass through its faces keep their energy."""
    model = lammps.model_file("equilibrated")
    script = lammps.header(tmp_path, lammps.frames.bulk(), model) + lammps.record()
    script += "run 0\ndisplace_atoms all move 7.3 -2.9 8.7\nrun 0\n"
    thermo = lammps.read_thermo(lammps.run(tmp_path, script))
    np.testing.assert_allclose(thermo["PotEng"][0], thermo["PotEng"][1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("equilibrated", "triclinic"),
        pytest.param("long-range", "small", marks=pytest.mark.slow),
        pytest.param("equilibrated", "slab", marks=pytest.mark.slow),
        pytest.param("backbone-short-range", "small", marks=pytest.mark.slow),
        pytest.param("soap_bpnn", "small", marks=pytest.mark.slow),
        pytest.param("experimental.mace", "small", marks=pytest.mark.slow),
    ],
)
def test_finite_differences(lammps, tmp_path, name, structure):
    """Forces and virial are the derivatives of LAMMPS's own energy.

    Agreement with ASE would not show operators whose derivatives are missing in C++.
    """
    frame = STRUCTURES[structure](lammps.frames)
    script = lammps.header(tmp_path, frame, lammps.model_file(name))
    script += PRESSURE + lammps.record(f"{PRESSURES} vol") + "group moved id 2\nrun 0\n"
    moves = np.concatenate([np.eye(3), -np.eye(3)]) * STEP
    for move in moves:
        there, back = ("{:.17g} {:.17g} {:.17g}".format(*x) for x in (move, -move))
        script += f"displace_atoms moved move {there}\nrun 0\ndisplace_atoms moved move {back}\n"
    axes = "xy"
    for axis in axes:
        for factor in (1 + STRAIN, 1 - STRAIN):
            script += f"change_box all {axis} scale {factor:.17g} remap\nrun 0\n"
            script += f"change_box all {axis} scale {1 / factor:.17g} remap\n"
    thermo = lammps.read_thermo(lammps.run(tmp_path, script))
    energies = thermo["PotEng"]
    _, columns = lammps.read_dump(tmp_path / "out.dump")
    forces = columns[0][1, :3]
    assert abs(forces).max() > 0.1
    differences = -(energies[1:4] - energies[4:7]) / (2 * STEP)
    np.testing.assert_allclose(forces, differences, rtol=0, atol=1e-5 * abs(forces).max())
    if not frame.cell.angles() == pytest.approx(90.0):
        # scaling one axis of a tilted box strains others, too
        return
    derivatives = (energies[7::2] - energies[8::2]) / (2 * STRAIN)
    virials = [
        thermo[f"c_pressure[{i + 1}]"][0] * thermo["Volume"][0] / EV_PER_A3 for i in range(2)
    ]
    np.testing.assert_allclose(virials, -derivatives, rtol=0, atol=1e-5 * abs(derivatives).max())
