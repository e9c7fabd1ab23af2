"""Errors of predictions, also per element and per total charge, as a table."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .evaluation import Evaluation


def errors(evaluation: Evaluation) -> list[dict[str, str | int | float]]:
    """Rows of the table: all structures, each element (forces, charges), each total charge.

    :return: one dictionary per row, column -> value, with the same columns in all rows: those that
        the evaluation has; missing (NaN) labels are left out
    """
    quantities = _quantities(evaluation)
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
        for quantity in quantities:
            chosen = quantity.differences[chosen_atoms if quantity.per_atom else chosen_structures]
            unit = f" ({quantity.unit})" if quantity.unit else ""
            row[f"{quantity.title} RMSE{unit}"] = _rmse(chosen)
            row[f"{quantity.title} MAE{unit}"] = _mae(chosen)
        rows.append(row)
    return rows


def missing_labels(evaluation: Evaluation) -> list[str]:
    """What is left out of the errors: labels that are NaN or not in the file, dipole moments of
    periodic structures and stress of others.

    :return: a phrase for each target that lacks some
    """
    phrases = []
    for quantity in _quantities(evaluation):
        missing = np.isnan(quantity.reference).reshape(len(quantity.reference), -1).any(axis=1)
        if not missing.any():
            continue
        text = f"{quantity.title} of {missing.sum()} of {len(missing)} "
        if quantity.per_atom:
            structures = len(np.unique(evaluation.structure[missing]))
            text += f"atoms (in {structures} of {len(evaluation.composition)} structures)"
        else:
            text += "structures"
        phrases.append(text)
    return phrases


@dataclass
class _Quantity:
    """Labels and predictions of one kind, NaN where there is no label."""

    title: str
    unit: str
    """of errors"""
    per_atom: bool
    reference: np.ndarray
    predicted: np.ndarray
    factor: float | np.ndarray = 1e3
    """from the unit of labels to that of errors"""

    @property
    def differences(self) -> np.ndarray:
        return self.factor * (self.predicted - self.reference)


def _quantities(evaluation: Evaluation) -> list[_Quantity]:
    x, found = evaluation, []
    if x.energy is not None:
        factor = 1e3 / x.composition.sum(1)
        energies = (x.energy, x.predicted_energy, factor)
        found.append(_Quantity("energy", "meV/atom", False, *energies))
    if x.forces is not None:
        found.append(_Quantity("force", "meV/Å", True, x.forces, x.predicted_forces))
    if x.stress is not None:
        found.append(_Quantity("stress", "meV/Å³", False, x.stress, x.predicted_stress))
    if x.atomic_charges is not None:
        charges = (x.atomic_charges, x.predicted_atomic_charges)
        found.append(_Quantity("charge", "me", True, *charges))
    if x.dipoles is not None:
        found.append(_Quantity("dipole", "me Å", False, x.dipoles, x.predicted_dipoles))
    for name, other in x.others.items():
        values = (other.reference, other.predicted, 1.0)
        found.append(_Quantity(name, other.unit, other.per_atom, *values))
    return found


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
