"""
Dynamics with i-PI
==================

A crystal of sodium chloride with the model of :doc:`train_and_export`: constant energy with i-PI's
own metatomic driver, then path integrals with the driver of this package, which passes the total
charge and returns the charges of atoms. Needs ``pip install ".[ipi]"``. The input files are those
in ``docs/examples/ipi``.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from example_model import EXAMPLES, FOLDER, ROOT, example_model

# %%
# Structure
# ---------
#
# i-PI reads the cell from the comment line, as lengths and angles.

crystal = ase.io.read(ROOT / "options" / "data" / "nacl-crystal-test.xyz")


def write_structure(atoms: Atoms, path: Path) -> None:
    """Write an xyz file for i-PI, in Å."""
    cell = " ".join(f"{number:.10f}" for number in atoms.cell.cellpar())
    lines = [str(len(atoms)), f"# CELL(abcABC): {cell} positions{{angstrom}} cell{{angstrom}}"]
    for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True):
        lines.append(f"{symbol} {x:.10f} {y:.10f} {z:.10f}")
    path.write_text("\n".join(lines) + "\n")


def i_pi(name: str, model: Path, text: str) -> Path:
    """Run i-PI in a folder of its own.

    :param name: of the run and its folder
    :param model: exported model
    :param text: the input file
    :return: the folder
    """
    folder = FOLDER / f"i-pi-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rotated = Atoms(crystal.symbols, cell=crystal.cell.cellpar(), pbc=True)
    rotated.set_scaled_positions(crystal.get_scaled_positions())
    write_structure(rotated, folder / "init.xyz")
    shutil.copy(model, folder / "model.pt")
    shutil.copy(driver, folder / "ipi_driver.py")
    (folder / "input.xml").write_text(text)
    program = Path(sys.executable).with_name("i-pi")
    subprocess.run([program, "input.xml"], cwd=folder, check=True)
    return folder


model = example_model()
find_driver = [sys.executable, "-m", "metatrain_lorem", "ipi-driver"]
driver = subprocess.run(find_driver, check=True, capture_output=True, text=True).stdout.strip()

# %%
# Constant energy
# ---------------
#
# i-PI's own driver passes no total charge, so the model gets one built in: 0.

build_in = [sys.executable, "-m", "metatrain_lorem", "set-charge", model.with_suffix(".ckpt")]
build_in += ["--total-charge", "0", "-o", "neutral.ckpt"]
subprocess.run(build_in, cwd=FOLDER, check=True)
export = [sys.executable, "-m", "metatrain", "export", "neutral.ckpt", "-o", "neutral.pt"]
subprocess.run(export, cwd=FOLDER, check=True)

text = (EXAMPLES / "ipi" / "nve.xml").read_text()
print(text)
nve = i_pi("nve", FOLDER / "neutral.pt", text)

# %%
# Path integrals
# --------------
#
# Four beads, with charges. The model takes the total charge as an input; here it is 0.

text = (EXAMPLES / "ipi" / "pimd.xml").read_text().replace("total_charge: 1", "total_charge: 0")
print(text)
pimd = i_pi("pimd", model, text)

# %%
# Results
# -------

step, time, conserved, potential, kinetic = np.loadtxt(nve / "nve.out").T
beads = [np.loadtxt(path).ravel() for path in sorted(pimd.glob("pimd.charges_*"))]
print(f"conserved quantity: {1e3 * conserved.std():.2f} meV (standard deviation)")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.plot(1e3 * time, potential - potential[0], color="#d95f02", label="potential")
left.plot(1e3 * time, kinetic - kinetic[0], color="#4d9221", label="kinetic")
left.plot(1e3 * time, conserved - conserved[0], color="#1f4e8c", label="conserved")
left.set(title="constant energy", xlabel="time (fs)", ylabel="energy from the start (eV)")
left.legend(frameon=False)
for number, charges in enumerate(beads):
    right.hist(charges, bins=40, histtype="step", label=f"bead {number + 1}")
right.set(title="path integrals", xlabel="charge (e)", ylabel="atoms")
right.legend(frameon=False)
plt.show()
