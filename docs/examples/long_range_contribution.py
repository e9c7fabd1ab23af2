"""
Reading the long-range contribution
===================================

How much of an energy is due to long range, and to which part of the model? For two parts further
apart than the cutoff the exported model alone tells: whatever energy they have in common is long
range.
"""

import ase.io
import matplotlib.pyplot as plt
import numpy as np
import torch
from example_model import ROOT, example_model
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator
from metatrain.utils.io import load_model

# %%
# Two ions
# --------
#
# Na₅Cl₄⁺ and Na₂Cl⁺ from the test set, moved apart along the line between their centres.

clusters = ase.io.read(ROOT / "options" / "data" / "nacl-clusters-test.xyz", ":")
pair = next(atoms for atoms in clusters if atoms.symbols.get_chemical_formula() == "Cl5Na7")
first, second = pair[:9], pair[9:]
first.info["charge"] = second.info["charge"] = 1
direction = second.positions.mean(axis=0) - first.positions.mean(axis=0)
direction /= np.linalg.norm(direction)


def apart(gap: float) -> ase.Atoms:
    """Both ions, with the smallest distance between them (Å) close to ``gap``."""
    moved = second.copy()
    height = (first.positions @ direction).max() - (moved.positions @ direction).min()
    moved.positions += (height + gap) * direction
    both = first + moved
    both.info["charge"] = 2
    return both


# %%
# Blind to potentials
# -------------------
#
# A second model without what the potentials of LOREM's long-range block contribute: the first one
# with zeros in the layers that make the charges of this block. No charges, no potentials;
# everything else stays.

path = example_model()
blind = load_model(path.with_suffix(".ckpt"))
with torch.no_grad():
    for layers in (blind.long_range.scalar_charge, blind.long_range.spherical_charges):
        for parameter in layers.parameters():
            parameter.zero_()
blind.export().save(path.with_name("blind.pt"))

# %%
# Interaction energies
# --------------------
#
# Energy of both minus the energies of each alone, with its own total charge. Beyond the cutoff of
# 5 Å the short-range part of the model drops out of it.

gaps = np.linspace(5.0, 30.0, 26)  # Å
structures = [apart(gap) for gap in gaps]
distances = [
    np.linalg.norm(atoms[9:].get_center_of_mass() - atoms[:9].get_center_of_mass())
    for atoms in structures
]


def energy(calculator: MetatomicCalculator, atoms: ase.Atoms) -> float:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy()


calculators = {
    "model": MetatomicCalculator(path),
    "without long-range block": MetatomicCalculator(path.with_name("blind.pt")),
}
interactions = {}
for name, calculator in calculators.items():
    alone = energy(calculator, first) + energy(calculator, second)
    interactions[name] = [energy(calculator, atoms) - alone for atoms in structures]

charges = []
for atoms in structures:
    wanted = {"charge": ModelOutput(sample_kind="atom")}
    values = calculators["model"].run_model(atoms, wanted)["charge"].block().values
    charges.append([values[:9].sum().item(), values[9:].sum().item()])

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
styles = {"color": "#1f4e8c", "ls": "-"}, {"color": "#d95f02", "ls": "--"}
for (name, values), style in zip(interactions.items(), styles, strict=True):
    left.plot(distances, values, **style, label=name)
left.plot(distances, 14.399645 / np.array(distances), "k:", label="two unit charges")
left.set(title="interaction", ylabel="energy (eV)")
difference = np.subtract(*interactions.values())
middle.plot(distances, 1e3 * difference, "o-", ms=3, color="#1f4e8c")
middle.axhline(0.0, color="0.4", lw=0.8, zorder=0)
middle.set(title="due to the long-range block", ylabel="energy (meV)")
right.plot(distances, charges, "o-", ms=3, label=["Na₅Cl₄", "Na₂Cl"])
right.axhline(1.0, color="0.4", lw=0.8, zorder=0)
right.set(title="charges of the parts", ylabel="charge (e)")
for axes in (left, middle, right):
    axes.set(xlabel="distance of the centres (Å)")
left.legend(frameon=False, fontsize=8)
right.legend(frameon=False)
plt.show()

# %%
# Between ions this far apart almost everything is the Coulomb energy of the charges from charge
# equilibration; the long-range block, which has no charges with a meaning of their own, adds what
# is left. The charges of the parts are close to the whole numbers that training held, but a
# small part of an electron leaks from one to the other at any distance
# (:ref:`theory/charge-equilibration:Limits`), which keeps the energy below the dotted line.
#
# What this does not tell: a model *trained* without long range would have learned other
# short-range terms. Train one, ``options/short-range.yaml``, to see what the data need.
