"""Scales of energies with forces, and of targets that the baseline explains exactly."""

import logging

import metatensor.torch as mts
import torch
from metatomic.torch import unit_conversion_factor
from metatrain.composition import CompositionModel
from metatrain.scaler import Scaler

ROUNDING = 1e-12
"""Scales below this fraction of the largest baseline are rounding errors of the fit."""


def add_forces(
    scaler: Scaler, forces: dict[str, float], new: list[str], length_unit: str
) -> dict[str, float]:
    """Let forces enter the scales of energies.

    Energies per atom of one composition differ little where forces are large, those of liquids by
    0.003 eV where forces are 0.8 eV/Å. A network that starts with outputs and slopes of one size
    would have to grow by what lies between. The new scale is the root of the sum of both squares,
    with forces times 1 Å.

    :param scaler: fitted scaler, changed in place
    :param forces: mean square of their components, by target
    :param new: targets whose scales have been fitted, not kept
    :param length_unit: of the data
    :return: what energies have of the square of each scale
    """
    angstrom, parts = unit_conversion_factor("angstrom", length_unit or "angstrom"), {}
    for name, square in forces.items():
        force = square**0.5 * angstrom
        part = scaler.model.per_target_scales[name]
        before = float(part.block().values.mean())
        if name in new:
            for block in part.blocks():
                block.values[:] = torch.sqrt(block.values**2 + force**2)
            _store(scaler, name)
        scale = float(part.block().values.mean())
        logging.info(
            f"Scale of '{name}': {scale:.3g}, of energies ({before:.3g}) and of forces "
            f"({force:.3g} at 1 Å)"
            if name in new
            else f"Scale of '{name}': {scale:.3g}, as it was before"
        )
        parts[name] = max(1.0 - (force / scale) ** 2, 0.0)
    return parts


def replace_zero_scales(scaler: Scaler, baseline: CompositionModel) -> None:
    """Set scales by which no label can be divided to one, and log whose they were.

    They are zero, for all elements or for one, where the baseline leaves nothing of the training
    labels, or where these are zero.

    :param scaler: fitted scaler, changed in place
    :param baseline: fitted composition model
    """
    for name in scaler.dataset_info.targets:
        parts = [scaler.model.per_target_scales[name], scaler.model.per_property_scales[name]]
        smallest = ROUNDING * _largest(baseline, name)
        replaced = 0
        for part, limit in zip(parts, [smallest, 0.0], strict=True):
            for block in part.blocks():
                useless = ~(torch.isfinite(block.values) & (block.values.abs() > limit))
                block.values[useless] = 1.0
                replaced += int(useless.sum())
        if replaced == 0:
            continue
        logging.info(
            f"Target '{name}': the baseline leaves nothing of the training labels of at least one "
            "element or component, which therefore get the scale 1 instead of 0"
        )
        _store(scaler, name)


def _store(scaler: Scaler, name: str) -> None:
    """Make scales of their parts, for the scaler and for what it is loaded from.

    :param scaler: whose scales per target or per property have changed
    :param name: of the target
    """
    scales = scaler.model.scales[name]
    parts = [scaler.model.per_target_scales[name], scaler.model.per_property_scales[name]]
    for key, block in scales.items():
        block.values[:] = parts[0].block(key).values * parts[1].block(key).values
    # the model reloads its scales from these buffers
    for kind, part in zip(("", "_per_target", "_per_property"), (scales, *parts), strict=True):
        buffer = mts.save_buffer(mts.make_contiguous(part.to("cpu", torch.float64)))
        scaler.register_buffer(f"{name}{kind}_scaler_buffer", buffer.to(scales.device))


def _largest(baseline: CompositionModel, name: str) -> float:
    """Largest baseline of a target, zero if it has none."""
    if name not in baseline.model.weights:
        return 0.0
    return max(float(block.values.abs().max()) for block in baseline.model.weights[name].blocks())
