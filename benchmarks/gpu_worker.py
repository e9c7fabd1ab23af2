"""Worker process of gpu.py: works through items, each of which leaves a file. See ``main``."""

import functools
import json
import math
import statistics
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ase
import torch
from common import (
    COMPILED,
    displaced,
    measure,
    memory,
    read_task,
    rocksalt,
    structure,
    write_result,
)
from metatomic.torch import NeighborListOptions, System, systems_to_torch
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from torch_models import CHLORINE, SODIUM, new_model
from torch_training import prepare_training
from torch_worker import Evaluation, measure_energy, peak_memory, synchronize, timed
from torchpme import CoulombPotential, P3MCalculator
from training_step import write_labelled

from metatrain_lorem.electrostatics.boundaries import Vacuum
from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum
from metatrain_lorem.graph import GraphBuilder

ACCURACY = 1e-6
"""Of Coulomb sums, the default of the models."""

CUTOFF = 5.0
"""Of their real-space part, Å, likewise."""

CHANNELS = 10
"""Of charges: as many as a model with default hypers has."""

PME_NODES = 5
"""Of torch-pme's interpolation, the most it has."""

PME_SPACING = 0.36
"""Largest distance of mesh points, Å, at which torch-pme's errors are those of ours: for 512 atoms
1.6e-6 against 0.8e-6, relative to the potentials; at twice the distance 2.4e-4."""

STEP = 2e-6
"""Of finite differences, Å; strains are a tenth of it per Å. The energy has kinks where a scalar
density changes sign and small steps where a pair passes the cutoff."""

DIRECTIONS = 5
"""Along which differences are taken; the median does not see that a few cross such a place."""

STEPS = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, -8.0, 8.0, -1.0], dtype=torch.float64) / 12.0


def scaled_model(name: str, frame: ase.Atoms, folder: str) -> str:
    """Write an exported model whose long-range part matters, as after training.

    :param name: key of ``torch_models.MODELS``
    :param frame: structure for which tensor products get values around one
    :param folder: folder for its file
    :return: path of the file
    """
    # the folder of the tests has this for its own models
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from helpers.models import scale_tensor_products

    energy = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    model = new_model(name, [SODIUM, CHLORINE], energy).to(torch.float64).eval()
    scale_tensor_products(model, frame)
    path = str(Path(folder) / "scaled.pt")
    model.export().save(path)
    return path


def strained(
    evaluation: Evaluation, frame: ase.Atoms, shift: torch.Tensor, strain: torch.Tensor
) -> System:
    """
    :param evaluation: of the model
    :param frame: structure
    :param shift: of its atoms ``[atoms, 3]``, Å
    :param strain: of the structure ``[3, 3]``
    :return: the structure with its neighbour list, differentiable by both
    """
    options = {"dtype": evaluation.dtype, "device": evaluation.device}
    deformation = torch.eye(3, **options) + strain
    system = System(
        torch.tensor(frame.numbers, device=evaluation.device),
        (torch.tensor(frame.positions, **options) + shift) @ deformation,
        torch.tensor(frame.cell.array, **options) @ deformation,
        torch.tensor(frame.pbc, device=evaluation.device),
    )
    return get_system_with_neighbor_lists(system, evaluation.lists)


def gradients(evaluation: Evaluation, frame: ase.Atoms) -> dict[str, torch.Tensor]:
    """Energy, and its derivatives by positions and strain, on the host in double precision.

    :param evaluation: of the model
    :param frame: structure
    """
    options = {"dtype": evaluation.dtype, "device": evaluation.device, "requires_grad": True}
    shift = torch.zeros(len(frame), 3, **options)
    strain = torch.zeros(3, 3, **options)
    # on a GPU, what is compiled in the first calls is what counts
    for _ in range(COMPILED if evaluation.device.type == "cuda" else 1):
        energy = evaluation.energy(strained(evaluation, frame, shift, strain)).sum()
        found = [energy, *torch.autograd.grad(energy, [shift, strain])]
    names = ("energy", "forces", "stress")
    return {n: v.detach().cpu().double() for n, v in zip(names, found, strict=True)}


def agreement(task: dict) -> dict:
    """Differences from the CPU in double precision, on the device in both precisions and on the
    CPU in single; and from finite differences, see :func:`slopes`. All are relative to the norm of
    what is compared."""
    frame = structure(task["atoms"])
    with tempfile.TemporaryDirectory() as folder:
        path = scaled_model(task["model"], frame, folder)
        expected = gradients(Evaluation(path, 64, "cpu"), frame)
        double = Evaluation(path, 64, task["device"])
        found = {
            "double": gradients(double, frame),
            "single": gradients(Evaluation(path, 32, task["device"]), frame),
            "single_cpu": gradients(Evaluation(path, 32, "cpu"), frame),
        }
    result = {
        precision: {
            name: float((value - expected[name]).norm() / expected[name].norm())
            for name, value in values.items()
        }
        for precision, values in found.items()
    }
    return {**result, "differences": slopes(double, frame, found["double"])}


def slopes(
    evaluation: Evaluation, frame: ase.Atoms, exact: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Median errors of forces and stress against five-point differences of the energy along some
    random directions, relative to the norm of the gradient.

    :param evaluation: of the model in double precision
    :param frame: structure
    :param exact: its :func:`gradients`
    """
    generator = torch.Generator().manual_seed(0)
    options = {"dtype": torch.float64, "device": evaluation.device}
    none = {"forces": torch.zeros(len(frame), 3, **options), "stress": torch.zeros(3, 3, **options)}
    medians = {}
    for name, size in (("forces", 1.0), ("stress", 0.1)):
        errors = []
        for _ in range(DIRECTIONS):
            direction = torch.randn(exact[name].shape, generator=generator, dtype=torch.float64)
            energies = []
            for step in STEP * size * STEPS:
                moved = {**none, name: (step * direction).to(evaluation.device)}
                with torch.no_grad():
                    system = strained(evaluation, frame, moved["forces"], moved["stress"])
                    energies.append(float(evaluation.energy(system)))
            slope = float(WEIGHTS @ torch.tensor(energies, dtype=torch.float64)) / (STEP * size)
            difference = abs(slope - float((exact[name] * direction).sum()))
            errors.append(difference / float(exact[name].norm()))
        medians[name] = statistics.median(errors)
    return medians


@functools.lru_cache(maxsize=1)
def kept_evaluation(path: str, precision: int, device: str, atoms: int) -> Evaluation:
    """Compiled for this number of atoms, and kept until another one is asked for."""
    return Evaluation(path, precision, device)


def speed(task: dict) -> dict:
    """Times of energy and forces, see :func:`torch_worker.measure_energy`."""
    evaluation = kept_evaluation(task["path"], 32, task["device"], task["atoms"])
    return measure_energy(evaluation, {**task, "save": ""})


def launches(task: dict) -> dict:
    """Counts of one evaluation of energy and forces, see :func:`count`."""
    evaluation = kept_evaluation(task["path"], 32, task["device"], task["atoms"])
    frame = structure(task["atoms"])
    systems = [evaluation.system(displaced(frame, seed)) for seed in range(COMPILED + 1)]

    def evaluate() -> None:
        system = systems.pop()
        evaluation.forces(system, evaluation.energy(system))
        synchronize(evaluation.device)

    for _ in range(COMPILED):
        evaluate()
    return count(evaluate)


def count(work: Callable[[], None]) -> dict:
    """What the device and the host do for some work.

    :param work: function that waits for the device before it returns
    :return: numbers of kernels, of copies to host and device, of times the host waits for the
        device (without the last one), of operators on the host (those inside of others as well),
        and the seconds that kernels take
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    categories = Counter(event.get("cat") for event in events)
    kernels = [event for event in events if event.get("cat") == "kernel"]
    copies = [event["name"] for event in events if event.get("cat") == "gpu_memcpy"]
    waits = ("cudaStreamSynchronize", "cudaEventSynchronize")
    return {
        "kernels": len(kernels),
        "kernel_seconds": 1e-6 * sum(event["dur"] for event in kernels),
        "to_host": sum("DtoH" in name for name in copies),
        "to_device": sum("HtoD" in name for name in copies),
        "waits": sum(event["name"] in waits for event in events if "name" in event),
        "operators": categories["cpu_op"],
    }


def training(task: dict) -> dict:
    """Times, peak memory and counts of training steps with one batch of NaCl."""
    device = torch.device(task["device"])
    frames = [displaced(structure(task["atoms"]), seed) for seed in range(task["batch_size"])]
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data.xyz"
        write_labelled(Path(data), frames)
        step, loading = prepare_training({**task, "data": data, "batches": 1})
    before = memory("VmRSS")
    peak_memory(device, before)
    times = measure(step, task["repetitions"])
    peak = peak_memory(device, before)
    return {"times": times, "loading": loading, "bytes": peak, **count(lambda: step(0))}


def coulomb(task: dict) -> dict:
    """Times, peak memory and counts of a Coulomb sum on a mesh and its gradients by charges,
    positions and distances, with the pairs at hand: ours or torch-pme's P3M."""
    device = torch.device(task["device"])
    frame = rocksalt(task["atoms"])
    inputs, potentials = coulomb_sum(task["sum"], frame, device)

    def evaluate(call: int) -> float:
        def differentiate() -> None:
            torch.autograd.grad(potentials().square().sum(), inputs)

        return timed(differentiate, device)[1]

    before = memory("VmRSS")
    peak_memory(device, before)
    times = measure(evaluate, task["repetitions"])
    peak = peak_memory(device, before)
    return {"times": times, "bytes": peak, **count(lambda: evaluate(0))}


def coulomb_sum(
    name: str, frame: ase.Atoms, device: torch.device
) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor]]:
    """
    :param name: ``lorem`` or ``torch-pme``
    :param frame: rocksalt
    :param device: of PyTorch
    :return: what the potentials depend on, and a function that returns them, in e/Å
    """
    lists = NeighborListOptions(CUTOFF, full_list=True, strict=True)
    system = get_system_with_neighbor_lists(systems_to_torch(frame), [lists])
    builder = GraphBuilder([SODIUM, CHLORINE], lists, Vacuum(least=0.0)).to(device)
    trained = torch.tensor([torch.inf, -torch.inf], device=device)
    with torch.no_grad():
        system = system.to(device=device, dtype=torch.float32)
        graph = builder([system], torch.zeros(1, device=device), trained)
    charges = torch.randn(len(frame), CHANNELS, generator=torch.Generator().manual_seed(0))
    inputs = [charges.to(device), graph.positions.detach(), graph.distances.detach()]
    charges, positions, distances = (value.requires_grad_() for value in inputs)

    own = CoulombSum(CUTOFF, ACCURACY).to(device)
    if name == "lorem":
        own.settings = own.settings._replace(mesh_threshold=0)
        graph = graph._replace(positions=positions, distances=distances)
        return inputs, lambda: own(charges, graph)
    # it takes twice as many points as the spacing says, and a power of two
    length = float(frame.cell.lengths().max())
    points = 2 ** math.ceil(math.log2(length / PME_SPACING))
    potential = CoulombPotential(smearing=own.settings.smearing)
    spacing = 2.0 * length / (points - 2)
    peer = P3MCalculator(potential, spacing, PME_NODES, full_neighbor_list=True).to(device)
    pairs = torch.stack([graph.centers, graph.neighbors], dim=1)
    return inputs, lambda: peer(charges, graph.cells[0], positions, pairs, distances)


ITEMS = {
    "agreement": agreement,
    "speed": speed,
    "launches": launches,
    "training": training,
    "coulomb": coulomb,
}


def main() -> None:
    """Tasks have ``device``, ``errors`` (file for tracebacks) and ``items``, each with a ``kind``
    (key of ``ITEMS``), a ``file`` for the result and

    * ``agreement``: ``model`` (name), ``atoms``;
    * ``speed``: ``path`` of the model, ``atoms``, ``repetitions``, ``warm_ups``;
    * ``launches``: ``path``, ``atoms``;
    * ``training``: ``model`` (name), ``atoms``, ``batch_size``, ``repetitions``;
    * ``coulomb``: ``sum`` (``lorem`` or ``torch-pme``), ``atoms``, ``repetitions``.
    """
    task = read_task()
    warnings.simplefilter("ignore")
    torch.set_num_threads(task["threads"])
    for item in task["items"]:
        try:
            result = ITEMS[item["kind"]]({**item, "device": task["device"]})
        except Exception:
            with open(task["errors"], "a") as file:
                file.write(f"{item['name']}\n{traceback.format_exc()}\n")
            raise
        write_result(Path(item["file"]), {**item, **result})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print("{}")


if __name__ == "__main__":
    main()
