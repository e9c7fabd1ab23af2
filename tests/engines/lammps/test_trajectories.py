"""A trajectory of LAMMPS, evaluated again by ASE frame by frame."""

import ase.units
import numpy as np
import pytest
from ase.md.verlet import VelocityVerlet
from metatomic.torch import ModelOutput

STEPS = 100
TIMESTEP = 0.02
"""In fs: random weights bind strongly."""

EV_PER_A3 = 1.6021765e6
"""In bar, LAMMPS's own number in units metal."""

PRESSURE = """
velocity all create 300 1 loop all
compute pressure all pressure NULL virial
"""
VOIGT = [f"c_pressure[{i}]" for i in (1, 2, 3, 6, 5, 4)]
CHARGES = """
fix charges all pair 1 metatomic charge 0
compute sum all reduce sum f_charges
"""


@pytest.fixture(
    scope="module", params=["equilibrated", pytest.param("long-range", marks=pytest.mark.slow)]
)
def trajectory(request, lammps, tmp_path_factory):
    """Name and file of the model, thermodynamic output, frames and columns of the dump."""
    folder = tmp_path_factory.mktemp("trajectory")
    model = lammps.model_file(request.param)
    script = lammps.header(folder, lammps.frames.bulk(), model) + PRESSURE
    if request.param == "equilibrated":
        script += CHARGES + lammps.record(f"{' '.join(VOIGT)} c_sum", "vx vy vz f_charges")
    else:
        script += lammps.record(" ".join(VOIGT), "vx vy vz")
    script += f"fix integrate all nve\ntimestep {1e-3 * TIMESTEP}\nrun {STEPS}\n"
    thermo = lammps.read_thermo(lammps.run(folder, script))
    frames, columns = lammps.read_dump(folder / "out.dump")
    assert len(frames) == len(thermo["Step"]) == STEPS + 1
    return request.param, model, thermo, frames, columns


def test_frames(lammps, trajectory):
    """Energies, forces and virial of every frame are those of ASE."""
    _, model, thermo, frames, columns = trajectory
    stress = -np.stack([thermo[name] for name in VOIGT], axis=1) / EV_PER_A3
    references = lammps.calculate(model, frames)
    for i, (reference, column) in enumerate(zip(references, columns, strict=True)):
        forces = reference.get_forces()
        assert abs(forces).max() > 1.0
        energy = reference.get_potential_energy()
        virial = reference.get_volume() * reference.get_stress()
        np.testing.assert_allclose(thermo["PotEng"][i], energy, rtol=0, atol=1e-9)
        np.testing.assert_allclose(column[:, :3], forces, rtol=0, atol=1e-9)
        np.testing.assert_allclose(
            reference.get_volume() * stress[i], virial, rtol=0, atol=1e-9 * abs(virial).max()
        )


def test_charges(lammps, trajectory):
    """Charges in the dump are the model's, and LAMMPS's own sum is the total charge."""
    name, model, thermo, frames, columns = trajectory
    if name != "equilibrated":
        pytest.skip("without charges")
    np.testing.assert_allclose(thermo["c_sum"], 0.0, atol=1e-12)
    output = {"charge": ModelOutput(sample_kind="atom")}
    for frame, column in list(zip(lammps.calculate(model, frames), columns, strict=True))[::10]:
        charges = frame.calc.run_model(frame, output)["charge"].block().values[:, 0]
        assert abs(charges).max() > 0.1
        np.testing.assert_allclose(column[:, 6], charges.detach().numpy(), rtol=0, atol=1e-9)


def test_drift(lammps, trajectory):
    """The total energy varies as in ASE from the same start."""
    _, model, thermo, frames, columns = trajectory
    frame = lammps.calculate(model, frames[:1])[0]
    frame.set_velocities(columns[0][:, 3:6] * 1e-3 / ase.units.fs)
    energies = [frame.get_total_energy()]
    dynamics = VelocityVerlet(frame, TIMESTEP * ase.units.fs)
    dynamics.attach(lambda: energies.append(frame.get_total_energy()))
    dynamics.run(STEPS)
    ours = thermo["TotEng"] - thermo["TotEng"][0]
    theirs = np.array(energies)[-STEPS - 1 :] - energies[0]
    work = abs(thermo["PotEng"] - thermo["PotEng"][0]).max()
    assert work > 0.01
    assert abs(ours).max() < 1e-3 * work
    # the engines' units of time and mass agree in six digits
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * work)
