"""Time of each stage of a model of this package, evaluated as it is (not exported)."""

import time

import numpy as np
import torch
from common import displaced, measure, structure

STAGES = {
    "radial": ["short_range.radial"],
    "density": ["short_range.density"],
    "density product": ["short_range.density_product"],
    "updates": [
        "short_range.neighbor_update",
        "short_range.norm_update",
        "long_range.update",
    ],
    "message passing": ["short_range.message_passing"],
    "charges": [
        "long_range.scalar_charge",
        "long_range.spherical_charges",
        "long_range.dispersion_coefficient",
    ],
    "Coulomb (mesh)": ["long_range.coulomb"],
    "dispersion": ["long_range.dispersion"],
    "field product": ["long_range.potential_linear", "long_range.product"],
    "charge equilibration": ["charge_equilibration"],
    "readout": ["readout"],
}
"""Modules of each stage. What belongs to none of them is the rest of the forward pass."""


class StageTimer:
    """Adds up the time inside of modules during forward passes.

    :param model: the model
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds: dict[str, float] = {}
        modules = dict(model.named_modules())
        for stage, names in STAGES.items():
            for name in names:
                if name not in modules:
                    continue
                self.seconds[stage] = 0.0
                for part in _called(modules[name]):
                    self._watch(part, stage)

    def _watch(self, module: torch.nn.Module, stage: str) -> None:
        def enter(*_) -> None:
            self.seconds[stage] -= time.perf_counter()

        def leave(*_) -> None:
            self.seconds[stage] += time.perf_counter()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


def _called(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Of containers, whose members are called by name or by methods, the modules without parts."""
    if isinstance(module, torch.nn.ModuleDict | torch.nn.ModuleList):
        return [part for part in module.modules() if next(part.children(), None) is None]
    return [module]


def measure_stages(task: dict) -> dict:
    """Median time in seconds of each stage, of the forward and of the backward pass.

    :param task: see :func:`torch_worker.main`
    """
    from torch_worker import Evaluation

    evaluation = Evaluation(task["model"], task["precision"], task["device"])
    if evaluation.device.type != "cpu":
        raise ValueError("--stages: hooks measure launches, not work, on a GPU; use a profiler")
    frame = structure(task["atoms"])
    timer = StageTimer(evaluation.model)
    rows: list[dict[str, float]] = []

    def evaluate(call: int) -> float:
        timer.seconds = dict.fromkeys(timer.seconds, 0.0)
        moved = displaced(frame, call)
        system, neighbor_list = evaluation.timed(lambda: evaluation.system(moved))
        energy, forward = evaluation.timed(lambda: evaluation.energy(system))
        backward = evaluation.timed(lambda: evaluation.forces(system, energy))[1]
        rest = forward - sum(timer.seconds.values())
        rows.append(
            {
                "neighbor list": neighbor_list,
                **timer.seconds,
                "rest": rest,
                "forward": forward,
                "backward": backward,
            }
        )
        return forward + backward

    count = len(measure(evaluate, task["repetitions"]))
    return {key: float(np.median([row[key] for row in rows[-count:]])) for key in rows[0]}
