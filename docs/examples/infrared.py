"""
Infrared spectrum
=================

Two water molecules with a hydrogen bond: their infrared spectrum from molecular dynamics, as the
spectrum of what the dipole moment does, beside that of harmonic vibrations, whose intensities come
from Born charges. Both are of one model, trained on energies, forces and dipole moments
(GFN2-xTB).
"""

import ase.io
import ase.units
import matplotlib.pyplot as plt
import numpy as np
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from example_model import FOLDER, ROOT, train
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

# %%
# Training
# --------
#
# 150 structures, single molecules and pairs.
#
# .. literalinclude:: ../../examples/infrared.yaml
#    :language: yaml

structures = ase.io.read(ROOT / "options" / "data" / "water.xyz", ":")
FOLDER.mkdir(parents=True, exist_ok=True)
ase.io.write(FOLDER / "water-train.xyz", structures[:125])
ase.io.write(FOLDER / "water-valid.xyz", structures[125:])
model = train("infrared.yaml", "infrared.pt")

# %%
# Harmonic spectrum
# -----------------
#
# In the minimum, force constants are differences of forces. With the modes :math:`e_k` of the
# mass-weighted matrix, the intensity of mode k is the square of
# :math:`\partial \mu / \partial Q_k = \sum_i Z^*_i e_{ik} / \sqrt{m_i}`: Born charges
# :math:`Z^*` are the derivatives of the dipole moment :math:`\mu` that this takes, an output of
# the model.

pairs = [atoms for atoms in structures if len(atoms) == 6]
atoms = min(pairs, key=lambda pair: pair.get_potential_energy()).copy()
atoms.calc = MetatomicCalculator(model)
BFGS(atoms, logfile=None).run(fmax=1e-3, steps=300)
minimum, masses = atoms.get_positions(), np.repeat(atoms.get_masses(), 3)

STEP = 0.005  # Å
force_constants = np.empty((len(masses), len(masses)))
for i in range(len(masses)):
    forces = []
    for sign in (1, -1):
        atoms.positions = minimum
        atoms.positions[i // 3, i % 3] += sign * STEP
        forces.append(atoms.get_forces().ravel())
    force_constants[i] = (forces[1] - forces[0]) / (2 * STEP)
atoms.positions = minimum
force_constants = (force_constants + force_constants.T) / 2

eigenvalues, modes = np.linalg.eigh(force_constants / np.sqrt(np.outer(masses, masses)))
# the lowest six move or turn the whole; units: Å, eV and u make ASE's unit of time
omega = np.sqrt(eigenvalues[6:])
modes = modes[:, 6:]

name = "mtt::born_effective_charge"
outputs = atoms.calc.run_model(atoms, {name: ModelOutput(sample_kind="atom")})
born = outputs[name].block().values[..., 0].detach().numpy()  # [atoms, displacement, dipole]
slopes = (born.reshape(-1, 3) / np.sqrt(masses)[:, None]).T @ modes
intensities = (slopes**2).sum(axis=0)  # e²/u

per_cm = ase.units.fs / (2 * np.pi * ase.units._c * 1e-13)  # of an angular frequency, cm
wavenumbers = omega * per_cm
KM_PER_MOL = 974.9  # of 1 e²/u
for wavenumber, intensity in zip(wavenumbers, KM_PER_MOL * intensities, strict=True):
    print(f"{wavenumber:6.0f} / cm   {intensity:5.0f} km/mol")

# %%
# Dynamics
# --------
#
# Every mode starts with the energy :math:`k_B T`, all of it kinetic, at a temperature so low that
# the molecules hardly leave the minimum. Dipole moments are one more output of each step.

TEMPERATURE = 10.0  # K
TIME_STEP = 0.5  # fs
kT = TEMPERATURE * ase.units.kB
signs = np.random.default_rng(0).choice([-1.0, 1.0], size=len(omega))
velocities = (modes @ (signs * np.sqrt(2 * kT))) / np.sqrt(masses)
atoms.set_velocities(velocities.reshape(-1, 3))

name = "mtt::dipole_moment"
wanted = {name: ModelOutput(unit="e*angstrom", sample_kind="system")}
atoms.calc = MetatomicCalculator(model, additional_outputs=wanted)
moments = []
dynamics = VelocityVerlet(atoms, TIME_STEP * ase.units.fs)
dynamics.attach(
    lambda: moments.append(atoms.calc.additional_outputs[name].block().values.detach().flatten())
)
dynamics.run(4000)

# %%
# Spectrum
# --------
#
# The absorption is the Fourier transform of the autocorrelation of the current
# :math:`\dot\mu`, which is the square of the Fourier transform of the current itself (a window
# takes care of the ends). Divided by :math:`k_B T`, the area under a band is its intensity in the
# same unit as above: the mean square of :math:`\dot\mu` of a mode with the energy :math:`k_B T` is
# :math:`k_B T\, (\partial \mu / \partial Q)^2`.

current = np.gradient(np.array(moments), TIME_STEP * ase.units.fs, axis=0)
window = np.hanning(len(current))[:, None]
transformed = np.fft.rfft(window * current, n=4 * len(current), axis=0)
frequencies = np.fft.rfftfreq(4 * len(current), TIME_STEP * ase.units.fs)
axis = 2 * np.pi * frequencies * per_cm
power = (abs(transformed) ** 2).sum(axis=1)
mean_square = (window**2 * current**2).sum() / (window**2).sum()
spectrum = KM_PER_MOL * mean_square / kT * power / (power.sum() * axis[1])

# harmonic: each line with the shape that the window gives to one
line = abs(np.fft.rfft(window[:, 0], n=4 * len(current))) ** 2
line = np.concatenate([line[:0:-1], line])
shifts = np.arange(-len(axis) + 1, len(axis)) * axis[1]
line /= line.sum() * axis[1]
harmonic = sum(
    KM_PER_MOL * intensity * np.interp(axis - wavenumber, shifts, line)
    for wavenumber, intensity in zip(wavenumbers, intensities, strict=True)
)

figure, all_axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for axes, limits in zip(all_axes, ((0, 2000), (3200, 3900)), strict=True):
    inside = (axis > limits[0]) & (axis < limits[1])
    axes.fill_between(axis[inside], harmonic[inside], color="0.85", label="harmonic")
    axes.plot(axis[inside], spectrum[inside], color="#1f4e8c", lw=1.2, label="dynamics")
    axes.set(xlabel="wavenumber (1/cm)", xlim=limits, ylim=(0.0, None))
all_axes[0].set_ylabel("absorption (km/mol per 1/cm)")
all_axes[0].legend(frameon=False)
all_axes[0].set_title("between molecules, libration, bending")
all_axes[1].set_title("stretching")
plt.show()

# %%
# Where vibrations are harmonic, both agree in place and area. Verlet's time step alone moves a
# band up by the part :math:`(\omega \Delta t)^2 / 24`, 15 / cm for stretching. The soft motions of
# one molecule against the other are not harmonic even here: they exchange energy, and their bands
# spread.
