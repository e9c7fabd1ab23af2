"""Errors of predictions, also per element and per total charge, as a table."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...heads.response import BORN_CHARGE
from .evaluation import Evaluation


def errors(evaluation: Evaluation) -> list[dict[str, str | int | float]]:
    """Rows of the table: all structures, each element (forces, charges), each total charge, each
    component of dipole moments and Born charges.

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
            row |= quantity.columns(chosen_atoms if quantity.per_atom else chosen_structures)
        rows.append(row)
    nobody = np.zeros(len(evaluation.symbol), dtype=bool)
    for quantity in quantities:
        for k, component in enumerate(quantity.components):
            row = {**rows[0], "group": f"{quantity.title} {component}"}
            for other in quantities:
                row |= other.columns(nobody if other.per_atom else nothing)
            row |= quantity.columns(slice(None), k)
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
    components: tuple[str, ...] = ()
    """names of those that are also told one by one"""

    @property
    def differences(self) -> np.ndarray:
        return self.factor * (self.predicted - self.reference)

    def columns(
        self, rows: np.ndarray | slice, component: int | slice = slice(None)
    ) -> dict[str, float]:
        """Errors of some structures or atoms, in all components or one."""
        differences = self.differences[rows]
        if self.components:
            differences = differences[:, component]
        unit = f" ({self.unit})" if self.unit else ""
        found = {
            f"{self.title} RMSE{unit}": _rmse(differences),
            f"{self.title} MAE{unit}": _mae(differences),
        }
        if self.components:
            reference = self.reference[rows][:, component]
            found[f"{self.title} R²"] = _r2(differences / self.factor, reference)
        return found


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
        dipoles = (x.dipoles, x.predicted_dipoles)
        found.append(_Quantity("dipole", "me Å", False, *dipoles, components=tuple("xyz")))
    for name, other in x.others.items():
        values = (other.reference, other.predicted)
        if name == BORN_CHARGE:
            # of the displacement and of the polarisation
            components = tuple(a + b for a in "xyz" for b in "xyz")
            found.append(_Quantity("Born charge", "me", True, *values, components=components))
        else:
            found.append(_Quantity(name, other.unit, other.per_atom, *values, factor=1.0))
    return found


def _rmse(differences: np.ndarray) -> float:
    known = differences[~np.isnan(differences)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else np.nan


def _mae(differences: np.ndarray) -> float:
    known = differences[~np.isnan(differences)]
    return float(np.mean(np.abs(known))) if len(known) else np.nan


def _r2(differences: np.ndarray, reference: np.ndarray) -> float:
    known = ~np.isnan(differences)
    if not known.any():
        return np.nan
    spread = np.sum((reference[known] - reference[known].mean()) ** 2)
    return float(1.0 - np.sum(differences[known] ** 2) / spread) if spread > 0.0 else np.nan


def format_table(rows: list[dict[str, str | int | float]]) -> str:
    """The rows of :func:`errors` as a Markdown table."""

    def cell(value: str | int | float, column: str) -> str:
        if isinstance(value, float) and column.endswith("R²"):
            return "" if np.isnan(value) else f"{value:.4f}"
        if isinstance(value, float):
            # targets come in all units
            small = 1e-9 < value < 0.01
            return "" if np.isnan(value) else f"{value:.2g}" if small else f"{value:.2f}"
        return str(value)

    columns = list(rows[0])
    lines = [columns] + [[cell(row[column], column) for column in columns] for row in rows]
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
