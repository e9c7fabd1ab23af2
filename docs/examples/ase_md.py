"""
Relaxation and dynamics with ASE
================================

A cluster Na₉Cl₈⁺ with the model of :doc:`train_and_export`: relaxed, then heated and let go at
constant energy, with the charges of its atoms on the way.
"""

import ase.io
import ase.units
import matplotlib.pyplot as plt
import numpy as np
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from example_model import ROOT, example_model
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

# %%
# The total charge
# ----------------
#
# This model takes the total charge as an input, in ASE ``atoms.info["charge"]``. The file has it.
# Where it is missing ASE's calculator takes 0, **without a word**; see :doc:`/total-charge`.

clusters = ase.io.read(ROOT / "options" / "data" / "nacl-clusters-test.xyz", ":")
atoms = next(cluster for cluster in clusters if len(cluster) == 17)
print(atoms.symbols.get_chemical_formula(), "with a total charge of", atoms.info["charge"], "e")
calculator = MetatomicCalculator(example_model())
atoms.calc = calculator

# %%
# Relaxation
# ----------

relaxation = []
optimizer = FIRE(atoms, logfile=None)
optimizer.attach(lambda: relaxation.append(atoms.get_potential_energy()))
optimizer.run(fmax=0.02, steps=200)
print(f"largest force after {optimizer.nsteps} steps: {abs(atoms.get_forces()).max():.3f} eV/Å")

# %%
# Dynamics
# --------
#
# Charges are one more output of the model. Asking for it with ``additional_outputs`` adds it to
# every evaluation, so that it costs nothing more.

wanted = {"charge": ModelOutput(sample_kind="atom")}
atoms.calc = MetatomicCalculator(example_model(), additional_outputs=wanted)
MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
Stationary(atoms)

frames = []


def record() -> None:
    charges = atoms.calc.additional_outputs["charge"].block().values[:, 0].detach().numpy()
    frames.append((atoms.get_potential_energy(), atoms.get_kinetic_energy(), charges.copy()))


time_step = 2.0  # fs
dynamics = VelocityVerlet(atoms, timestep=time_step * ase.units.fs)
dynamics.attach(record)
dynamics.run(300)

# %%
# Energy and charges
# ------------------

potential, kinetic, charges = (np.array(values) for values in zip(*frames, strict=True))
total = potential + kinetic
times = time_step / 1000 * np.arange(len(total))  # ps
print(f"potential energy fluctuates by {1e3 * potential.std():.0f} meV (standard deviation),")
print(f"total energy by {1e3 * total.std():.2f} meV")
print(f"charges sum to 1 e within {abs(charges.sum(axis=1) - 1).max():.0e} e")

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
left.plot(np.array(relaxation) - relaxation[-1], color="#1f4e8c")
left.set(title="relaxation", xlabel="step", ylabel="energy above the last (eV)")
middle.plot(times, potential - potential[0], color="#d95f02", label="potential")
middle.plot(times, total - total[0], color="#1f4e8c", label="total")
middle.set(title="constant energy", xlabel="time (ps)", ylabel="energy from the start (eV)")
middle.legend(frameon=False)
for symbol, color in (("Na", "#7b3294"), ("Cl", "#4d9221")):
    right.plot(times, charges[:, atoms.symbols == symbol], color=color, lw=0.6)
    right.plot([], [], color=color, label=symbol)
right.set(title="charges", xlabel="time (ps)", ylabel="charge (e)")
right.legend(frameon=False, loc="center right")
plt.show()
