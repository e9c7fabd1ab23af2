"""
A slab
======

Surfaces are periodic in two directions. With ``pbc = (True, True, False)`` both long-range parts
of the model sum over exactly these, so that no vacuum has to be converged. What happens with three
periodic directions instead?
"""

import ase.build
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from example_model import example_model, train
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

# %%
# A polar surface
# ---------------
#
# Three layers of sodium chloride with an NaCl molecule upright on one side: a slab with a dipole
# moment along its normal. Atoms are displaced at random, since ideal sites are :ref:`special
# <pitfalls:Ideal sites>`.

slab = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
slab = slab[slab.positions[:, 2] < 6.0]
sodium = max((atom for atom in slab if atom.symbol == "Na"), key=lambda atom: atom.z)
slab += Atoms("ClNa", sodium.position + np.array([[0.3, 0.2, 2.6], [0.5, 0.1, 5.0]]))
slab.rattle(0.05, seed=1)
slab.info["charge"] = 0


def evaluate(calculator: MetatomicCalculator, height: float, pbc: tuple) -> tuple:
    """Energy (eV), forces (eV/Å) and charges (e) of the slab in a cell of some height (Å)."""
    atoms = slab.copy()
    atoms.pbc = pbc
    atoms.cell[2] = [0.0, 0.0, height]
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    outputs = calculator.run_model(atoms, {"charge": ModelOutput(sample_kind="atom")})
    return energy, forces, outputs["charge"].block().values.detach().numpy()[:, 0]


# %%
# Two models: that of :doc:`train_and_export`, with LOREM's long-range block and charge
# equilibration, and one that differs from it by ``long_range.enable: false``.

both = example_model()
charges_only = train("nacl.yaml", "charges-only.pt", "architecture.model.long_range.enable=false")
models = {
    "charges only": MetatomicCalculator(charges_only),
    "charges and long-range block": MetatomicCalculator(both),
}

# %%
# Vacuum
# ------
#
# As a slab, energy and forces do not depend on the height of the cell at all: the model builds its
# own.

heights = np.array([16.0, 20.0, 25.0, 30.0, 40.0, 60.0, 80.0, 120.0])  # Å
results = {
    (name, pbc): [evaluate(calculator, height, pbc) for height in heights]
    for name, calculator in models.items()
    for pbc in ((True, True, False), (True, True, True))
}
for (name, pbc), values in results.items():
    energies = [energy for energy, _, _ in values]
    forces = np.array([forces for _, forces, _ in values])
    print(
        f"{name}, pbc = {pbc}: between heights energies differ by {np.ptp(energies):.1e} eV, "
        f"forces by {np.ptp(forces, axis=0).max():.1e} eV/Å"
    )

# %%
# Three periodic directions put images of the dipole above and below. In a cell of volume V they
# change the energy of charges by :math:`-2\pi k_e M_3 M_2 / V`, with the dipole moments along the
# normal with and without images (charges respond). This falls as slowly as 1/height. The model
# with charges only follows this line, until in the lowest cell images come as close as atoms are.

coulomb = 14.399645  # eV Å / e²
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for axes, name in zip((left, right), models, strict=True):
    as_slab = results[name, (True, True, False)]
    as_crystal = results[name, (True, True, True)]
    differences = [a[0] - b[0] for a, b in zip(as_crystal, as_slab, strict=True)]
    axes.plot(1 / heights, differences, "o", color="#1f4e8c", label="three directions minus slab")
    axes.set(title=name, xlabel="1 / height of the cell (1/Å)", ylabel="energy (eV)")
    axes.set_xlim(left=0.0)
    axes.axhline(0.0, color="0.4", lw=0.8, zorder=0)

    normal = slab.positions[:, 2]
    volumes = heights * slab.cell[0, 0] * slab.cell[1, 1]
    moments = np.array(
        [[a[2] @ normal, b[2] @ normal] for a, b in zip(as_crystal, as_slab, strict=True)]
    )
    expected = -2 * np.pi * coulomb * moments.prod(axis=1) / volumes
    axes.plot(1 / heights, expected, color="#d95f02", zorder=0, label="images of the dipole")
    axes.legend(frameon=False)
plt.show()

# %%
# Why the other one does not
# --------------------------
#
# The learned charges of the long-range block are no observables, and nothing makes them sum to
# zero. Their potentials are defined for every kind of boundary, but not the same: with three
# periodic directions a uniform background makes each cell neutral, and potentials at a charged
# slab grow in proportion to the vacuum; as a slab there is no background. Energies made from them
# differ, too, and this model saw clusters and crystals but never a slab. Each single curve is
# smooth, and as a slab independent of the vacuum, but energies of *different* kinds of boundary
# can be compared only as far as training held both. :doc:`/pitfalls` has more of this kind.

# %%
# Slab and bulk
# -------------
#
# What a thick slab gains per layer is the energy of bulk. The same sodium chloride, ideal, as slabs
# of one to five cells and as a crystal:

cell = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 1)


def energy(calculator: MetatomicCalculator, cells: int, periodic: bool) -> float:
    """Energy of some cells on top of each other, a crystal or a slab (eV)."""
    atoms = cell.repeat((1, 1, cells))
    atoms.pbc = (True, True, periodic)
    atoms.info["charge"] = 0
    atoms.calc = calculator
    return atoms.get_potential_energy()


counts = np.arange(1, 6)
figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
for name, calculator in models.items():
    of_bulk = energy(calculator, 4, True) / 4
    of_slabs = np.diff([energy(calculator, count, False) for count in counts])
    differences = 1e3 * (of_slabs - of_bulk) / len(cell)
    print(f"{name}: the last cell of a slab is {differences[-1]:+.2f} meV/atom from bulk")
    axes.plot(counts[1:], differences, "o-", label=name)
axes.axhline(0.0, color="0.4", lw=0.8, zorder=0)
axes.set(xlabel="cells of the slab", ylabel="one more cell minus bulk (meV/atom)")
axes.set_xticks(counts[1:])
axes.legend(frameon=False)
plt.show()

# %%
# With charges that sum to the total charge alone, slab and bulk agree: surface energies may be
# taken from both. Charges of the long-range block sum to another number in each layer, so that
# potentials differ without end: where surface energies matter, leave the block out, or train on
# slabs and bulk.
