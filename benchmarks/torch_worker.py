"""Worker process for models of metatomic and metatrain. See ``main`` for its tasks."""

import json
import time
import warnings
from collections.abc import Callable

import ase
import numpy as np
import torch
from common import displaced, measure, memory, read_task, structure
from metatomic.torch import (
    ModelEvaluationOptions,
    ModelOutput,
    System,
    load_atomistic_model,
    systems_to_torch,
)
from metatrain.utils.io import load_model
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from torch_models import extensions_folder

DTYPES = {32: torch.float32, 64: torch.float64}


class Evaluation:
    """Energy and forces of a model.

    :param path: exported model (.pt) or checkpoint (.ckpt), which is evaluated as it is
    :param precision: 32 or 64
    :param device: of PyTorch
    """

    def __init__(self, path: str, precision: int, device: str) -> None:
        self.exported = path.endswith(".pt")
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        if self.exported:
            model = load_atomistic_model(path, extensions_folder(path))
        else:
            model = load_model(path).eval()
        self.model = model.to(device=self.device, dtype=self.dtype)
        self.lists = get_requested_neighbor_lists(self.model)

    def system(self, frame: ase.Atoms) -> System:
        """The structure with its neighbour list; forces are derivatives to its positions."""
        bare = systems_to_torch(frame, dtype=self.dtype).to(device=self.device)
        positions = bare.positions.requires_grad_(True)
        system = System(bare.types, positions, bare.cell, bare.pbc)
        return get_system_with_neighbor_lists(system, self.lists)

    def energy(self, system: System) -> torch.Tensor:
        outputs = {"energy": ModelOutput(unit="eV", sample_kind="system")}
        if self.exported:
            options = ModelEvaluationOptions(length_unit="angstrom", outputs=outputs)
            results = self.model([system], options, check_consistency=False)
        else:
            results = self.model([system], outputs)
        return results["energy"].block().values

    def forces(self, system: System, energy: torch.Tensor) -> torch.Tensor:
        return -torch.autograd.grad(energy.sum(), system.positions)[0]

    def timed(self, work: Callable):
        """See :func:`timed`."""
        return timed(work, self.device)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable, device: torch.device):
    """
    :param work: what to do
    :param device: where
    :return: its result and its time in seconds
    """
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start


def peak_memory(device: torch.device, before: int) -> int:
    """Largest memory since the process began, or on a GPU since the last call, bytes.

    :param device: where
    :param before: memory of the process that does not count, if it is the CPU
    """
    if device.type != "cuda":
        return memory("VmHWM") - before
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def measure_energy(evaluation: Evaluation, task: dict) -> dict:
    """Times of energy and forces, and of the neighbour list, and peak memory.

    :param evaluation: of the model
    :param task: see :func:`main`
    """
    frame = structure(task["atoms"])
    lists: list[float] = []
    evaluation.system(displaced(frame, 0))
    before = memory("VmRSS")
    peak_memory(evaluation.device, before)

    def evaluate(call: int) -> float:
        # other positions each time, so that nothing of the last call can be kept
        moved = displaced(frame, call)
        system, seconds = evaluation.timed(lambda: evaluation.system(moved))
        lists.append(seconds)
        return evaluation.timed(lambda: evaluation.forces(system, evaluation.energy(system)))[1]

    times = measure(evaluate, task["repetitions"], task["warm_ups"])
    peak = peak_memory(evaluation.device, before)
    if task["save"]:
        system = evaluation.system(frame)
        energy = evaluation.energy(system)
        forces = evaluation.forces(system, energy)
        np.savez(task["save"], energy=energy.item(), forces=forces.cpu().numpy())
    return {"times": times, "neighbor_list": float(np.median(lists)), "bytes": peak}


def main() -> None:
    """Tasks, by ``task``, all with ``device``, and all but the last with ``model`` (file),
    ``atoms`` and ``precision``:

    * ``energy``: ``repetitions``, ``warm_ups``, ``save`` (file for energy and forces, or empty);
    * ``stages``: ``repetitions``; see :mod:`stages`;
    * ``roofline``: ``repetitions``; see :mod:`roofline`;
    * ``training``: ``model`` (name), ``data`` (file), ``batch_size``, ``batches``,
      ``repetitions``; see :mod:`torch_training`.
    """
    task = read_task()
    warnings.simplefilter("ignore")
    torch.set_num_threads(task["threads"])
    if task["task"] == "stages":
        from stages import measure_stages

        result = measure_stages(task)
    elif task["task"] == "roofline":
        from roofline import measure_roofline

        result = measure_roofline(task)
    elif task["task"] == "training":
        from torch_training import measure_training

        result = measure_training(task)
    else:
        evaluation = Evaluation(task["model"], task["precision"], task["device"])
        result = measure_energy(evaluation, task)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
