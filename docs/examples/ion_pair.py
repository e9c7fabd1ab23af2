"""A sodium and a chlorine atom pulled apart, neutral and as cation.

Run ``python docs/examples/ion_pair.py`` from the repository's root (a minute or two). It trains
a small model on every second distance of ``options/data/nacl-dimer.xyz`` and draws energies and
charges, of the model also beyond the data, to ``docs/images/ion-pair.png``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import ase
import ase.io
import numpy as np
from matplotlib.figure import Figure
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "options" / "data" / "nacl-dimer.xyz"
OPTIONS = Path(__file__).with_suffix(".yaml")
PICTURE = ROOT / "docs" / "images" / "ion-pair.png"
DISTANCES = np.linspace(1.9, 12.0, 102)  # Å
COLORS = {0: "#1f4e8c", 1: "#d95f02"}


def train(pairs: list[ase.Atoms], folder: Path) -> Path:
    """Train on every second structure.

    :param pairs: structures with labels
    :param folder: for the files of the run
    :return: the exported model
    """
    ase.io.write(folder / "train.xyz", pairs[::2])
    ase.io.write(folder / "valid.xyz", pairs[1::2])
    command = [sys.executable, "-m", "metatrain", "train", str(OPTIONS), "-o", "model.pt"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "model.pt"


def predict(model: Path, distances: np.ndarray, total_charge: int) -> tuple[np.ndarray, np.ndarray]:
    """
    :param model: exported model
    :param distances: in Å, shape [D]
    :param total_charge: in e
    :return: energies in eV, shape [D], and charges in e, shape [D, 2]
    """
    calculator = MetatomicCalculator(str(model), additional_outputs={})
    wanted = {
        "energy": ModelOutput(sample_kind="system"),
        "charge": ModelOutput(sample_kind="atom"),
    }
    pairs = [ase.Atoms("NaCl", [[0.0, 0.0, 0.0], [r, 0.0, 0.0]]) for r in distances]
    for pair in pairs:
        pair.info["charge"] = total_charge
    outputs = [calculator.run_model(pair, wanted) for pair in pairs]
    energies = [output["energy"].block().values.item() for output in outputs]
    charges = [output["charge"].block().values.squeeze(1).numpy() for output in outputs]
    return np.array(energies), np.array(charges)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def draw(pairs: list[ase.Atoms], model: Path) -> None:
    """Energies and charges against distance, and the errors within the data on the terminal."""
    figure = Figure(figsize=(8.5, 3.6), layout="compressed")
    left, right = figure.subplots(1, 2)
    left.set(xlabel="distance (Å)", ylabel="energy from the minimum (eV)", ylim=(-0.3, 5.0))
    right.set(xlabel="distance (Å)", ylabel="charge of sodium (e)", ylim=(0.0, 1.1))
    for total_charge, color in COLORS.items():
        mine = [pair for pair in pairs if pair.info["charge"] == total_charge]
        r = np.array([pair.get_distance(0, 1) for pair in mine])
        energy = np.array([pair.get_potential_energy() for pair in mine])
        charge = np.array([pair.arrays["atomic_charge"][0] for pair in mine])
        at_labels, charges_at_labels = predict(model, r, total_charge)
        far, charges_far = predict(model, DISTANCES, total_charge)
        label = f"Q = {total_charge:+d} e" if total_charge else "Q = 0"
        left.plot(r, energy - energy.min(), "o", ms=3, color=color, label=f"{label}, GFN2-xTB")
        left.plot(DISTANCES, far - energy.min(), color=color, label=f"{label}, model")
        right.plot(r, charge, "o", ms=3, color=color)
        right.plot(DISTANCES, charges_far[:, 0], color=color)
        unseen = slice(1, None, 2)
        energy_error = at_labels[unseen] - energy[unseen]
        charge_error = charges_at_labels[unseen, 0] - charge[unseen]
        print(
            f"{label}, unseen distances: RMSE {1e3 * rms(energy_error):.0f} meV and "
            f"{1e3 * rms(charge_error):.0f} me; sodium has {charges_far[-1, 0]:.2f} e at 12 Å"
        )
    for axes in (left, right):
        axes.axvspan(5.0, 12.0, color="0.93", zorder=0)
        axes.text(11.8, axes.get_ylim()[0], "no data", ha="right", va="bottom", color="0.4")
        axes.spines[["top", "right"]].set_visible(False)
    right.axhline(1.0, color="0.4", lw=0.8, ls=":")
    left.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=160)


if __name__ == "__main__":
    structures = ase.io.read(DATA, ":")
    with tempfile.TemporaryDirectory() as folder:
        draw(structures, train(structures, Path(folder)))
