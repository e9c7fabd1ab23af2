"""What hyperparameters cost: time and memory with one of them changed, over those of the defaults.

    python benchmarks/hypers.py
    python benchmarks/hypers.py --only "defaults" "cutoff: 4.0" --rounds 3

Energy and forces are those of an exported model in a crystal of 216 atoms, the training step is one
of two crystals of 64 atoms. Random weights, single precision, one thread; each measurement has a
process of its own. Times are those of the processor, of which the smallest counts: other work on
the machine disturbs them least.
"""

import argparse
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path

import torch
from common import describe, digits, format_table, hardware, memory
from torch_models import MODELS, Model, write_models
from torch_training import measure_training
from torch_worker import Evaluation, measure_energy

CRYSTALS = Path(__file__).parents[1] / "options" / "data" / "nacl-crystal-train.xyz"
VARIATIONS = {
    "defaults": {},
    "cutoff: 4.0": {"cutoff": 4.0},
    "cutoff: 6.0": {"cutoff": 6.0},
    "cutoff: 7.0": {"cutoff": 7.0},
    "max_degree: 3": {"max_degree": 3},
    "max_degree: 4": {"max_degree": 4},
    "num_features: 32": {"num_features": 32},
    "num_features: 64": {"num_features": 64},
    "num_features: 256": {"num_features": 256},
    "num_spherical_features: 4": {"num_spherical_features": 4},
    "num_spherical_features: 16": {"num_spherical_features": 16},
    "num_radial: 16": {"num_radial": 16},
    "long_range.enable: false": {"long_range": {"enable": False}},
    "long_range.max_degree: 0": {"long_range": {"max_degree": 0}},
    "long_range.max_degree: 1": {"long_range": {"max_degree": 1}},
    "long_range.accuracy: 1e-4": {"long_range": {"accuracy": 1e-4}},
    "charge_equilibration.enable: true": {"charge_equilibration": {"enable": True}},
    "num_message_passing: 1, scalar": {
        "num_message_passing": 1,
        "equivariant_message_passing": False,
    },
    "num_message_passing: 1": {"num_message_passing": 1},
    "model of large-periodic.yaml": {
        "num_features": 64,
        "num_radial": 16,
        "max_degree": 4,
        "long_range": {"max_degree": 1, "accuracy": 1e-5},
    },
}


def prepare(label: str) -> None:
    """Let the benchmarks see a variation as the model ``changed``, and processor time as the time.

    :param label: key of ``VARIATIONS``
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    time.perf_counter = time.process_time
    MODELS["changed"] = Model("lorem", VARIATIONS[label])


def evaluation(label: str) -> float:
    """Seconds of energy and forces of the exported model.

    :param label: key of ``VARIATIONS``
    """
    prepare(label)
    with tempfile.TemporaryDirectory() as folder:
        paths, _ = write_models(["changed"], Path(folder), "", 1, 0)
        task = {"atoms": 216, "repetitions": 8, "warm_ups": 6, "save": ""}
        return min(measure_energy(Evaluation(paths["changed"], 32, "cpu"), task)["times"])


def training(label: str) -> tuple[float, int]:
    """Seconds of a training step, and bytes that it takes beside what the process had before.

    :param label: key of ``VARIATIONS``
    """
    prepare(label)
    task = {"model": "changed", "data": str(CRYSTALS), "batch_size": 2, "batches": 1}
    before = memory("VmRSS")
    times = measure_training({**task, "repetitions": 5, "device": "cpu"})["times"]
    return min(times), memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(VARIATIONS), metavar="LINE")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    labels = arguments.only or list(VARIATIONS)
    print(describe(hardware(1)))
    times: dict[str, list[float]] = {label: [] for label in labels}
    steps: dict[str, list[float]] = {label: [] for label in labels}
    sizes: dict[str, int] = {}
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for label in labels * arguments.rounds:
            times[label].append(pool.apply(evaluation, [label]))
            step, sizes[label] = pool.apply(training, [label])
            steps[label].append(step)
    rows = []
    for label in labels:
        values = (min(times[label]), min(steps[label]), sizes[label])
        if label == labels[0]:
            first = values
        cells = [digits(values[0]), digits(values[1]), digits(values[2] / 2**20)]
        ratios = [f"{value / base:.2f}" for value, base in zip(values, first, strict=True)]
        rows.append([label, *cells, *ratios])
    header = ["", "evaluation (s)", "step (s)", "memory (MiB)", "ratios", "", ""]
    print(format_table(header, rows))


if __name__ == "__main__":
    main()
