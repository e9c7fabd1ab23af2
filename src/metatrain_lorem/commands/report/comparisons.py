"""What a report compares besides energies and forces: what model and file have in common."""

import logging
from dataclasses import dataclass, field

import ase
import numpy as np
from metatomic.torch import ModelCapabilities
from metatrain.utils.data.target_info import (
    DEPRECATED_METATOMIC_OUTPUT_NAMES,
    is_auxiliary_output,
)

from ...heads.response import POLARIZATION
from . import labels

logger = logging.getLogger(__name__)

CHARGE = "charge"
DIPOLE = "mtt::dipole_moment"
STRESS = "stress"


@dataclass
class Comparison:
    """Labels and predictions of one kind, NaN for structures without label."""

    per_atom: bool
    """whether there is a label for each atom, or one for each structure"""
    unit: str
    """of labels and predictions, empty if unknown"""
    key: str
    """name of the labels in the file"""
    references: list[np.ndarray]
    """per structure ``[atoms or 1, components]``"""
    predictions: list[np.ndarray] = field(default_factory=list)

    @property
    def reference(self) -> np.ndarray:
        """``[atoms or structures, components]``"""
        return np.concatenate(self.references)

    @property
    def predicted(self) -> np.ndarray:
        """``[atoms or structures, components]``"""
        return np.concatenate(self.predictions)


def find_comparisons(
    capabilities: ModelCapabilities,
    energy: str | None,
    structures: list[ase.Atoms],
    keys: labels.Keys,
    path: str,
) -> dict[str, Comparison]:
    """What both the model and the file have besides energies and forces.

    :param capabilities: of the model
    :param energy: its output that energies and forces come from, if there is one
    :param structures: of the test set
    :param keys: names of the labels in the file
    :param path: the file
    :return: by output, and :data:`STRESS`; without predictions yet
    :raises ValueError: for keys of outputs that the model lacks, and labels that are infinite or of
        another shape
    """
    unknown = set(keys.outputs) - set(capabilities.outputs) - {CHARGE}
    if unknown:
        known = ", ".join(capabilities.outputs)
        raise ValueError(f"the model has no output {min(unknown)!r}, only: {known}")
    found: dict[str, Comparison] = {}
    if energy is not None:
        values = labels.stresses(structures, path, keys.stress)
        stress = Comparison(False, "eV/Å³", keys.stress, values)
        if not all(np.isnan(x).all() for x in stress.references):
            found[STRESS] = stress
    dipole = dipole_output(capabilities)
    for name, output in capabilities.outputs.items():
        if not is_target(name, capabilities) or name == energy:
            continue
        key = keys.of(name)
        if name == CHARGE:
            comparison = Comparison(True, "e", key, labels.atomic_charges(structures, path, key))
        elif name == dipole:
            key = keys.outputs.get(name, keys.of(DIPOLE))
            comparison = Comparison(False, "e Å", key, labels.dipoles(structures, path, key))
        else:
            values, per_atom = labels.others(structures, path, key)
            comparison = Comparison(per_atom, output.unit, key, values)
        if all(np.isnan(x).all() for x in comparison.references):
            logger.info("%s: no %r to compare the model's %r with", path, key, name)
        else:
            found[name] = comparison
    for comparison in found.values():
        labels.refuse_infinite(comparison.references, path, comparison.key)
    return found


def dipole_output(capabilities: ModelCapabilities) -> str:
    """
    :param capabilities: of the model
    :return: output that dipole moments are compared with: where they are no target, what charges
        make
    """
    return DIPOLE if DIPOLE in capabilities.outputs else POLARIZATION


def is_target(name: str, capabilities: ModelCapabilities) -> bool:
    """
    :param name: of an output
    :param capabilities: of the model
    :return: whether it is what a model is trained for, or charges of atoms
    """
    if is_auxiliary_output(name) or name in DEPRECATED_METATOMIC_OUTPUT_NAMES:
        return False
    if name in ("mtt::atomic_charge", "charges"):
        return CHARGE not in capabilities.outputs  # the same numbers
    return not name.endswith(("_uncertainty", "_ensemble"))
