"""
A batch of dynamics with TorchSim
=================================

Three crystals of sodium chloride, compressed, as they are and expanded, in one batch at constant
energy, with the model of :doc:`train_and_export`. Needs Python 3.12 or later and
``pip install ".[torchsim]"``.
"""

import subprocess
import sys

import ase.io
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch_sim as ts
from example_model import FOLDER, ROOT, example_model
from metatomic.torch import ModelOutput
from metatomic_torchsim import MetatomicModel

# %%
# The model
# ---------
#
# TorchSim gives no total charge to a model, so it is built in: 0.

checkpoint = example_model().with_suffix(".ckpt")
build_in = [sys.executable, "-m", "metatrain_lorem", "set-charge", checkpoint]
build_in += ["--total-charge", "0", "-o", "neutral-torchsim.ckpt"]
subprocess.run(build_in, cwd=FOLDER, check=True)
export = [sys.executable, "-m", "metatrain", "export", "neutral-torchsim.ckpt"]
subprocess.run([*export, "-o", "neutral-torchsim.pt"], cwd=FOLDER, check=True)
charge = {"charge": ModelOutput(unit="e", sample_kind="atom")}
model = MetatomicModel(FOLDER / "neutral-torchsim.pt", additional_outputs=charge)

# %%
# The batch
# ---------
#
# All structures of a batch have the same boundaries, and the precision of the model.

frames = []
for scale in (0.97, 1.0, 1.03):
    frame = ase.io.read(ROOT / "options" / "data" / "nacl-crystal-test.xyz")
    frame.set_cell(scale * frame.cell, scale_atoms=True)
    frames.append(frame)
state = ts.initialize_state(frames, device=model.device, dtype=model.dtype)
state.rng = 1  # the seed of the velocities

# %%
# Dynamics
# --------
#
# Times are in ps and temperatures in K, times TorchSim's units.

units = ts.units.MetalUnits
state = ts.nve_init(state, model, kT=300 * units.temperature)
energies = []
for _ in range(100):
    state = ts.nve_step(state, model, dt=0.5e-3 * units.time)
    per_atom = state.momenta.square().sum(1) / (2 * state.masses)
    kinetic = torch.zeros_like(state.energy).index_add_(0, state.system_idx, per_atom)
    energies.append(torch.stack([state.energy, kinetic]).cpu())
potential, kinetic = np.moveaxis(torch.stack(energies).numpy(), 1, 0)
charges = model.additional_outputs["charge"].block().values.flatten()
print("charges of the first structure, e:", charges[state.system_idx == 0][:8].tolist())

# %%
# Results
# -------

time = 0.5 * np.arange(1, len(energies) + 1)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
for i, (axis, scale) in enumerate(zip(axes, ("compressed", "as it is", "expanded"), strict=True)):
    for values, label, color in (
        (potential[:, i], "potential", "#d95f02"),
        (kinetic[:, i], "kinetic", "#4d9221"),
        (potential[:, i] + kinetic[:, i], "total", "#1f4e8c"),
    ):
        axis.plot(time, values - values[0], color=color, label=label)
    axis.set(title=scale, xlabel="time (fs)")
axes[0].set_ylabel("energy from the start (eV)")
axes[0].legend(frameon=False)
plt.show()
