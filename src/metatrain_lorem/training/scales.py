"""Scales of targets that the baseline explains exactly."""

import logging

import metatensor.torch as mts
import torch
from metatrain.composition import CompositionModel
from metatrain.scaler import Scaler

ROUNDING = 1e-12
"""Scales below this fraction of the largest baseline are rounding errors of the fit."""


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
        scales = scaler.model.scales[name]
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
