"""Parity plot: predicted against reference values."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ...heads.response import BORN_CHARGE
from .evaluation import Evaluation
from .table import errors

# blue and orange stay apart for colour-blind readers and in grey
COLORS = ("#d95f02", "#1f4e8c", "#4d9221")


def plot_parity(evaluations: dict[str, Evaluation], path: str | Path) -> None:
    """Panels of everything that the evaluations of one or several models on the same test set
    have.

    Energies are shown without the baseline of the model, which would hide everything else.

    :param evaluations: label -> evaluation; at most three
    :param path: image file to write
    """
    panels = {label: _panels(evaluation) for label, evaluation in evaluations.items()}
    units = {title: x[title][0] for x in panels.values() for title in x}
    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(3.7 * len(units), 3.7), layout="compressed")
        row = figure.subplots(1, len(units), squeeze=False)[0]
        for axes, (title, unit) in zip(row, units.items(), strict=True):
            for color, (label, model_panels) in zip(COLORS, panels.items(), strict=False):
                if title in model_panels:
                    _, reference, predicted, error = model_panels[title]
                    text = f"{label}: RMSE {error}"
                    missing = np.isnan(reference).reshape(len(reference), -1).any(axis=1)
                    if missing.any():
                        text += f"\n{missing.sum()} of {len(missing)} labels missing"
                    axes.scatter(reference, predicted, label=text, **_marker(color, reference.size))
            unit = f" ({unit})" if unit else ""
            axes.set(title=title, xlabel=f"reference{unit}", ylabel=f"predicted{unit}")
            low, high = axes.dataLim.min.min(), axes.dataLim.max.max()
            margin = 0.05 * (high - low) or 1.0
            limits = (low - margin, high + margin)
            axes.plot(limits, limits, color="0.4", linewidth=0.8, zorder=0)
            axes.set(xlim=limits, ylim=limits, aspect="equal")
            axes.legend(loc="upper left", frameon=False, handletextpad=0.1, fontsize=8)
        figure.savefig(path, dpi=200)


def _panels(evaluation: Evaluation) -> dict[str, tuple[str, np.ndarray, np.ndarray, str]]:
    """Title -> unit, reference, prediction, RMSE with its unit."""
    overall = errors(evaluation)[0]
    panels = {}
    if evaluation.energy is not None:
        num_atoms = evaluation.composition.sum(axis=1)
        baseline, title = evaluation.baseline, "Energy, model's baseline removed"
        if baseline is None:
            baseline, title = np.zeros(len(num_atoms)), "Energy"
        panels[title] = (
            "eV/atom",
            (evaluation.energy - baseline) / num_atoms,
            (evaluation.predicted_energy - baseline) / num_atoms,
            f"{overall['energy RMSE (meV/atom)']:.2g} meV/atom",
        )
    if evaluation.forces is not None:
        panels["Force components"] = (
            "eV/Å",
            evaluation.forces,
            evaluation.predicted_forces,
            f"{overall['force RMSE (meV/Å)']:.3g} meV/Å",
        )
    if evaluation.stress is not None:
        panels["Stress components"] = (
            "eV/Å³",
            evaluation.stress,
            evaluation.predicted_stress,
            f"{overall['stress RMSE (meV/Å³)']:.3g} meV/Å³",
        )
    if evaluation.atomic_charges is not None:
        panels["Atomic charges"] = (
            "e",
            evaluation.atomic_charges,
            evaluation.predicted_atomic_charges,
            f"{overall['charge RMSE (me)']:.3g} me",
        )
    if evaluation.dipoles is not None:
        panels["Dipole components"] = (
            "e Å",
            evaluation.dipoles,
            evaluation.predicted_dipoles,
            f"{overall['dipole RMSE (me Å)']:.3g} me Å",
        )
    for name, other in evaluation.others.items():
        if name == BORN_CHARGE:
            error = f"{overall['Born charge RMSE (me)']:.3g} me"
            panels["Born charges"] = ("e", other.reference, other.predicted, error)
            continue
        unit = f" ({other.unit})" if other.unit else ""
        error = f"{overall[f'{name} RMSE{unit}']:.3g} {other.unit}"
        panels[name] = (other.unit, other.reference, other.predicted, error)
    return panels


def _marker(color: str, count: int) -> dict:
    """Fainter points the more there are."""
    return {
        "color": color,
        "s": 9,
        "alpha": float(np.clip(30 / np.sqrt(count), 0.1, 0.7)),
        "linewidths": 0,
    }
