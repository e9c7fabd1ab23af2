"""Errors of predictions, also per element and per total charge, as a table."""

import csv
from pathlib import Path

import numpy as np

from .evaluation import Evaluation


def errors(evaluation: Evaluation) -> list[dict[str, str | int | float]]:
    """Rows of the table: all structures, each element (forces, charges), each total charge.

    :return: one dictionary per row, column -> value, with the same columns in all rows: those of
        atomic charges and dipole moments only if the evaluation has them; missing (NaN) labels are
        left out
    """
    num_atoms = evaluation.composition.sum(axis=1)
    energy_error = 1e3 * (evaluation.predicted_energy - evaluation.energy) / num_atoms
    force_error = 1e3 * (evaluation.predicted_forces - evaluation.forces)
    charge_error = _difference(evaluation.predicted_atomic_charges, evaluation.atomic_charges)
    dipole_error = _difference(evaluation.predicted_dipoles, evaluation.dipoles)

    everything = np.ones(len(num_atoms), dtype=bool)
    # an energy or a dipole moment cannot be split between the elements of a structure
    nothing = np.zeros(len(num_atoms), dtype=bool)
    groups = [("all", everything, everything[evaluation.structure])]
    for element in evaluation.elements:
        groups.append((element, nothing, evaluation.symbol == element))
    for charge in np.unique(evaluation.charge[~np.isnan(evaluation.charge)]):
        chosen = evaluation.charge == charge
        groups.append((f"charge {charge:+g}", chosen, chosen[evaluation.structure]))

    rows = []
    for name, chosen_structures, chosen_atoms in groups:
        row = {
            "group": name,
            "structures": len(np.unique(evaluation.structure[chosen_atoms])),
            "atoms": int(chosen_atoms.sum()),
            "energy RMSE (meV/atom)": _rmse(energy_error[chosen_structures]),
            "energy MAE (meV/atom)": _mae(energy_error[chosen_structures]),
            "force RMSE (meV/Å)": _rmse(force_error[chosen_atoms]),
            "force MAE (meV/Å)": _mae(force_error[chosen_atoms]),
        }
        if charge_error is not None:
            row["charge RMSE (me)"] = _rmse(charge_error[chosen_atoms])
            row["charge MAE (me)"] = _mae(charge_error[chosen_atoms])
        if dipole_error is not None:
            row["dipole RMSE (me Å)"] = _rmse(dipole_error[chosen_structures])
        rows.append(row)
    return rows


def _difference(predicted: np.ndarray | None, reference: np.ndarray | None) -> np.ndarray | None:
    """In thousandths."""
    return None if predicted is None or reference is None else 1e3 * (predicted - reference)


def _rmse(differences: np.ndarray) -> float:
    known = differences[~np.isnan(differences)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else np.nan


def _mae(differences: np.ndarray) -> float:
    known = differences[~np.isnan(differences)]
    return float(np.mean(np.abs(known))) if len(known) else np.nan


def format_table(rows: list[dict[str, str | int | float]]) -> str:
    """The rows of :func:`errors` as a Markdown table."""

    def cell(value: str | int | float) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.2f}"
        return str(value)

    columns = list(rows[0])
    lines = [columns] + [[cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(columns))]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    padded = ([text.rjust(width) for text, width in zip(x, widths, strict=True)] for x in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def write_csv(rows: list[dict[str, str | int | float]], path: str | Path) -> None:
    """The rows of :func:`errors` as comma-separated values."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
