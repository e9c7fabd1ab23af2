"""Labels of a test set, one array per structure, NaN where there are none."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import ase
import ase.stress
import numpy as np

logger = logging.getLogger(__name__)


@dataclass
class Keys:
    """Names of the labels in a file."""

    energy: str = "energy"
    """eV"""
    forces: str = "forces"
    """eV/Å"""
    stress: str = "stress"
    """eV/Å³"""
    outputs: dict[str, str] = field(default_factory=dict)
    """of other outputs, where they differ from those in :meth:`of`"""

    def of(self, output: str) -> str:
        """
        :param output: of the model
        :return: name of its labels
        """
        default = "atomic_charge" if output == "charge" else output.removeprefix("mtt::")
        return self.outputs.get(output, default)


def energies(structures: list[ase.Atoms], path: str, key: str) -> np.ndarray:
    """
    :param structures: of the test set
    :param path: its file
    :param key: name of the energies
    :return: ``[structures]``, eV
    :raises ValueError: for labels of another shape, and a key that was given but is nowhere
    """
    known = [atoms.info for atoms in structures]
    _report_missing(known, path, "--energy-key", key, Keys.energy)
    values = np.full(len(structures), np.nan)
    for index, labels in enumerate(known):
        label = np.asarray(labels.get(key, np.nan))
        if label.dtype.kind not in "iuf" or label.size != 1:
            raise ValueError(f"{path}: structure {index}: {key!r} is not one number")
        values[index] = label.item()
    refuse_infinite(values, path, key)
    if any(key in labels for labels in known) and np.isnan(values).all():
        logger.warning("%s: all energies %r are NaN", path, key)
    return values


def forces(structures: list[ase.Atoms], path: str, key: str) -> list[np.ndarray]:
    """
    :param structures: of the test set
    :param path: its file
    :param key: name of the forces
    :return: ``[atoms, 3]``, eV/Å
    :raises ValueError: for labels of another shape, and a key that was given but is nowhere
    """
    known = [atoms.arrays for atoms in structures]
    _report_missing(known, path, "--forces-key", key, Keys.forces)
    values = []
    for index, labels in enumerate(known):
        missing = np.full((len(structures[index]), 3), np.nan)
        label = np.asarray(labels.get(key, missing))
        if label.dtype.kind not in "iuf" or label.shape != missing.shape:
            raise ValueError(f"{path}: structure {index}: {key!r} is not three numbers per atom")
        values.append(label.astype(float))
    refuse_infinite(values, path, key)
    if any(key in labels for labels in known) and all(np.isnan(x).all() for x in values):
        logger.warning("%s: all forces %r are NaN", path, key)
    return values


def _report_missing(
    known: list[dict[str, np.ndarray]], path: str, option: str, key: str, default: str
) -> None:
    """
    :param known: labels of each structure
    :param path: their file
    :param option: of the command line, which the key is from
    :param key: name of the labels that are wanted
    :param default: what it is if the option is not given
    :raises ValueError: for a key that was given but is nowhere
    """
    missing = [index for index, labels in enumerate(known) if key not in labels]
    if not missing:
        return
    others = ", ".join(known[missing[0]]) or "nothing"
    text = f"{path}: structure {missing[0]} has no {key!r}, only: {others}"
    if len(missing) == len(known) and key != default:
        raise ValueError(f"{text}; name the right one with {option}")
    logger.warning(
        "%s; %d of %d structures have none and are left out (%s names another key)",
        *(text, len(missing), len(known), option),
    )


def total_charges(structures: list[ase.Atoms]) -> list[float]:
    """
    :param structures: of the test set
    :return: total charges in e
    """
    return [float(atoms.info.get("charge", np.nan)) for atoms in structures]


def atomic_charges(structures: list[ase.Atoms], path: str, key: str) -> list[np.ndarray]:
    """
    :param structures: of the test set
    :param path: its file
    :param key: name of the charges
    :return: ``[atoms, 1]``, e
    :raises ValueError: for labels of another shape
    """
    charges = []
    for index, atoms in enumerate(structures):
        values = np.asarray(atoms.arrays.get(key, np.full(len(atoms), np.nan)))
        if values.dtype.kind not in "iuf" or values.size != len(atoms):
            raise ValueError(f"{path}: structure {index}: {key!r} is not one number per atom")
        charges.append(values.astype(float).reshape(-1, 1))
    return charges


def dipoles(structures: list[ase.Atoms], path: str, key: str) -> list[np.ndarray]:
    """Those of periodic structures depend on the choice of the cell and count as missing.

    :param structures: of the test set
    :param path: its file
    :param key: name of the dipole moments
    :return: ``[1, 3]``, e Å
    :raises ValueError: for labels of another shape
    """
    missing = np.full(3, np.nan)
    values = []
    for index, atoms in enumerate(structures):
        dipole = np.asarray(missing if atoms.pbc.any() else atoms.info.get(key, missing))
        if dipole.dtype.kind not in "iuf" or dipole.shape != (3,):
            raise ValueError(f"{path}: structure {index}: {key!r} is not three numbers")
        values.append(dipole.astype(float)[None])
    return values


def stresses(structures: list[ase.Atoms], path: str, key: str) -> list[np.ndarray]:
    """Those of structures that are not periodic in three directions mean nothing and count as
    missing.

    :param structures: of the test set
    :param path: its file
    :param key: name of the stress: a matrix, its nine numbers, or six in the order of Voigt
    :return: ``[1, 9]``, eV/Å³
    :raises ValueError: for labels of another shape
    """
    missing = np.full(9, np.nan)
    values = []
    for index, atoms in enumerate(structures):
        stress = np.asarray(missing if not atoms.pbc.all() else atoms.info.get(key, missing))
        if stress.dtype.kind not in "iuf" or stress.size not in (6, 9):
            raise ValueError(f"{path}: structure {index}: {key!r} is not a matrix, nor six numbers")
        if stress.size == 6:
            stress = ase.stress.voigt_6_to_full_3x3_stress(stress.flatten())
        values.append(stress.astype(float).reshape(1, 9))
    return values


def others(structures: list[ase.Atoms], path: str, key: str) -> tuple[list[np.ndarray], bool]:
    """
    :param structures: of the test set
    :param path: its file
    :param key: name of the labels of some target
    :return: ``[atoms, components]``, or ``[1, components]`` if there is one label per structure;
        and whether they are those of atoms
    :raises ValueError: for labels that are not numbers, or not as many for all structures
    """
    per_atom = any(key in atoms.arrays for atoms in structures)
    values: list[np.ndarray] = []
    for index, atoms in enumerate(structures):
        label = np.asarray((atoms.arrays if per_atom else atoms.info).get(key, np.nan))
        if label.dtype.kind not in "iuf":
            raise ValueError(f"{path}: structure {index}: {key!r} is not a number, nor several")
        rows = len(atoms) if per_atom else 1
        if label.ndim == 0:
            label = np.full(rows, label)
        values.append(label.astype(float).reshape(rows, -1))
    sizes = {x.shape[1] for x in values if not np.isnan(x).all()}
    if len(sizes) > 1:
        raise ValueError(f"{path}: {key!r} has {sorted(sizes)} numbers, depending on the structure")
    size = max(sizes, default=1)
    return [x if x.shape[1] == size else np.full((len(x), size), np.nan) for x in values], per_atom


def refuse_infinite(values: Iterable[np.ndarray], path: str, key: str) -> None:
    """
    :param values: labels of each structure
    :param path: their file
    :param key: their name
    :raises ValueError: for an infinite label, as in training
    """
    for index, labels in enumerate(values):
        if np.isinf(labels).any():
            raise ValueError(
                f"{path}: structure {index}: {key!r} is infinite. Correct it, or set it to NaN to "
                "mark it as missing"
            )
