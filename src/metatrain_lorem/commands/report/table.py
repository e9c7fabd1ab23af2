"""Errors of predictions, also per element and per total charge, as a table."""

import csv
from pathlib import Path

import numpy as np

from .evaluation import Evaluation


def errors(evaluation: Evaluation) -> list[dict[str, str | int | float]]:
    """Rows of the table: all structures, each element (forces, charges), each total charge.

    :return: one dictionary per row, column -> value, with the same columns in all rows: those that
        the evaluation has; missing (NaN) labels are left out
    """
    columns = _columns(evaluation)
    everything = np.ones(len(evaluation.composition), dtype=bool)
    # an energy or a dipole moment cannot be split between the elements of a structure
    nothing = np.zeros(len(evaluation.composition), dtype=bool)
    groups = [("all", everything, everything[evaluation.structure])]
    for element in evaluation.elements:
        groups.append((element, nothing, evaluation.symbol == element))
    for charge in np.unique(evaluation.charge[~np.isnan(evaluation.charge)]):
        chosen = evaluation.charge == charge
        groups.append((f"charge {charge:+g}", chosen, chosen[evaluation.structure]))

    rows = []
    for name, chosen_structures, chosen_atoms in groups:
        row: dict[str, str | int | float] = {
            "group": name,
            "structures": len(np.unique(evaluation.structure[chosen_atoms])),
            "atoms": int(chosen_atoms.sum()),
        }
        for title, unit, per_atom, differences in columns:
            chosen = differences[chosen_atoms if per_atom else chosen_structures]
            unit = f" ({unit})" if unit else ""
            row[f"{title} RMSE{unit}"] = _rmse(chosen)
            row[f"{title} MAE{unit}"] = _mae(chosen)
        rows.append(row)
    return rows


def _columns(evaluation: Evaluation) -> list[tuple[str, str, bool, np.ndarray]]:
    """Title, unit, whether per atom or per structure, differences of predictions and labels."""
    columns = []
    if evaluation.energy is not None:
        error = (evaluation.predicted_energy - evaluation.energy) / evaluation.composition.sum(1)
        columns.append(("energy", "meV/atom", False, 1e3 * error))
    if evaluation.forces is not None:
        error = evaluation.predicted_forces - evaluation.forces
        columns.append(("force", "meV/Å", True, 1e3 * error))
    if evaluation.stress is not None:
        error = evaluation.predicted_stress - evaluation.stress
        columns.append(("stress", "meV/Å³", False, 1e3 * error))
    if evaluation.atomic_charges is not None:
        error = evaluation.predicted_atomic_charges - evaluation.atomic_charges
        columns.append(("charge", "me", True, 1e3 * error))
    if evaluation.dipoles is not None:
        error = evaluation.predicted_dipoles - evaluation.dipoles
        columns.append(("dipole", "me Å", False, 1e3 * error))
    for name, other in evaluation.others.items():
        columns.append((name, other.unit, other.per_atom, other.predicted - other.reference))
    return columns


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
            # targets come in all units
            small = 1e-9 < value < 0.01
            return "" if np.isnan(value) else f"{value:.2g}" if small else f"{value:.2f}"
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
