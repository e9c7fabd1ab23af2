"""
Train and export
================

From structures with energies, forces and charges to a file that simulation programs read: sodium
chloride, clusters of several total charges and crystals, with labels from GFN2-xTB. The same on
the command line, with more data, is :doc:`/quickstart`.
"""

import csv
import subprocess
import sys

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from example_model import EXAMPLES, FOLDER, ROOT

from metatrain_lorem.commands.report.evaluation import evaluate

# %%
# Data
# ----
#
# A sixth of the clusters that come with the repository, and its eight crystals of 64 atoms. Each
# structure carries its total charge: ``charge`` in the comment line of the file.

data = ROOT / "options" / "data"
clusters = ase.io.read(data / "nacl-clusters-train.xyz", "::6")
crystals = ase.io.read(data / "nacl-crystal-train.xyz", ":")
FOLDER.mkdir(parents=True, exist_ok=True)
ase.io.write(FOLDER / "train.xyz", clusters + crystals)

clusters = ase.io.read(data / "nacl-clusters-valid.xyz", "::3")
crystals = ase.io.read(data / "nacl-crystal-test.xyz", ":")
ase.io.write(FOLDER / "valid.xyz", clusters + crystals)

# %%
# Training
# --------
#
# The options file names the architecture, data and targets. Numbers are small, for speed; the
# defaults (:doc:`/hypers`) are made for real work.
#
# .. literalinclude:: ../../examples/nacl.yaml
#    :language: yaml
#
# ``mtt train nacl.yaml`` does the rest, here called from Python:

mtt = [sys.executable, "-m", "metatrain"]
subprocess.run([*mtt, "train", EXAMPLES / "nacl.yaml"], cwd=FOLDER, check=True)

# %%
# It leaves ``model.ckpt``, to continue from, and the exported ``model.pt``, to use. Any checkpoint
# can be exported later:

subprocess.run([*mtt, "export", "model.ckpt", "-o", "model.pt"], cwd=FOLDER, check=True)

# %%
# Errors
# ------
#
# ``train.csv`` in the folder of the run has the errors after each epoch.

table = max((FOLDER / "outputs").glob("*/*/train.csv"), key=lambda path: path.stat().st_mtime)
with open(table, encoding="utf-8") as file:
    rows = list(csv.DictReader(file))[1:]  # the first one holds the units
epochs = [int(row["Epoch"]) + 1 for row in rows]

figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
for name, color in (("training", "#d95f02"), ("validation", "#1f4e8c")):
    axes.plot(epochs, [float(row[f"{name} forces RMSE"]) for row in rows], color, label=name)
axes.set(xlabel="epoch", ylabel="RMSE of forces (meV/Å)", ylim=(0.0, None))
axes.legend(frameon=False)
plt.show()

# %%
# The exported model against the reference, for structures that training did not see. Energies are
# per atom, without what the composition alone gives (a least-squares fit), which would hide the
# rest. ``python -m metatrain_lorem report model.pt valid.xyz`` draws the like and prints a table.

result = evaluate(FOLDER / "model.pt", FOLDER / "valid.xyz")
num_atoms = result.composition.sum(axis=1)
fit = np.linalg.lstsq(result.composition.astype(float), result.energy, rcond=None)[0]
baseline = result.composition @ fit
panels = {
    "energy (eV/atom)": (
        (result.energy - baseline) / num_atoms,
        (result.predicted_energy - baseline) / num_atoms,
    ),
    "force components (eV/Å)": (result.forces.ravel(), result.predicted_forces.ravel()),
    "charges (e)": (result.atomic_charges, result.predicted_atomic_charges),
}
figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
for axes, (title, (reference, predicted)) in zip(all_axes, panels.items(), strict=True):
    axes.plot(reference, predicted, ".", color="#1f4e8c", ms=5, alpha=0.5, mew=0)
    axes.axline((reference.mean(), reference.mean()), slope=1, color="0.4", lw=0.8, zorder=0)
    rmse = np.sqrt(np.mean((predicted - reference) ** 2))
    axes.set(title=f"{title}: RMSE {rmse:.3f}", xlabel="GFN2-xTB", ylabel="model")
    axes.set_aspect("equal", adjustable="datalim")
plt.show()
