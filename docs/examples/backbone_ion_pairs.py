"""
Ions beyond the cutoff of PET
=============================

Two ions pulled apart, seen by PET alone, by PET with LOREM's long-range block behind it, and by PET
with charge equilibration (:doc:`/backbones`). Data and truth are a formula, so that what each of
them makes of distances without data can be told.
"""

import ase
import ase.io
import matplotlib.pyplot as plt
import numpy as np
import yaml
from example_model import FOLDER, train
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

# %%
# Data
# ----
#
# Na⁺ and Cl⁻, any two of them, with repulsion and Coulomb energy, from 2 to 12 Å. The cutoff of all
# models is 5 Å: three of four pairs are beyond it.

CHARGES = {"Na": 1, "Cl": -1}
PAIRS = ("Na", "Cl"), ("Na", "Na"), ("Cl", "Cl")
COULOMB = 14.399645  # eV Å / e²


def energy_of(first: str, second: str, r: np.ndarray) -> np.ndarray:
    """
    :param first: one element
    :param second: the other
    :param r: distances, Å
    :return: energies, eV
    """
    return CHARGES[first] * CHARGES[second] * COULOMB / r + 1500.0 * np.exp(-r / 0.35)


def pair(first: str, second: str, r: float) -> ase.Atoms:
    """Two ions along a random direction, with labels."""
    u = rng.normal(size=3)
    u /= np.linalg.norm(u)
    h = 1e-4
    pull = (energy_of(first, second, r + h) - energy_of(first, second, r - h)) / (2 * h)
    atoms = ase.Atoms(first + second, [np.zeros(3), r * u])
    atoms.info |= {"energy": energy_of(first, second, r)}
    atoms.info |= {"charge": CHARGES[first] + CHARGES[second]}
    atoms.arrays["forces"] = np.array([pull * u, -pull * u])
    return atoms


rng = np.random.default_rng(0)
FOLDER.mkdir(parents=True, exist_ok=True)
for name, distances in (("train", np.linspace(2.1, 12, 24)), ("valid", np.linspace(2.3, 11.8, 8))):
    frames = [pair(*elements, r) for r in distances for elements in PAIRS]
    ase.io.write(FOLDER / f"ions-{name}.xyz", frames)

# %%
# Models
# ------
#
# One PET with few features, by itself (``architecture: pet``) and as a backbone. With charge
# equilibration a model is given the total charge, and is not told any charges of atoms.

PET = {
    "cutoff": 5.0,
    "d_pet": 16,
    "d_node": 16,
    "d_head": 16,
    "d_feedforward": 32,
    "num_heads": 2,
    "num_attention_layers": 1,
    "num_gnn_layers": 1,
}
EPOCHS = 70


def with_blocks(long_range: bool, charges: bool) -> dict:
    """
    :param long_range: whether the model has the long-range block
    :param charges: whether it has charge equilibration
    :return: the section ``architecture``
    """
    return {
        "name": "lorem",
        "model": {
            "cutoff": 5.0,
            "num_radial": 8,
            "num_features": 16,
            "num_spherical_features": 2,
            "max_degree": 2,
            "long_range": {"enable": long_range, "max_degree": 1},
            "charge_equilibration": {"enable": charges},
            "backbone": {"name": "pet", "hypers": PET},
        },
        "training": {"learning_rate": 1e-2},
    }


MODELS = {
    "PET": {"name": "pet", "model": PET, "training": {"learning_rate": 2e-3}},
    "PET + long range": with_blocks(True, False),
    "PET + charges": with_blocks(False, True),
}


def options(architecture: dict) -> dict:
    """The input of ``mtt train``."""
    loss = {"energy": {"type": "mse", "weight": 1.0, "forces": {"type": "mse", "weight": 1.0}}}
    training = {"batch_size": 12, "num_epochs": EPOCHS, "log_interval": 20, "num_workers": 0}
    architecture["training"] |= {**training, "loss": loss, "best_model_metric": "rmse_prod"}
    energy = {"key": "energy", "unit": "eV", "forces": {"key": "forces"}}
    sections = {}
    for name in ("train", "valid"):
        systems = {"read_from": f"ions-{name}.xyz", "length_unit": "angstrom"}
        sections[name] = {"systems": systems, "targets": {"energy": energy}}
        if architecture["model"].get("charge_equilibration", {}).get("enable"):
            sections[name]["extra_data"] = {"charge": {"key": "charge", "unit": "e"}}
    return {
        "seed": 1,
        "device": "cpu",
        "final_eval": False,
        "architecture": architecture,
        "training_set": sections["train"],
        "validation_set": sections["valid"],
        "test_set": 0.0,
    }


calculators = {}
for name, architecture in MODELS.items():
    stem = name.lower().replace(" + ", "-").replace(" ", "-")
    (FOLDER / f"{stem}.yaml").write_text(yaml.safe_dump(options(architecture)))
    calculators[name] = MetatomicCalculator(train(FOLDER / f"{stem}.yaml", f"{stem}.pt"))

# %%
# Energies
# --------


def predict(calculator: MetatomicCalculator, elements: tuple, distances: np.ndarray) -> np.ndarray:
    """Energies of pairs, eV."""
    frames = [pair(*elements, r) for r in distances]
    outputs = calculator.run_model(frames, {"energy": ModelOutput(sample_kind="system")})
    return outputs["energy"].block().values.detach().numpy()[:, 0]


distances = np.linspace(2.2, 20.0, 60)  # Å
colors = dict(zip(PAIRS, ("#1f4e8c", "#d95f02", "#1b9e77"), strict=True))
figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True, layout="constrained")
for axes, (name, calculator) in zip(panels, calculators.items(), strict=True):
    errors = []
    for elements, color in colors.items():
        exact = energy_of(*elements, distances)
        energies = predict(calculator, elements, distances)
        axes.plot(distances, exact, "k:", lw=1.0)
        axes.plot(distances, energies, color=color, label="–".join(elements))
        errors.append(energies - exact)
    for low, high in ((5.0, 12.0), (12.0, 20.0)):
        chosen = np.stack(errors)[:, (distances > low) & (distances <= high)]
        rmse = 1e3 * np.sqrt(np.mean(chosen**2)) / 2
        print(f"{name}, {low:.0f} to {high:.0f} Å: RMSE {rmse:.0f} meV per atom")
    axes.set(title=name, xlabel="distance (Å)", ylim=(-8, 8))
    axes.axvline(5.0, color="0.4", lw=0.8)
    axes.axvspan(12.0, 20.0, color="0.93", zorder=0)
    axes.text(0.98, 0.02, "no data", transform=axes.transAxes, ha="right", color="0.4")
    axes.text(5.2, -7.7, "cutoff", color="0.4", va="bottom")
panels[0].set_ylabel("energy (eV)")
panels[0].legend(frameon=False)
plt.show()

# %%
# Lines are the models, dots the truth; each pair lies along another direction, and what jumps from
# one to the next is that PET is invariant to rotations only approximately.
#
# PET alone gives one energy to all pairs beyond its cutoff, the mean of what it was shown: no
# training can mend that. With the long-range block behind it the same features find charges that
# reach as far as the data and go on beyond them, and so does charge equilibration, which has the
# right sum of charges built in. Neither is exact where there are no data: both were told energies
# and forces only, and nothing says that the charges of a pair are whole numbers. What differs at
# 20 Å differs from one seed to the next; :doc:`/backbones` compares them on data of molecules and
# ions.
