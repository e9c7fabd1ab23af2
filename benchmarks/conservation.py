"""Energy conservation of a trained model, in double precision.

    python benchmarks/conservation.py nve model.ckpt structures.xyz [--index 0] [--picoseconds 1]
    python benchmarks/conservation.py npt model.ckpt structures.xyz [--index 0] [--picoseconds 1]

``nve`` prints the drift of the total energy: the slope of a straight line through it, per atom and
picosecond. ``npt`` runs a barostat at 300 K and 1 bar, then scales one structure's cell through
+-1 % in fine steps and prints by how much its energy jumps where the number of wave vectors or mesh
points changes, against the change from step to step elsewhere.
"""

import argparse

import ase.io
import numpy as np
import torch
from ase import units
from ase.md.nose_hoover_chain import MTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from metatomic_ase import MetatomicCalculator
from metatrain.utils.io import load_model


def run_nve(atoms, picoseconds: float, timestep: float, temperature: float) -> None:
    """Print the drift of the total energy."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    Stationary(atoms)
    energies = []
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() / len(atoms)), interval=1)
    dynamics.run(int(round(picoseconds * 1000 / timestep)))
    times = np.arange(len(energies)) * timestep / 1000
    slope = np.polyfit(times, energies, 1)[0]
    print(
        f"NVE, {len(atoms)} atoms, {times[-1]:g} ps, {timestep} fs: drift "
        f"{1e3 * slope:.4f} meV/atom/ps, fluctuation {1e3 * np.std(energies):.4f} meV/atom"
    )


def run_npt(atoms, picoseconds: float, timestep: float) -> None:
    """Run at constant pressure, and print the volumes seen."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    volumes = []
    dynamics = MTKNPT(
        atoms,
        timestep * units.fs,
        temperature_K=300,
        pressure_au=1.0 * units.bar,
        tdamp=50 * units.fs,
        pdamp=500 * units.fs,
    )
    dynamics.attach(lambda: volumes.append(atoms.get_volume() / len(atoms)), interval=1)
    dynamics.run(int(round(picoseconds * 1000 / timestep)))
    print(
        f"NPT, {len(atoms)} atoms, {picoseconds:g} ps: ran, volume {volumes[0]:.3f} to "
        f"{volumes[-1]:.3f} A^3/atom (between {min(volumes):.3f} and {max(volumes):.3f}), "
        f"last temperature {atoms.get_temperature():.0f} K"
    )


def scan_cell(atoms, steps: int = 400) -> None:
    """Print the jumps of the energy along a fine scan of the volume."""
    cell = atoms.cell.array.copy()
    scaled = atoms.get_scaled_positions()
    energies = []
    for scale in np.linspace(0.99, 1.01, steps):
        atoms.set_cell(cell * scale)
        atoms.set_scaled_positions(scaled)
        energies.append(atoms.get_potential_energy() / len(atoms))
    # a third difference removes the smooth curve; a jump stands out
    roughness = np.abs(np.diff(energies, 3)) / 3
    print(
        f"cell scan: energy jumps by at most {1e3 * roughness.max():.2e} meV/atom "
        f"(median roughness {1e3 * np.median(roughness):.2e}, range of the energy "
        f"{1e3 * np.ptp(energies):.2f} meV/atom)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ensemble", choices=["nve", "npt"])
    parser.add_argument("model", help="checkpoint")
    parser.add_argument("structures")
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--picoseconds", type=float, default=1.0)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, for nve")
    parser.add_argument("--repeat", type=int, default=1, help="supercell of a periodic structure")
    parser.add_argument("--mesh", action="store_true", help="use the mesh at any size")
    arguments = parser.parse_args()

    model = load_model(arguments.model).to(torch.float64)
    if arguments.mesh:
        coulomb = model.long_range.coulomb
        coulomb.settings = coulomb.settings._replace(mesh_threshold=0)
    atoms = ase.io.read(arguments.structures, index=arguments.index)
    atoms.calc = None
    if arguments.repeat > 1:
        atoms = atoms.repeat(arguments.repeat)
    atoms.calc = MetatomicCalculator(model.export())
    if arguments.ensemble == "nve":
        run_nve(atoms, arguments.picoseconds, arguments.timestep, arguments.temperature)
    else:
        start = atoms.copy()
        run_npt(atoms, arguments.picoseconds, arguments.timestep)
        start.calc = atoms.calc
        scan_cell(start)


if __name__ == "__main__":
    main()
