"""``prepare``: names of charges, dipoles and Born charges for metatrain, and checks of the values.

ASE moves ``charges`` and ``dipole`` of an extended XYZ file into a calculator, where metatrain's
reader looks for energy, forces and stress only.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.data import atomic_masses

from ..extxyz import read_isotopes, read_one_by_one
from .prepare_summary import Summary

BORN_CHARGES = ("born_effective_charge", "bec", "born_charges", "apt")
"""Names of Born charges in files; the first is what they become."""

ASE_BORN_CHARGES = "born_effective_charges"
"""ASE's own name of them."""

ROUNDING_LIMIT = 0.1
"""Largest distance in e of a sum of atomic charges from the integer that is taken for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    :param parser: of the command line
    """
    parser.description = (
        "Rename what ASE hides from metatrain: charges and initial_charges become the "
        "column atomic_charge, dipole becomes dipole_moment, total_charge becomes charge, bec, "
        "born_charges or apt becomes born_effective_charge; D and T become H with the mass of the "
        "isotope. Everything else stays. Dipole moments of periodic structures are left out."
    )
    parser.add_argument("input", help="structures, e.g. xyz (charges in e, dipoles in e Å)")
    parser.add_argument("output", help="file to write (.xyz)")
    parser.add_argument(
        "--total-charge-from-sum",
        action="store_true",
        help="where there is no total charge, take the rounded sum of atomic charges",
    )
    parser.add_argument(
        "--dipole-origin",
        choices=("center-of-mass", "coordinates"),
        default="center-of-mass",
        help="point that the dipole moments in the file refer to; from the origin of the "
        "coordinates they are moved to the centre of mass (default: %(default)s)",
    )
    parser.add_argument(
        "--born-charge-order",
        choices=("displacement-first", "polarization-first"),
        default="displacement-first",
        help="order of the nine numbers of a Born charge in the file: the polarisation along x, y, "
        "z for a displacement along x, then for one along y, z; or the transpose, which is turned "
        "into the former (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the file with other names and print what was found.

    :param arguments: as :func:`add_arguments` names them
    :raises ValueError: as :func:`prepare_file`
    """
    summary = prepare_file(
        arguments.input,
        arguments.output,
        total_charge_from_sum=arguments.total_charge_from_sum,
        dipoles_about_origin=arguments.dipole_origin == "coordinates",
        polarization_first=arguments.born_charge_order == "polarization-first",
    )
    print(summary)


def prepare_file(
    source: str | Path,
    destination: str | Path,
    total_charge_from_sum: bool = False,
    dipoles_about_origin: bool = False,
    polarization_first: bool = False,
) -> Summary:
    """Write the structures of a file as :func:`prepare` names them.

    ASE writes numbers of atoms (positions, forces, charges) with eight decimals.

    :param source: file that ASE can read
    :param destination: file to write, extended XYZ
    :param total_charge_from_sum: see :func:`prepare`
    :param dipoles_about_origin: see :func:`prepare`
    :param polarization_first: see :func:`prepare`
    :raises ValueError: if the file cannot be read or overwritten, and as :func:`prepare`, with the
        name of the file
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix not in (".xyz", ".extxyz"):
        raise ValueError(f"{destination}: let the name end in .xyz, or metatrain cannot read it")
    if destination.exists() and source.exists() and os.path.samefile(source, destination):
        raise ValueError(f"{destination} is the input: choose another name for the output")
    structures = _read(source)
    options = total_charge_from_sum, dipoles_about_origin, polarization_first
    try:
        summary = prepare(structures, *options)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        ase.io.write(temporary, structures, format="extxyz")
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)
    return summary


def _read(source: Path) -> list[ase.Atoms]:
    try:
        return ase.io.read(source, ":")
    except Exception as error:  # each format of ASE has its own
        if source.suffix not in (".xyz", ".extxyz") or not source.is_file():
            raise ValueError(f"ASE cannot read {source}: {error}") from error
    return read_one_by_one(source, read_isotopes)


def prepare(
    structures: list[ase.Atoms],
    total_charge_from_sum: bool = False,
    dipoles_about_origin: bool = False,
    polarization_first: bool = False,
) -> Summary:
    """Rename, in place, what metatrain could not read; everything else stays.

    Atomic charges become the column ``atomic_charge``, dipole moments ``info["dipole_moment"]``,
    total charges ``info["charge"]``, Born charges the nine columns ``born_effective_charge``, first
    the polarisation for a displacement along x; from the comment line (``info``), too.
    metatrain asks for a name in all structures: those that lack a value which others have get NaN.
    Dipole moments of periodic structures are left out.

    :param structures: as ASE reads them: charges in e, dipole moments in e Å
    :param total_charge_from_sum: take the sum of atomic charges, rounded to the nearest integer,
        as total charge where there is none
    :param dipoles_about_origin: the dipole moments of the structures refer to the origin of the
        coordinates: move them to the centre of mass (μ - Q r_com), where the model has them
    :param polarization_first: the Born charges of the structures are the transpose
    :raises ValueError: with the structure's index, if values under two names differ, are infinite
        or of another shape, or if an option cannot be followed
    """
    summary = Summary(structures=len(structures))
    summary.isotopes = sum(_num_isotopes(atoms) for atoms in structures)
    for index, atoms in enumerate(structures):
        try:
            charges = _rename_charges(atoms, summary)
            total_charge = _take_total_charge(atoms)
            if total_charge is None and total_charge_from_sum and charges is not None:
                total_charge = _rounded_sum(charges, summary)
            if total_charge is not None:
                atoms.info["charge"] = total_charge
            _rename_dipole(atoms, summary, total_charge, dipoles_about_origin)
            born = _rename_born_charges(atoms, summary, polarization_first)
        except ValueError as error:
            raise ValueError(f"structure {index} (counted from 0): {error}") from None
        summary.charges += charges is not None
        summary.total_charges += total_charge is not None
        if born is not None:
            summary.born_charges += 1
            _check_born_charges(atoms, born, index, summary)
        if charges is not None and total_charge is not None and not np.isnan(charges).any():
            summary.sums.append((index, float(charges.sum()), total_charge))
    for atoms in structures:
        if summary.charges:
            atoms.arrays.setdefault("atomic_charge", np.full(len(atoms), np.nan))
        if summary.born_charges:
            atoms.arrays.setdefault(BORN_CHARGES[0], np.full((len(atoms), 9), np.nan))
        if summary.dipoles:
            atoms.info.setdefault("dipole_moment", np.full(3, np.nan))
        if summary.total_charges:
            atoms.info.setdefault("charge", np.nan)
    return summary


def _num_isotopes(atoms: ase.Atoms) -> int:
    """Atoms of hydrogen whose mass is that of deuterium or tritium."""
    return int(((atoms.numbers == 1) & (atoms.get_masses() > 1.5)).sum())


def _rename_charges(atoms: ase.Atoms, summary: Summary) -> np.ndarray | None:
    sources = [(atoms.arrays, "atomic_charge"), (_results(atoms), "charges")]
    if np.any(atoms.arrays.get("initial_charges", 0.0)):
        sources.append((atoms.arrays, "initial_charges"))
    elif "initial_charges" in atoms.arrays:
        summary.zero_initial_charges += 1
    charges = _take(sources, (len(atoms),))
    if charges is not None:
        atoms.arrays["atomic_charge"] = charges
    return charges


def _take_total_charge(atoms: ase.Atoms) -> float | None:
    total_charge = _take([(atoms.info, "charge"), (atoms.info, "total_charge")], ())
    return None if total_charge is None else float(total_charge)


def _rename_dipole(
    atoms: ase.Atoms, summary: Summary, total_charge: float | None, about_origin: bool
) -> None:
    dipole = _take([(atoms.info, "dipole_moment"), (_results(atoms), "dipole")], (3,))
    if dipole is None:
        return
    if atoms.pbc.any():
        summary.periodic_dipoles += 1
        return
    if about_origin:
        if total_charge is None:
            raise ValueError(
                "its dipole moment cannot be moved to the centre of mass without its total charge: "
                "give it as charge=... in the comment line, or use --total-charge-from-sum"
            )
        # the model's masses, whatever masses the file holds
        masses = atomic_masses[atoms.numbers]
        dipole = dipole - total_charge * masses @ atoms.positions / masses.sum()
    atoms.info["dipole_moment"] = dipole
    summary.dipoles += 1


def _rename_born_charges(
    atoms: ase.Atoms, summary: Summary, polarization_first: bool
) -> np.ndarray | None:
    results, shape = _results(atoms), (len(atoms), 9)
    names = (*BORN_CHARGES, ASE_BORN_CHARGES)
    if ASE_BORN_CHARGES in results:
        results[ASE_BORN_CHARGES] = np.asarray(results[ASE_BORN_CHARGES]).reshape(len(atoms), -1)
    for name in names:
        if name in atoms.info and not _move_to_columns(atoms, name):
            summary.left_in_comment.append(name)
    sources = [(atoms.arrays, name) for name in names] + [(results, ASE_BORN_CHARGES)]
    prepared = BORN_CHARGES[0] in atoms.arrays
    found = any(name in place for place, name in sources)
    born = _take(sources, shape)
    if born is None:
        summary.empty_born_charges += found
        return None
    matrices = born.reshape(-1, 3, 3)
    if polarization_first:
        matrices = matrices.transpose(0, 2, 1)
        summary.transposed += 1
        summary.transposed_again += prepared
    atoms.arrays[BORN_CHARGES[0]] = matrices.reshape(-1, 9)
    return matrices


def _move_to_columns(atoms: ase.Atoms, name: str) -> bool:
    """Make columns of Born charges in the comment line.

    :return: False if there are such columns, or something else in the comment line
    """
    values, num_atoms = np.asarray(atoms.info[name]), len(atoms)
    shapes = ((num_atoms * 9,), (num_atoms, 9), (num_atoms, 3, 3))
    if name in atoms.arrays or values.dtype.kind not in "iuf" or values.shape not in shapes:
        return False
    atoms.arrays[name] = values.reshape(num_atoms, 9)
    del atoms.info[name]
    return True


def _check_born_charges(atoms: ase.Atoms, born: np.ndarray, index: int, summary: Summary) -> None:
    """The acoustic sum rule; and that of rotations, which knows the order of the indices."""
    if np.isnan(born).any():
        return
    total = atoms.info.get("charge", 0.0)
    excess = np.abs(born.sum(axis=0) - total * np.eye(3)).max()
    summary.excesses.append((index, float(excess)))
    dipole = atoms.info.get("dipole_moment")
    if dipole is None or np.isnan(dipole).any() or total != 0.0 or atoms.pbc.any():
        return
    # a molecule that turns takes its dipole moment along
    errors = []
    for matrices in (born, born.transpose(0, 2, 1)):
        # by rotations about x, y and z
        turned = np.cross(np.eye(3)[:, None], atoms.positions[None])
        change = np.einsum("gid,ida->ga", turned, matrices)
        errors.append(np.abs(change - np.cross(np.eye(3), dipole)).max())
    summary.orders += 1
    summary.other_orders += errors[1] < 0.5 * errors[0]


def _rounded_sum(charges: np.ndarray, summary: Summary) -> float | None:
    total = float(charges.sum())
    if np.isnan(total):
        return None
    if abs(total - round(total)) > ROUNDING_LIMIT:
        raise ValueError(
            f"its atomic charges sum to {total:.5g} e, further than {ROUNDING_LIMIT} e from an "
            "integer: give its total charge as charge=... in the comment line"
        )
    summary.rounded += 1
    return float(round(total))


def _results(atoms: ase.Atoms) -> dict[str, Any]:
    return {} if atoms.calc is None else atoms.calc.results


def _take(sources: list[tuple[dict[str, Any], str]], shape: tuple[int, ...]) -> np.ndarray | None:
    """Remove the value that stands under one or several names, and return it in float64.

    :return: None if there is no value, or nothing but NaN
    """
    found = {name: np.asarray(place.pop(name)) for place, name in sources if name in place}
    for name, values in found.items():
        if values.dtype.kind not in "iuf" or values.shape != shape:
            expected = f"{_by(shape)} numbers" if shape else "one number"
            if len(shape) == 2:
                expected += f" (atoms x {shape[1]})"
            # a table says less than its shape
            table = values.ndim > 1 and values.dtype.kind in "iuf"
            found_instead = _by(values.shape) if table else f"{values!r:.60}"
            raise ValueError(f"{name!r} must be {expected}, it is {found_instead}")
        if np.isinf(values).any():
            raise ValueError(f"{name!r} is infinite: correct it")
    names = list(found)
    for name in names[1:]:
        # ASE rounds columns to 1e-8
        if not np.allclose(found[name], found[names[0]], rtol=0.0, atol=1e-6, equal_nan=True):
            raise ValueError(f"{names[0]!r} and {name!r} differ: remove one of them from the file")
    if not names or np.isnan(found[names[0]]).all():
        return None
    return found[names[0]].astype(float)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
