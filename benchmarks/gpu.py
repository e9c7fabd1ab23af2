"""All there is to measure on a GPU, in one command of at most 25 minutes.

    python benchmarks/gpu.py --output gpu

Agreement with the CPU, derivatives, the tests that need a GPU, times of energy and forces from 16
to 1,000,000 atoms with kernels, host reads and peak memory, training steps, and the Coulomb sum
alone: of models with long range, with charge equilibration and with both, beside PET, SOAP-BPNN and
torch-pme. Structures and models are those of ``speed.py``.

Each item leaves a file in ``DIR/items``; one that is there is not measured again, so the command
can be interrupted and repeated. Remove files to measure them anew. ``DIR/gpu.rst`` has the tables,
``DIR/gpu.png`` the figure, ``DIR/gpu.json`` all numbers, also of what has been measured so far.
``--device cpu --quick`` shows that the benchmark itself works.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import (
    available_memory,
    default_threads,
    describe,
    digits,
    format_table,
    hardware,
    run_worker,
    write_result,
)
from plot_speed import list_table, plot
from torch_models import write_models

OWN = {
    "lorem-exported": "long range",
    "lorem-qeq-sr-exported": "charge equilibration",
    "lorem-qeq-exported": "both",
}
PEERS = ["pet", "pet-lr", "soap-bpnn-lr"]
SIZES = [16, 64, 216, 1000, 8000, 64_000]
LARGE = [216_000, 1_000_000]
BATCHES = [(16, 8), (216, 4)]
"""Atoms of each structure, and number of structures."""

LEAST_TIME = 10.0
"""Seconds that must be left for another process to be started."""


class Group(NamedTuple):
    """Items that one process works through.

    :param items: see :func:`gpu_worker.main`, each with a name
    :param timeout: seconds after which the process is ended
    :param growing: whether the items that follow one that failed would fail, too
    """

    items: list[dict]
    timeout: float = 240.0
    growing: bool = False


def plan(quick: bool) -> list[Group]:
    """What to measure, the most important first.

    :param quick: little of each kind, in few processes
    """
    if quick:
        name = "lorem-qeq-exported"
        sums = [coulomb(peer, 64) for peer in ("lorem", "torch-pme")]
        return [Group([agreement(name, 16), *speed(name, [16]), training(name, 16, 2), *sums])]
    own, pet, pet_lr, soap = list(OWN), *PEERS
    sums = [[coulomb(name, n) for n in (512, 4096, 32_768)] for name in ("lorem", "torch-pme")]
    return [
        # without images, with their waves one by one, and on a mesh
        Group([agreement(name, atoms) for name in own for atoms in (16, 64, 216)]),
        *(Group(speed(name, SIZES), growing=True) for name in own),
        Group([training(name, *batch) for name in own for batch in BATCHES]),
        *(Group(speed(name, SIZES), growing=True) for name in (pet, soap)),
        *(Group(items, growing=True) for items in sums),
        Group(speed(own[0], LARGE), 400.0, growing=True),
        Group(speed(pet_lr, SIZES), growing=True),
        *(Group([training(name, *batch) for batch in BATCHES]) for name in PEERS),
        *(Group(speed(name, LARGE), 400.0, growing=True) for name in own[1:]),
        Group(speed("lorem", SIZES), growing=True),
    ]


def agreement(name: str, atoms: int) -> dict:
    item = {"name": f"agreement-{name}-{atoms}", "kind": "agreement"}
    return {**item, "model": name, "atoms": atoms}


def speed(name: str, sizes: list[int]) -> list[dict]:
    """Times and, up to the size where they stop to matter, counts of kernels."""
    items = []
    for atoms in sizes:
        item = {"model": name, "atoms": atoms}
        # neighbour lists of large structures take longer than their evaluation
        calls = {"warm_ups": 2 if atoms in LARGE else 6, "repetitions": 1 if atoms in LARGE else 3}
        items.append({"name": f"speed-{name}-{atoms}", "kind": "speed", **item, **calls})
        if atoms not in LARGE:
            items.append({"name": f"launches-{name}-{atoms}", "kind": "launches", **item})
    return items


def training(name: str, atoms: int, batch_size: int) -> dict:
    item = {"name": f"training-{name}-{batch_size}x{atoms}", "kind": "training", "model": name}
    return {**item, "atoms": atoms, "batch_size": batch_size, "repetitions": 3}


def coulomb(name: str, atoms: int) -> dict:
    item = {"name": f"coulomb-{name}-{atoms}", "kind": "coulomb", "sum": name, "atoms": atoms}
    return {**item, "repetitions": 3}


class Run:
    """Items measured in a folder, until the time is up.

    :param folder: of all results
    :param device: of PyTorch
    :param threads: of each process
    :param budget: seconds
    :param models: folder for models
    """

    def __init__(
        self, folder: Path, device: str, threads: int, budget: float, models: Path
    ) -> None:
        self.folder = folder
        self.models = models
        self.paths: dict[str, str] = {}
        self.device = device
        self.threads = threads
        self.end = time.monotonic() + budget
        self.limit = 0.9 * available_memory()
        (folder / "items").mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return self.end - time.monotonic()

    def file(self, item: dict) -> Path:
        return self.folder / "items" / f"{item['name']}.json"

    def pending(self, group: Group) -> list[dict]:
        return [item for item in group.items if not self.file(item).exists()]

    def fail(self, item: dict, reason: str) -> None:
        write_result(self.file(item), {**item, "failed": reason})
        print(f"  {item['name']}: {reason}", flush=True)

    def measure(self, group: Group) -> None:
        """Work through a group, in another process after one that failed."""
        while (items := self.pending(group)) and self.left() > LEAST_TIME:
            items = self.with_models(items)
            task = {
                "items": [{**item, "file": str(self.file(item))} for item in items],
                "errors": str(self.folder / "errors.txt"),
                "device": self.device,
                "threads": self.threads,
            }
            timeout = min(group.timeout, self.left())
            start = time.monotonic()
            result = run_worker("gpu_worker.py", task, timeout, self.limit)
            done = len(items) - len(self.pending(group))
            print(f"  {items[0]['name']} and {done - 1} more: {time.monotonic() - start:.0f} s")
            if "failed" not in result or self.left() < LEAST_TIME:
                continue
            first, *others = self.pending(group)
            self.fail(first, result["failed"])
            if group.growing:
                for item in others:
                    self.fail(item, f"{result['failed'].split(':')[0]} at {first['atoms']}")

    def with_models(self, items: list[dict]) -> list[dict]:
        """The items that can be measured, with the file of the model that some evaluate."""
        needed = {item["model"] for item in items if item["kind"] in ("speed", "launches")}
        paths, skipped = write_models(
            sorted(needed - set(self.paths)), self.models, sys.executable, self.threads, self.limit
        )
        self.paths.update(paths)
        for item in items:
            if item.get("model") in skipped:
                self.fail(item, skipped[item["model"]])
        items = [item for item in items if item.get("model") not in skipped]
        return [{**item, "path": self.paths.get(item.get("model"), "")} for item in items]

    def test(self) -> None:
        """Run the tests that need a GPU."""
        item = {"name": "tests", "kind": "tests"}
        if self.file(item).exists() or self.left() < LEAST_TIME:
            return
        report = self.folder / "tests.xml"
        tests = Path(__file__).parents[1] / "tests" / "test_cuda.py"
        command = [sys.executable, "-m", "pytest", "-m", "cuda", f"--junitxml={report}", str(tests)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.left())
        except subprocess.TimeoutExpired:
            return
        (self.folder / "tests.txt").write_text(done.stdout + done.stderr)
        suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
        counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
        write_result(self.file(item), {**item, **counts, "seconds": float(suite.get("time"))})
        print(f"  tests: {counts}", flush=True)


def read_results(folder: Path) -> list[dict]:
    """Results of all items in the order of the plan."""
    order = [item["name"] for group in plan(False) for item in group.items]
    results = [json.loads(path.read_text()) for path in sorted((folder / "items").glob("*.json"))]
    for result in results:
        result.pop("file", None)
        result.pop("path", None)
    return sorted(results, key=lambda r: order.index(r["name"]) if r["name"] in order else -1)


class Section(NamedTuple):
    """A table."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]


def sections(results: list[dict]) -> list[Section]:
    """The tables that have rows."""
    kinds: dict[str, list[dict]] = {}
    for result in results:
        kinds.setdefault(result["kind"], []).append(result)
    made = [agreement_section(kinds.get("agreement", []))]
    made.append(speed_section(kinds.get("speed", []), kinds.get("launches", [])))
    made.append(training_section(kinds.get("training", [])))
    made.append(coulomb_section(kinds.get("coulomb", [])))
    return [section for section in made if section.rows]


def page(results: list[dict], machine: str) -> str:
    """The tables in reStructuredText.

    :param results: of items
    :param machine: what they were measured on
    """
    parts = ["GPU", "===", "", f"Measured on {machine}.", ""]
    for section in sections(results):
        title = [section.title, "-" * len(section.title)]
        parts += [*title, "", section.text, "", list_table(section.header, section.rows), ""]
        if section.title == SPEED:
            parts += [".. image:: gpu.png", "   :alt: time of energy and forces", ""]
    for result in results:
        if result["kind"] == "tests" and "tests" in result:
            passed = result["tests"] - sum(result[k] for k in ("failures", "errors", "skipped"))
            parts += [f"``pytest -m cuda``: {passed} of {result['tests']} tests passed."]
    return "\n".join(parts).rstrip() + "\n"


def line(start: list[str], row: dict, header: list[str], cells: list[str]) -> list[str]:
    """Cells under a header, or why there are none."""
    if "failed" not in row:
        return [*start, *cells]
    reason = row["failed"].split(":")[0]
    return [*start, reason, *[""] * (len(header) - len(start) - 1)]


def agreement_section(results: list[dict]) -> Section:
    columns = {
        "double": "double precision",
        "single": "single precision",
        "single_cpu": "the same on the CPU",
        "differences": "finite differences",
    }
    header = ["model", "atoms", *columns.values()]
    rows = []
    for row in results:
        cells = [" / ".join(f"{v:.0e}" for v in row.get(c, {}).values()) for c in columns]
        rows.append(line([OWN[row["model"]], str(row["atoms"])], row, header, cells))
    text = (
        "Differences of energy / forces / stress from those of the CPU in double precision, and of "
        "forces / stress from finite differences on the device; relative to the norm."
    )
    return Section("Agreement", text, header, rows)


SPEED = "Energy and forces"
COUNTS = ["kernels", "busy", "to host", "waits", "GB"]


def counts(row: dict, seconds: float) -> list[str]:
    """Cells under ``COUNTS`` but for the last."""
    if "kernels" not in row:
        return ["", "", "", ""]
    busy = f"{100 * row['kernel_seconds'] / seconds:.0f} %"
    return [str(row["kernels"]), busy, str(row["to_host"]), str(row["waits"])]


def speed_section(results: list[dict], launches: list[dict]) -> Section:
    found = {(row["model"], row["atoms"]): row for row in launches}
    header = ["model", "atoms", "time (s)", "µs/atom", *COUNTS, "list (s)"]
    rows = []
    for row in results:
        seconds = float(np.median(row.get("times", [np.nan])))
        cells = [digits(seconds), digits(1e6 * seconds / row["atoms"])]
        cells += counts(found.get((row["model"], row["atoms"]), {}), seconds)
        cells += [digits(row.get("bytes", np.nan) / 1e9), digits(row.get("neighbor_list"))]
        rows.append(line([row["model"], str(row["atoms"])], row, header, cells))
    text = (
        "Energy and forces in single precision. Busy is the share of the time in which kernels "
        "run; then come copies from device to host, times the host waits for the device, and peak "
        "memory. The neighbour list, made on the host, is not in the time."
    )
    return Section(SPEED, text, header, rows)


def training_section(results: list[dict]) -> Section:
    header = ["model", "structures", "step (s)", "structures/s", *COUNTS]
    rows = []
    for row in results:
        seconds = float(np.median(row.get("times", [np.nan])))
        cells = [digits(seconds), digits(row["batch_size"] / seconds), *counts(row, seconds)]
        cells.append(digits(row.get("bytes", np.nan) / 1e9))
        start = [row["model"], f"{row['batch_size']} of {row['atoms']} atoms"]
        rows.append(line(start, row, header, cells))
    text = "Energy, forces, gradient of their loss, Adam; without making the batch."
    return Section("Training steps", text, header, rows)


def coulomb_section(results: list[dict]) -> Section:
    header = ["sum", "atoms", "time (s)", *COUNTS]
    rows = []
    for row in results:
        seconds = float(np.median(row.get("times", [np.nan])))
        cells = [digits(seconds), *counts(row, seconds), digits(row.get("bytes", np.nan) / 1e9)]
        rows.append(line([row["sum"], str(row["atoms"])], row, header, cells))
    text = (
        "Potentials of ten channels of charges on a mesh and their gradients, at the same accuracy "
        "(1e-6): ours and torch-pme's P3MCalculator."
    )
    return Section("Coulomb sum alone", text, header, rows)


def report(folder: Path, device: str, threads: int) -> None:
    """Write tables, numbers and figure of what there is."""
    results = read_results(folder)
    machine = hardware(threads)
    name = describe(machine)
    if device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(device)
        name = f"{machine['gpu']}, {name}"
    write_result(folder / "gpu.json", {"hardware": machine, "results": results})
    (folder / "gpu.rst").write_text(page(results, name))
    rows = {
        (r["model"], r["atoms"]): {"seconds": float(np.median(r["times"]))}
        for r in results
        if r["kind"] == "speed" and "times" in r
    }
    if rows:
        plot(rows, folder / "gpu.png")
    print(name)
    for section in sections(results):
        print(f"\n{section.title}\n{format_table(section.header, section.rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for all results")
    parser.add_argument("--device", default="cuda", help="of PyTorch; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="little of each kind")
    parser.add_argument(
        "--budget", type=float, default=1500, help="seconds to measure for; default: %(default)s"
    )
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="default: %(default)s"
    )
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU: give --device cpu --quick to try the benchmark itself")
    # a time limit from outside does not lose what has been measured either
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    folder, device, threads = arguments.output.absolute(), arguments.device, arguments.threads
    try:
        with tempfile.TemporaryDirectory() as models:
            run = Run(folder, device, threads, arguments.budget, Path(models))
            first, *others = plan(arguments.quick)
            run.measure(first)
            if device.startswith("cuda"):
                run.test()
            for group in others:
                run.measure(group)
    except KeyboardInterrupt:
        print("interrupted: what has been measured follows")
    report(folder, device, threads)


if __name__ == "__main__":
    main()
