"""Extended XYZ as text, for files that ASE cannot read as a whole."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase
import ase.io
from ase.stress import voigt_6_to_full_3x3_stress

ISOTOPES = {"D": 2.014, "T": 3.016}
"""Symbols of heavy hydrogen, which ASE does not know, and their masses in u."""


def split_structures(text: str) -> Iterator[str]:
    """
    :param text: of a file
    :return: the text of each structure
    :raises ValueError: where a number of atoms is expected and something else stands
    """
    lines = text.splitlines()
    start = 0
    while start < len(lines) and lines[start].strip():
        try:
            end = start + 2 + int(lines[start])
        except ValueError:
            raise ValueError(
                f"line {start + 1} should be a number of atoms, it is {lines[start]!r:.60}"
            ) from None
        yield "\n".join(lines[start:end]) + "\n"
        start = end


def symbols_column(comment: str) -> int:
    """
    :param comment: second line of a structure
    :return: number of the column of chemical symbols
    """
    properties = re.search(r'Properties="?([^\s"]+)', comment)
    names = properties.group(1).split(":") if properties else ["species"]
    position = names.index("species") if "species" in names else 0
    return sum(int(number) for number in names[2:position:3])


def isotopes(structure: str) -> dict[int, str]:
    """
    :param structure: its text
    :return: atoms called D or T
    """
    _, comment, *atoms = structure.splitlines()
    column = symbols_column(comment)
    words = [line.split()[column : column + 1] for line in atoms]
    symbols = [word[0].capitalize() if word else "" for word in words]
    return {atom: symbol for atom, symbol in enumerate(symbols) if symbol in ISOTOPES}


def as_hydrogen(structure: str) -> str:
    """
    :param structure: its text
    :return: the same with D and T called H
    """
    count, comment, *atoms = structure.splitlines()
    column = symbols_column(comment)
    for atom in isotopes(structure):
        words = atoms[atom].split()
        words[column] = "H"
        atoms[atom] = " ".join(words)
    return "\n".join([count, comment, *atoms]) + "\n"


def with_full_tensors(structure: str) -> str:
    """
    :param structure: its text
    :return: the same with a stress or virial of six numbers (xx, yy, zz, yz, xz, xy) given as the
        nine that ASE wants
    """
    count, comment, *atoms = structure.splitlines()

    def expand(match: re.Match) -> str:
        numbers = match.group(2).split()
        if len(numbers) != 6:
            return match.group(0)
        full = voigt_6_to_full_3x3_stress([float(number) for number in numbers])
        return f'{match.group(1)}="{" ".join(repr(float(x)) for x in full.flatten())}"'

    comment = re.sub(r'\b(stress|virial)="([^"]*)"', expand, comment)
    return "\n".join([count, comment, *atoms]) + "\n"


def read_one_by_one(path: str | Path, read: Callable[[str], list[ase.Atoms]]) -> list[ase.Atoms]:
    """Read a file that cannot be read as a whole.

    :param path: of the file
    :param read: mends and reads the text of a structure
    :return: its structures
    :raises ValueError: naming the first structure that cannot be read
    """
    structures: list[ase.Atoms] = []
    try:
        texts = list(split_structures(Path(path).read_text()))
    except ValueError as error:
        raise ValueError(f"ASE cannot read {path}: {error}") from error
    for index, text in enumerate(texts):
        try:
            structures += read(text)
        except Exception as error:  # of ASE, of any kind
            raise ValueError(
                f"ASE cannot read structure {index} of {path}: {_reason(error, text)}"
            ) from error
    return structures


def read_isotopes(structure: str) -> list[ase.Atoms]:
    """
    :param structure: its text
    :return: the structure, with hydrogen of the right mass in place of D and T
    """
    text = with_full_tensors(as_hydrogen(structure))
    (atoms,) = ase.io.read(io.StringIO(text), ":", format="extxyz")
    heavy = isotopes(structure)
    if heavy:
        masses = atoms.get_masses()
        masses[list(heavy)] = [ISOTOPES[symbol] for symbol in heavy.values()]
        atoms.set_masses(masses)
    return [atoms]


def _reason(error: Exception, structure: str) -> Any:
    heavy = sorted(set(isotopes(structure).values()))
    if heavy:
        return (
            f"it has atoms called {' and '.join(heavy)}. `python -m metatrain_lorem prepare` makes "
            "them hydrogen with the mass of the isotope."
        )
    return error.__cause__ or error
