"""
A model of lorem-jax
====================

`lorem-jax <https://pypi.org/project/lorem-jax/>`_ is the reference implementation of LOREM. Its
checkpoints become checkpoints of metatrain, without JAX on the machine. Here a small one with
random weights from the tests of this repository, for which they also hold what lorem-jax itself
computed in double precision.
"""

import subprocess
import sys

import ase.io
import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from example_model import FOLDER, ROOT
from metatomic_ase import MetatomicCalculator
from metatrain.utils.io import load_model

# %%
# Conversion
# ----------
#
# The folder holds ``model.yaml`` (settings), ``baseline.yaml`` (energies of elements) and
# ``model.msgpack`` (weights). The checkpoint can be exported, and fine-tuned.

reference_folder = ROOT / "tests" / "golden" / "lorem_jax"
weights = reference_folder / "plain" / "model"
print(sorted(path.name for path in weights.iterdir()))

FOLDER.mkdir(parents=True, exist_ok=True)
convert = [sys.executable, "-m", "metatrain_lorem", "convert-lorem-jax", weights]
subprocess.run([*convert, "-o", "lorem-jax.ckpt"], cwd=FOLDER, check=True)
export = [sys.executable, "-m", "metatrain", "export", "lorem-jax.ckpt"]
subprocess.run([*export, "-o", "lorem-jax.pt"], cwd=FOLDER, check=True)

# %%
# ``mtt export`` writes it in single precision, like the weights. Where rounding matters, beside
# energies of elements of thousands of eV, export it in double precision from Python:

model = load_model(FOLDER / "lorem-jax.ckpt")
model.to(torch.float64).export().save(FOLDER / "lorem-jax-double.pt")

# %%
# The same numbers
# ----------------
#
# Crystals, a slab with its vacuum along two different axes, molecules. The reference leaves out
# the energies of elements.

structures = ase.io.read(reference_folder / "structures.xyz", ":")
reference = np.load(reference_folder / "reference.npz")
baseline = yaml.safe_load((weights / "baseline.yaml").read_text())["elemental"]
names = [atoms.info["name"] for atoms in structures]
their_energies = np.array(
    [
        reference[f"plain/{name}/energy"] + sum(baseline[z] for z in atoms.numbers)
        for name, atoms in zip(names, structures, strict=True)
    ]
)
their_forces = np.concatenate([reference[f"plain/{name}/forces"].ravel() for name in names])

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for file, label, color in (
    ("lorem-jax.pt", "single precision", "#d95f02"),
    ("lorem-jax-double.pt", "double precision", "#1f4e8c"),
):
    for atoms in structures:
        atoms.calc = MetatomicCalculator(FOLDER / file)
    energies = np.array([atoms.get_potential_energy() for atoms in structures])
    forces = np.concatenate([atoms.get_forces().ravel() for atoms in structures])
    sizes = [len(atoms) for atoms in structures]
    differences = np.maximum(abs(energies - their_energies) / sizes, 1e-12)
    right.semilogy(names, differences, "o", color=color, label=label)
    print(f"{label}: largest error of forces {abs(forces - their_forces).max():.0e} eV/Å")
left.plot(their_forces, forces, "o", ms=4, color=color, alpha=0.6)
left.axline((0, 0), slope=1, color="0.4", lw=0.8, zorder=0)
left.set(xlabel="forces, lorem-jax (eV/Å)", ylabel="forces, imported model (eV/Å)")
right.tick_params(axis="x", rotation=40)
right.set(ylabel="difference of energies (eV/atom)")
right.legend(frameon=False)
plt.show()

# %%
# What is left in double precision is, for periodic structures, the accuracy asked for in the
# Coulomb sum (1e-6, relative; the reference has 1e-13), and at most rounding for the others (drawn
# at 1e-12). :doc:`/theory/lorem-jax` lists what differs from lorem-jax, and which weights need
# ``--full-isolated-potentials``.
