"""Numbers so large that single precision takes digits from them which matter."""

import logging
import math
from collections import Counter
from typing import Any

from metatomic.torch import System, unit_conversion_factor
from metatrain.utils.abc import ModelInterface

from .distributed import Processes

ENERGY_DIGITS = 1e-4
"""Rounding of an energy of a structure, in eV, of which there is a warning: above 1024 eV."""

POSITION_DIGITS = 1e-4
"""Rounding of a coordinate, in Å, of which there is a warning: above 1024 Å. With the force
constants of bonds it is some meV/Å."""

LARGEST_LABEL = 1e18
"""Squares of larger numbers do not exist in single precision."""


def rounding(x: float) -> float:
    """
    :param x: any number
    :return: distance to the next larger one in single precision
    """
    return 2.0 ** (math.frexp(abs(x))[1] - 24)


class Digits:
    """Energies and coordinates of a split that single precision rounds too much.

    Labels are rounded after their baseline is subtracted, in double precision. What counts is the
    rest, which is known after the fit of the baseline only.

    :param model: the model
    :param split: ``"training"`` or ``"validation"``
    """

    def __init__(self, model: ModelInterface, split: str) -> None:
        self.split = split
        # of a target, one eV in its unit
        self.units = {
            name: unit_conversion_factor("eV", info.unit or "eV")
            for name, info in model.dataset_info.targets.items()
            if info.quantity == "energy"
            and info.sample_kind == "system"
            and info.is_scalar
            and len(info.layout.block().properties) == 1
        }
        length_unit = model.dataset_info.length_unit or "angstrom"
        self.angstrom = unit_conversion_factor("angstrom", length_unit)
        self.energies: dict[str, list[tuple[float, Counter, str]]] = {}
        self.far: list[tuple[float, str]] = []

    def add(self, fields: dict[str, Any], structure: str) -> None:
        """
        :param fields: structure and labels
        :param structure: what to call it
        """
        system: System = fields["system"]
        atoms = Counter(system.types.tolist())
        for target in self.units.keys() & fields.keys():
            energy = float(fields[target].block().values)
            self.energies.setdefault(target, []).append((energy, atoms, structure))
        largest = float(system.positions.abs().max())
        if rounding(largest) > POSITION_DIGITS * self.angstrom:
            self.far.append((largest, structure))

    def report(self, model: ModelInterface, processes: Processes) -> None:
        """Log what single precision takes away.

        :param model: with its final baselines
        :param processes: each has added its share
        """
        composition = model.additive_models[0]
        for target, unit in self.units.items():
            baseline = {}
            if target in composition.model.weights:
                values = composition.model.weights[target].block().values.flatten().tolist()
                baseline = dict(zip(composition.atomic_types, values, strict=True))
            large = []
            for energy, atoms, structure in self.energies.get(target, []):
                rest = energy - sum(baseline.get(t, 0.0) * n for t, n in atoms.items())
                if rounding(rest) > ENERGY_DIGITS * unit:
                    large.append((abs(rest), rest, energy, structure))
            large = sum(processes.gather(large), [])
            if large:
                _, rest, energy, structure = max(large)
                name = model.dataset_info.targets[target].unit
                logging.warning(
                    f"Single precision rounds {len(large)} labels '{target}' of the {self.split} "
                    f"set: the largest, {energy:.10g} {name} of {structure}, is {rest:.10g} {name} "
                    f"without its baseline, known to {rounding(rest):.2g} {name}. Let the baseline "
                    "be fitted (no `atomic_baseline`) or give energies of the same method there, "
                    "correct labels that are wrong, or set `base_precision: 64`."
                )
        far = sum(processes.gather(self.far), [])
        if far:
            largest, structure = max(far)
            name = model.dataset_info.length_unit
            logging.warning(
                f"Single precision rounds the positions of {len(far)} structures of the "
                f"{self.split} set: {structure} has a coordinate of {largest:.6g} {name}, known to "
                f"{rounding(largest):.2g} {name}. Move them to the origin, or set "
                "`base_precision: 64`."
            )
