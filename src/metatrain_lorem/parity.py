"""Parity plot: predicted against reference energies and forces."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .report import Evaluation, errors

# blue and orange stay apart for colour-blind readers and in grey
COLORS = ("#d95f02", "#1f4e8c", "#4d9221")


def plot_parity(evaluations: dict[str, Evaluation], path: str | Path) -> None:
    """Two panels, energies and forces, of one or several models on the same test set.

    Energies are shown without the least-squares composition fit of the reference, which would
    hide everything else.

    :param evaluations: label -> evaluation; at most three
    :param path: image file to write
    """
    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(7.4, 3.7), layout="constrained")
        energy_axes, force_axes = figure.subplots(1, 2)
        for color, (label, evaluation) in zip(COLORS, evaluations.items(), strict=False):
            overall = errors(evaluation)[0]
            num_atoms = evaluation.composition.sum(axis=1)
            baseline = _composition_fit(evaluation)
            energy_axes.scatter(
                (evaluation.energy - baseline) / num_atoms,
                (evaluation.predicted_energy - baseline) / num_atoms,
                label=f"{label}: RMSE {overall['energy RMSE (meV/atom)']:.2g} meV/atom",
                **_marker(color, len(num_atoms)),
            )
            force_axes.scatter(
                evaluation.forces,
                evaluation.predicted_forces,
                label=f"{label}: RMSE {overall['force RMSE (meV/Å)']:.3g} meV/Å",
                **_marker(color, evaluation.forces.size),
            )
        energy_axes.set(
            title="Energy, composition fit removed",
            xlabel="reference (eV/atom)",
            ylabel="predicted (eV/atom)",
        )
        force_axes.set(
            title="Force components", xlabel="reference (eV/Å)", ylabel="predicted (eV/Å)"
        )
        for axes in (energy_axes, force_axes):
            low, high = axes.dataLim.min.min(), axes.dataLim.max.max()
            margin = 0.05 * (high - low) or 1.0
            limits = (low - margin, high + margin)
            axes.plot(limits, limits, color="0.4", linewidth=0.8, zorder=0)
            axes.set(xlim=limits, ylim=limits, aspect="equal")
            axes.legend(loc="upper left", frameon=False, handletextpad=0.1, fontsize=8)
        figure.savefig(path, dpi=200)


def _composition_fit(evaluation: Evaluation) -> np.ndarray:
    """Least-squares energy of the elements, summed per structure: [S] in eV."""
    known = ~np.isnan(evaluation.energy)
    per_element = np.linalg.lstsq(
        evaluation.composition[known].astype(float), evaluation.energy[known], rcond=None
    )[0]
    return evaluation.composition @ per_element


def _marker(color: str, count: int) -> dict:
    """Fainter points the more there are."""
    return {
        "color": color,
        "s": 9,
        "alpha": float(np.clip(30 / np.sqrt(count), 0.1, 0.7)),
        "linewidths": 0,
    }
