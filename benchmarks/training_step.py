"""Time of one training step: forward, forces, gradient of their loss, optimizer.

    python benchmarks/training_step.py --jax-python ../jax/bin/python
    python benchmarks/training_step.py --data train.xyz --batch-size 8 \\
        --models lorem-exported pet-lr pet soap-bpnn-lr

Without ``--data`` a batch is eight clusters of Na8Cl8; the file of ``--data`` needs energies and
forces. All models have default hypers, random weights, single precision, a mean squared error and
Adam. Models of metatrain are trained as its trainers do it, not as exported ones. The last columns
also count the time to make a batch in the same process, in the epochs after the first: joining, and
what else the trainers do anew each time. Neighbour lists are not; all of them keep these.
"""

import argparse
import json
import tempfile
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from common import (
    GIB,
    add_arguments,
    cluster,
    describe,
    digits,
    format_table,
    hardware,
    run_worker,
)
from torch_models import MODELS, missing, no_such_model

CLUSTERS = 8


def write_labelled(path: Path, frames: list[ase.Atoms]) -> None:
    """Structures with arbitrary energies and forces.

    :param path: file to write
    :param frames: structures
    """
    rng = np.random.default_rng(0)
    for frame in frames:
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(len(frame), 3))}
        frame.calc = SinglePointCalculator(frame, **labels)
    ase.io.write(path, frames, format="extxyz")


def measure_step(arguments: argparse.Namespace, name: str, data: Path) -> dict:
    task = {
        "task": "training",
        "model": name,
        "data": str(data),
        "batch_size": arguments.batch_size,
        "batches": arguments.batches,
        "repetitions": arguments.repetitions,
        "threads": arguments.threads,
        "device": arguments.device,
    }
    timeout, limit = arguments.timeout, arguments.limit * GIB
    if MODELS[name].architecture == "lorem-jax":
        return run_worker("jax_worker.py", task, timeout, limit, arguments.jax_python)
    return run_worker("torch_worker.py", task, timeout, limit)


def training_table(results: dict[str, list[dict]], batch_size: int) -> tuple[str, list[dict]]:
    """
    :param results: of the rounds, by model
    :param batch_size: structures per step
    :return: the table and its numbers
    """
    rows = []
    for name, rounds in results.items():
        if "failed" in rounds[-1]:
            rows.append({"model": name, "failed": rounds[-1]["failed"]})
            continue
        step = float(np.median([np.median(result["times"]) for result in rounds]))
        loading = float(np.median([result["loading"] for result in rounds]))
        rows.append({"model": name, "step": step, "loading": loading})
    first = next((row["step"] for row in rows if "step" in row), 1.0)
    cells = []
    for row in rows:
        if "failed" in row:
            cells.append([row["model"], row["failed"].split(":")[0], "", "", "", ""])
            continue
        cells.append(
            [
                row["model"],
                digits(row["step"]),
                digits(row["step"] / first),
                digits(batch_size / row["step"]),
                digits(row["loading"]),
                digits(batch_size / (row["step"] + row["loading"])),
            ]
        )
    header = ["model", "step (s)", f"/ {rows[0]['model']}", "structures/s", "batch (s)"]
    return format_table([*header, "structures/s with batch"], cells), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    default = ["lorem", "lorem-jax", "pet", "pet-lr", "soap-bpnn", "soap-bpnn-lr", "mace"]
    parser.add_argument("--models", nargs="+", default=default, metavar="MODEL")
    parser.add_argument("--data", type=Path, help="structures with energies and forces")
    parser.add_argument("--batch-size", type=int, default=CLUSTERS)
    parser.add_argument("--batches", type=int, default=4, help="first batches of the data")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="each with the models reversed")
    parser.add_argument("--json", type=Path, help="file for all results")
    arguments = parser.parse_args()
    no_such_model(arguments.models)

    machine = hardware(arguments.threads)
    print(describe(machine))
    names = []
    for name in arguments.models:
        if missing(name):
            print(f"skipped {name}: {missing(name)}")
        else:
            names.append(name)
    results: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        data = arguments.data
        if data is None:
            data = Path(temporary) / "clusters.xyz"
            write_labelled(data, [cluster(seed) for seed in range(CLUSTERS)])
        if len(ase.io.read(data, ":")) < arguments.batch_size:
            parser.error(f"{data} has fewer structures than --batch-size {arguments.batch_size}")
        for number in range(arguments.rounds):
            for name in names[:: 1 if number % 2 == 0 else -1]:
                results[name].append(measure_step(arguments, name, data))
    table, rows = training_table(results, arguments.batch_size)
    print(f"\ntraining steps of {arguments.batch_size} structures from {data.name}")
    print(table)
    if arguments.json:
        record = {"benchmark": "training_step", "hardware": machine, "results": rows}
        record["data"] = data.name
        record["batch_size"] = arguments.batch_size
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
