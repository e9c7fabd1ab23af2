"""One MPI process and two, of models of finite range; others are in ``test_ranks.py``."""

import ase
import ase.build
import numpy as np
import pytest

PRESSURE = """
velocity all create 300 1 loop all
compute pressure all pressure NULL virial
compute energies all pe/atom
"""
PRESSURES = " ".join(f"c_pressure[{i}]" for i in (1, 2, 3, 4, 5, 6))


def liquid() -> ase.Atoms:
    """48 atoms in a cell with room for the domains of two processes."""
    sites = np.array(list(np.ndindex(4, 4, 3))) * 1.9
    frame = ase.Atoms("CHON" * 12, positions=sites, cell=[7.6, 7.6, 5.7], pbc=True)
    frame.rattle(0.15, seed=1)
    return frame


@pytest.mark.parametrize(
    "name",
    [
        "short-range",
        pytest.param("messages", marks=pytest.mark.slow),
        pytest.param("conditional-short-range", marks=pytest.mark.slow),
    ],
)
def test_two_as_one(lammps, tmp_path, name):
    """A model of finite range: trajectory, energies per atom and virial."""
    model = lammps.model_file(name)
    keywords = "total_charge 1" if name.startswith("conditional") else ""
    results = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        script = lammps.header(folder, liquid(), model, keywords) + PRESSURE
        script += lammps.record(PRESSURES, "c_energies")
        script += "fix integrate all nve\ntimestep 0.0002\nrun 5"
        thermo = lammps.read_thermo(lammps.run(folder, script, processes))
        results.append((thermo, *lammps.read_dump(folder / "out.dump")))
    (thermo, frames, columns), (thermo_two, frames_two, columns_two) = results
    assert abs(columns[0][:, :3]).max() > 0.1
    for key in ("PotEng", *PRESSURES.split()):
        scale = abs(thermo[key]).max()
        np.testing.assert_allclose(thermo_two[key], thermo[key], rtol=0, atol=1e-10 * scale)
    for frame, frame_of_two in zip(frames, frames_two, strict=True):
        np.testing.assert_allclose(frame_of_two.positions, frame.positions, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.array(columns_two), np.array(columns), rtol=0, atol=1e-9)


def test_newton_off_is_refused(lammps, tmp_path):
    """Forces on atoms of other processes travel with newton on only."""
    model = lammps.model_file("short-range")
    script = lammps.header(tmp_path, liquid(), model, before="newton off") + "run 0"
    assert "needs newton on" in lammps.failure(tmp_path, script, processes=2)
