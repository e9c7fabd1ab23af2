"""A section of data files in the options: its structures checked, gaps in gradients filled."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from metatrain.utils.data.readers.readers import DEFAULT_READER
from metatrain.utils.data.target_info import get_generic_target_info
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset

from ..blocks.charge_equilibration import covalent_radius

Frames = list[ase.Atoms]

GRADIENTS = {"forces": "positions", "stress": "strain", "virial": "strain"}
"""What options files call the gradients of an energy, and what metatrain does."""


@dataclass
class Section:
    """One section of files in the options."""

    split: str  # training, validation, test or evaluation
    number: int | None  # among several of the split
    written: Any  # options as written, before metatrain adds defaults
    path: str = ""  # of the structures
    dataset: Dataset | None = None
    charges: dict[int, float] = field(default_factory=dict)
    """total charges other than zero in the file that the options do not ask for"""

    def __str__(self) -> str:
        """As messages call it; sets count from 0, as in metatrain's log."""
        number = "" if self.number is None else f" {self.number}"
        return f"the {self.split} set{number} ({self.path})"


class SectionCheck:
    """Checks the structures of a section of files, and fills gaps in gradients with NaN.

    :param section: which one
    :param options: its options with defaults, left as they are
    :param read: reads files
    :param trained: of validation and test sets, gradients of each target that training sets have
    """

    def __init__(
        self,
        section: Section,
        options: DictConfig,
        read: Callable[[str], Frames],
        trained: dict[str, set[str]] | None,
    ) -> None:
        self.section = section
        self.read = read
        self.trained = trained
        self.path = options["systems"]["read_from"]
        self.frames = read(self.path)
        # interpolations need the parents: resolve before the copy has none
        self.options = OmegaConf.create(OmegaConf.to_container(options, resolve=True))

    def run(self) -> DictConfig:
        """
        :return: options for metatrain's reader
        :raises ValueError: for data that cannot be used
        """
        for kind in ("targets", "extra_data"):
            for name, options in self.options.get(kind, {}).items():
                if not uses_ase(options):
                    continue
                self.check_values(name, options)
                if kind == "targets" and is_energy(options):
                    for gradient in GRADIENTS:
                        self.check_gradient(name, options, gradient)
        if "charge" not in self.options.get("extra_data", {}):
            self.section.charges = dict(_given_charges(self.frames))
        return self.options

    def check_elements(self, equilibrated: bool) -> None:
        """Ghost atoms, and elements that cannot have charges.

        :param equilibrated: whether the options ask for charge equilibration
        :raises ValueError: for elements for which there is none
        """
        ghosts = []
        for index, frame in enumerate(self.frames):
            for atomic_type in sorted(set(frame.numbers.tolist())) if equilibrated else ():
                try:
                    covalent_radius(atomic_type)
                except ValueError as error:
                    raise ValueError(
                        f"S{self.where(index, self.path)[1:]}: {error}. Remove such atoms "
                        "(0 is a ghost, X), or train without charge equilibration."
                    ) from None
            if (frame.numbers == 0).any():
                ghosts.append(index)
        if ghosts:
            logging.warning(
                f"{len(ghosts)} structures of {self.section} have ghost atoms X (first: structure "
                f"{ghosts[0]}), which count as an element of their own"
            )

    def where(self, index: int, path: str) -> str:
        path = "" if path == self.path else f" in {path}"
        return f"structure {index} of {self.section}{path}"

    def structures_of(self, path: str, per_atom: bool) -> Frames:
        """Structures of a file of labels, which must be those of the section."""
        frames = self.read(path)
        if len(frames) != len(self.frames):
            raise ValueError(
                f"{path} has {len(frames)} structures, {self.section} has {len(self.frames)}: "
                "labels must be those of the structures, in their order."
            )
        if per_atom:
            for index, (other, frame) in enumerate(zip(frames, self.frames, strict=True)):
                if not np.array_equal(other.numbers, frame.numbers):
                    raise ValueError(
                        f"{self.where(index, path)} has the atoms {_formula(other)}, that of "
                        f"{self.path} has {_formula(frame)}: labels must be those of the "
                        "structures, atom by atom."
                    )
        return frames

    def check_values(self, name: str, options: DictConfig) -> None:
        """Labels or extra data that are no numbers, or not as many as they should be."""
        path, key = options["read_from"], options["key"]
        info = get_generic_target_info(name, options)
        blocks = info.layout.blocks()
        per_atom = info.sample_kind == "atom"
        frames = self.structures_of(path, per_atom)
        for index, frame in enumerate(frames):
            place = frame.arrays if per_atom else frame.info
            if key not in place:
                continue  # metatrain says so
            values = np.asarray(place[key])
            if values.dtype.kind not in "iufb":
                raise ValueError(
                    f"'{key}' of {self.where(index, path)} is {place[key]!r:.60}, which is no "
                    f"number. '{name}' is read from it: correct it, or give NaN if it is unknown."
                )
            size = blocks[0].values[0:1].shape[1:].numel() * (len(frame) if per_atom else 1)
            if len(blocks) == 1 and values.size != size:
                raise ValueError(
                    f"'{key}' of {self.where(index, path)} has {values.size} numbers where "
                    f"'{name}' has {size}: correct the file, or `key`, `type`, `sample_kind` or "
                    "`num_subtargets` in the options."
                )

    def check_gradient(self, name: str, options: DictConfig, gradient: str) -> None:
        """Fill gaps in the forces, stress or virial of an energy; refuse what cannot be used."""
        asked = options[gradient]
        if not asked or not uses_ase(asked):
            return
        if self.trained is not None and GRADIENTS[gradient] not in self.trained.get(name, ()):
            options[gradient] = False
            return
        path, key = asked["read_from"], asked["key"]
        frames = self.structures_of(path, per_atom=gradient == "forces")
        missing = []
        for index, frame in enumerate(frames):
            where = f"'{key}' of {self.where(index, path)}"
            if gradient == "stress":
                _check_volume(frame, key, where)
            if _has(frame, gradient, key):
                _check_shape(frame, gradient, key, where)
            else:
                missing.append(index)
        by_name = _asked_by_name(self.section.written, name, gradient)
        evaluation = self.section.split == "evaluation"
        # errors of some structures are of use, training on some may be a mistake
        if missing and by_name and not (evaluation and len(missing) < len(frames)):
            raise ValueError(
                f"The options ask for {gradient} ({name}), but {self.where(missing[0], path)} and "
                f"{len(missing) - 1} other structures have no '{key}' (or a stress without a "
                f"cell). Correct the key, give NaN where it is unknown, or set `{gradient}: off`."
            )
        if len(missing) == len(frames):
            # metatrain asks for forces and stress unless told not to
            options[gradient] = False
            logging.log(
                logging.WARNING if gradient == "forces" else logging.INFO,
                f"No {gradient} found in {self.section}: no structure has '{key}'",
            )
            return
        for index in missing:
            _fill(frames[index], gradient, key)
        if missing:
            logging.warning(
                f"{len(missing)} of {len(frames)} structures of {self.section} have no {gradient} "
                f"(first: structure {missing[0]}, no '{key}'): left out of the "
                + ("errors" if evaluation else "loss")
            )


def is_energy(options: DictConfig) -> bool:
    """
    :param options: of a target, with defaults
    :return: whether metatrain reads gradients for it
    """
    return (
        options["quantity"] == "energy"
        and options["sample_kind"] == "system"
        and options["num_subtargets"] == 1
        and options["type"] == "scalar"
    )


def uses_ase(options: DictConfig) -> bool:
    """
    :param options: of a file, with defaults
    :return: whether metatrain reads it with ASE
    """
    reader = options["reader"]
    if reader is None:
        reader = DEFAULT_READER.get(Path(options["read_from"]).suffix)
    return reader == "ase"


def _asked_by_name(written: Any, target: str, gradient: str) -> bool:
    """Whether options ask for a gradient, which they otherwise get if the data have it."""
    section = written.get("targets", {}).get(target) if isinstance(written, DictConfig) else None
    value = section.get(gradient) if isinstance(section, DictConfig) else None
    if isinstance(value, DictConfig):
        # metatrain writes its defaults in full into options_restart.yaml
        return len(value) < 3 or value["key"] != gradient
    return bool(value)


def _place(frame: ase.Atoms, gradient: str) -> dict[str, Any]:
    return frame.arrays if gradient == "forces" else frame.info


def _has(frame: ase.Atoms, gradient: str, key: str) -> bool:
    place = _place(frame, gradient)
    if key not in place:
        return False
    return not (gradient == "stress" and frame.cell.volume == 0 and not np.any(place[key]))


def _fill(frame: ase.Atoms, gradient: str, key: str) -> None:
    shape = (len(frame), 3) if gradient == "forces" else (3, 3)
    _place(frame, gradient)[key] = np.full(shape, np.nan)


def _check_volume(frame: ase.Atoms, key: str, where: str) -> None:
    """A structure without a cell has no stress: zeros stand for that, other numbers are wrong."""
    values = np.asarray(frame.info.get(key, 0.0))
    if frame.cell.volume == 0 and values.dtype.kind in "iuf" and np.nan_to_num(values).any():
        raise ValueError(f"{where} is not zero, but its cell spans no volume: correct one of them.")


def _check_shape(frame: ase.Atoms, gradient: str, key: str, where: str) -> None:
    place = _place(frame, gradient)
    values = np.asarray(place[key])
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{where} is {place[key]!r:.60}, which are no numbers: correct it.")
    expected = [(len(frame), 3)] if gradient == "forces" else [(3, 3), (9,), (6,)]
    if values.shape not in expected:
        raise ValueError(
            f"{where} has the shape {values.shape}: it must be "
            + ("three numbers of each atom." if gradient == "forces" else "9 or 6 numbers.")
        )
    if values.shape == (6,):
        place[key] = voigt_6_to_full_3x3_stress(values)


def _given_charges(frames: Frames) -> Iterator[tuple[int, float]]:
    for index, frame in enumerate(frames):
        charge = frame.info.get("charge", frame.info.get("total_charge"))
        if isinstance(charge, (int, float, np.number)) and charge != 0 and not np.isnan(charge):
            yield index, float(charge)


def _formula(frame: ase.Atoms) -> str:
    return frame.get_chemical_formula(mode="hill")
