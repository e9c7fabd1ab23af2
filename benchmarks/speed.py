"""Energy and forces of a structure: time against the number of atoms, for models side by side.

    python benchmarks/speed.py
    python benchmarks/speed.py --atoms 16 64 216 512 --models lorem-exported lorem-jax \\
        --jax-python ../jax/bin/python --json speed.json
    python benchmarks/speed.py --atoms 1728 --models lorem lorem-exported --stages --roofline

16 atoms are a cluster of Na8Cl8, all other numbers perturbed rocksalt NaCl (multiples of 8). Each
measurement has a process of its own, in which neighbour lists and batches are made outside of the
measured time and the calls before compilers have specialised do not count. All models have the
default hypers of their architecture and random weights; those of lorem-jax are imported into ours,
and the table says how far both agree. ``plot_speed.py`` makes the page of the documentation from
the files of ``--json``.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import (
    GIB,
    add_arguments,
    describe,
    digits,
    exponent,
    format_table,
    hardware,
    number_of_atoms,
    run_worker,
)
from torch_models import MODELS, SAME_WEIGHTS, no_such_model, write_models


def measure_models(arguments: argparse.Namespace, paths: dict[str, str], folder: Path) -> list:
    """Rows of the table, one per number of atoms and model.

    :param arguments: of the command line
    :param paths: files of the models
    :param folder: for energies and forces
    """
    runs: dict[tuple[int, str], list[dict]] = {}
    stopped: dict[str, str] = {}
    try:
        for number in range(arguments.rounds):
            for atoms in sorted(arguments.atoms):
                # what runs later may find the machine hotter or busier
                for name in list(paths)[:: 1 if number % 2 == 0 else -1]:
                    if name in stopped and number == 0:
                        runs[atoms, name] = [{"failed": stopped[name]}]
                    if "failed" in runs.get((atoms, name), [{}])[-1]:
                        continue
                    result = measure_one(arguments, name, paths[name], atoms, folder)
                    runs.setdefault((atoms, name), []).append(result)
                    if "failed" in result:
                        stopped[name] = f"{result['failed'].split(':')[0]} at {atoms}"
                    print(f"  {atoms} {name}: {summary(result)}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: what has been measured follows")
        arguments.stages = arguments.roofline = False
    rows = []
    for (atoms, name), results in runs.items():
        row = {"atoms": atoms, "model": name}
        done = [result for result in results if "times" in result]
        if not done:
            rows.append({**row, "failed": results[-1]["failed"]})
            continue
        row["rounds"] = [float(np.median(result["times"])) for result in done]
        row["seconds"] = float(np.median(row["rounds"]))
        row["neighbor_list"] = float(np.median([result["neighbor_list"] for result in done]))
        row["bytes"] = max(result["bytes"] for result in done)
        rows.append(row)
    return rows


def measure_one(
    arguments: argparse.Namespace, name: str, path: str, atoms: int, folder: Path
) -> dict:
    """What a worker process measured, or why it failed.

    :param arguments: of the command line
    :param name: of the model
    :param path: of its file
    :param atoms: number of atoms
    :param folder: for energy and forces, if ``arguments.save``
    """
    task = {
        "task": "energy",
        "model": path,
        "atoms": atoms,
        "repetitions": arguments.repetitions,
        "precision": arguments.precision,
        "threads": arguments.threads,
        "warm_ups": arguments.warm_ups,
        "device": arguments.device,
        "save": str(folder / f"{name}-{atoms}.npz") if arguments.save else "",
    }
    timeout, limit = arguments.timeout, arguments.limit * GIB
    if MODELS[name].architecture == "lorem-jax":
        task["wavelength"] = MODELS[name].wavelength
        return run_worker("jax_worker.py", task, timeout, limit, arguments.jax_python)
    return run_worker("torch_worker.py", task, timeout, limit)


def summary(result: dict) -> str:
    if "failed" in result:
        return result["failed"]
    return f"{digits(float(np.median(result['times'])))} s"


def compare(rows: list[dict], folder: Path) -> list[dict]:
    """Differences between lorem-jax and ours with the same weights, per number of atoms."""
    done = {(row["atoms"], row["model"]) for row in rows if "seconds" in row}
    differences = []
    for atoms, name in sorted(done):
        own = SAME_WEIGHTS.get(name, "")
        if (atoms, own) not in done:
            continue
        theirs, ours = (np.load(folder / f"{n}-{atoms}.npz") for n in (name, own))
        scale = float(np.sqrt(np.mean(theirs["forces"] ** 2)))
        differences.append(
            {
                "atoms": atoms,
                "model": name,
                "energy_per_atom": float(abs(theirs["energy"] - ours["energy"])) / atoms,
                "forces_rms": float(np.sqrt(np.mean((theirs["forces"] - ours["forces"]) ** 2))),
                "forces_scale": scale,
            }
        )
    return differences


def speed_table(rows: list[dict], reference: str) -> str:
    """
    :param rows: see :func:`measure_models`
    :param reference: model to which the others are compared
    """
    times = {(row["atoms"], row["model"]): row.get("seconds") for row in rows}
    cells = []
    for row in rows:
        start = [row["model"], str(row["atoms"])]
        if "failed" in row:
            cells.append([*start, row["failed"].split(":")[0], "", "", "", ""])
            continue
        reference_seconds = times.get((row["atoms"], reference))
        cells.append(
            [
                *start,
                digits(row["seconds"]),
                digits(1e6 * row["seconds"] / row["atoms"]),
                digits(row["seconds"] / reference_seconds) if reference_seconds else "",
                digits(row["neighbor_list"]),
                digits(row["bytes"] / row["atoms"] / 1e3),
            ]
        )
    header = ["model", "atoms", "time (s)", "µs/atom", f"/ {reference}", "list (s)", "kB/atom"]
    return format_table(header, cells)


def exponents(rows: list[dict]) -> dict[str, float]:
    """Of the models with at least two sizes of 1000 atoms or more."""
    found = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        done = [row for row in rows if row["model"] == name and "seconds" in row]
        value = exponent([row["atoms"] for row in done], [row["seconds"] for row in done])
        if value is not None:
            found[name] = value
    return found


def run_details(
    task: str, arguments: argparse.Namespace, path: str, sizes: list[int]
) -> dict[int, dict]:
    """Results of a task by number of atoms; sizes that fail are named and left out."""
    results = {}
    for atoms in sizes:
        details = {
            "task": task,
            "model": path,
            "atoms": atoms,
            "repetitions": arguments.repetitions,
            "precision": arguments.precision,
            "threads": arguments.threads,
            "device": arguments.device,
        }
        limit = arguments.limit * GIB
        result = run_worker("torch_worker.py", details, arguments.timeout, limit)
        if "failed" in result:
            print(f"{task}, {atoms} atoms: {result['failed']}")
        else:
            results[atoms] = result
    return results


def stage_table(stages: dict[int, dict[str, float]]) -> str:
    names = list(next(iter(stages.values())))
    rows = [[name, *(digits(1e3 * s[name]) for s in stages.values())] for name in names]
    return format_table(["stage (ms)", *(str(atoms) for atoms in stages)], rows)


def roofline_lines(atoms: int, name: str, counts: dict) -> list[str]:
    """What was counted, the bounds of the time that follow, and the time over each."""
    compute = counts["flops"] / counts["peak_flops"]
    memory = counts["touched"] / counts["bandwidth"]
    seconds, roofline = counts["seconds"], counts["roofline"]
    per_atom = 1e6 / atoms
    return [
        f"{name}, {atoms} atoms: {counts['operators']} operators, {counts['ffts']} FFTs, "
        f"{counts['flops'] / 1e9:.3g} Gflop (matrix products and FFTs; elementwise ones are not "
        f"counted), {counts['touched'] / 1e9:.3g} GB touched, "
        f"{counts['allocated'] / 1e9:.3g} GB allocated",
        f"  machine: {counts['peak_flops'] / 1e9:.3g} Gflop/s, "
        f"{counts['bandwidth'] / 1e9:.3g} GB/s",
        f"  µs/atom: {digits(seconds * per_atom)} measured; operations alone "
        f"{digits(compute * per_atom)}, bytes alone {digits(memory * per_atom)}, roofline of the "
        f"operators one after another {digits(roofline * per_atom)}; measured / roofline "
        f"{seconds / roofline:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument(
        "--atoms", type=number_of_atoms, nargs="+", default=[16, 64, 216, 512, 1000, 1728]
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="each with the models reversed")
    parser.add_argument("--precision", type=int, choices=(32, 64), default=32)
    parser.add_argument("--stages", action="store_true", help="time of each stage of ours")
    parser.add_argument("--roofline", action="store_true", help="time against the machine's peak")
    parser.add_argument("--json", type=Path, help="file for all results")
    parser.set_defaults(warm_ups=6, save=True)
    arguments = parser.parse_args()
    no_such_model(arguments.models)
    # a time limit from outside does not lose what has been measured either
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    machine = hardware(arguments.threads)
    record = {"benchmark": "speed", "hardware": machine, "precision": arguments.precision}
    print(describe(machine))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths, skipped = write_models(
            arguments.models,
            folder,
            arguments.jax_python,
            arguments.threads,
            arguments.limit * GIB,
        )
        for name, reason in skipped.items():
            print(f"skipped {name}: {reason}")
        order = {name: paths[name] for name in arguments.models if name in paths}
        if not order:
            sys.exit("none of the models can run")
        rows = measure_models(arguments, order, folder)
        record["results"] = rows
        reference = "lorem-exported" if "lorem-exported" in order else next(iter(order))
        print(f"\nenergy and forces, float{arguments.precision}; list: neighbour list or batch")
        print(speed_table(rows, reference))
        record["exponents"] = exponents(rows)
        for name, value in record["exponents"].items():
            print(f"exponent from 1000 atoms, {name}: {value:.2f}")
        record["differences"] = compare(rows, folder)
        for d in record["differences"]:
            print(
                f"{d['model']} against {SAME_WEIGHTS[d['model']]}, {d['atoms']} atoms: energy "
                f"{d['energy_per_atom']:.1e} eV/atom, forces {d['forces_rms']:.1e} eV/Å rms "
                f"(of {d['forces_scale']:.1e})"
            )
        sizes = [row["atoms"] for row in rows if row["model"] == reference and "seconds" in row]
        if arguments.stages and "lorem" in order:
            record["stages"] = run_details("stages", arguments, paths["lorem"], sizes)
            print(f"\nstages of lorem\n{stage_table(record['stages'])}")
        if arguments.roofline:
            record["roofline"] = run_details("roofline", arguments, paths[reference], sizes)
            for atoms, result in record["roofline"].items():
                print("\n".join(roofline_lines(atoms, reference, result)))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
