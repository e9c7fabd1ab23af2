"""Structures, processes of their own, and tables for the benchmarks.

Imports neither PyTorch nor JAX: the worker of a peer may run in another Python that lacks one.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ase
import ase.build
import numpy as np

LATTICE_CONSTANT = 5.64
"""Of rocksalt NaCl, Å."""

DISPLACEMENT = 0.1
"""Standard deviation of the atoms about their sites, Å."""

TREMBLE = 1e-3
"""Standard deviation by which atoms move from one repetition to the next, Å."""

SHORTEST_MEASUREMENT = 0.5
"""Evaluations are repeated for at least this time, seconds."""

COMPILED = 4
"""Calls after which models are compiled."""

LONGEST_WARM_UP = 30.0
"""Warming up for longer may end before, seconds: compiling takes less."""

GIB = 2**30


def rocksalt(atoms: int) -> ase.Atoms:
    """Periodic NaCl, displaced at random; as close to a cube as the number of atoms allows.

    :param atoms: number of atoms, a multiple of 8
    """
    cells = atoms // 8
    first = next(n for n in range(round(cells ** (1 / 3)), 0, -1) if cells % n == 0)
    rest = cells // first
    second = next(n for n in range(round(rest**0.5), 0, -1) if rest % n == 0)
    frame = ase.build.bulk("NaCl", "rocksalt", LATTICE_CONSTANT, cubic=True)
    return displaced(frame.repeat((first, second, rest // second)), 0, DISPLACEMENT)


def cluster(seed: int = 0) -> ase.Atoms:
    """Na8Cl8, not periodic: a piece of rocksalt of 4 x 2 x 2 atoms, displaced at random."""
    sites = np.array(list(np.ndindex(4, 2, 2)))
    symbols = ["NaCl"[2 * (i % 2) : 2 * (i % 2) + 2] for i in sites.sum(axis=1)]
    return displaced(ase.Atoms(symbols, 0.5 * LATTICE_CONSTANT * sites), seed, DISPLACEMENT)


def structure(atoms: int) -> ase.Atoms:
    """The structure that stands for a number of atoms: 16 is the cluster, all others periodic."""
    return cluster() if atoms == 16 else rocksalt(atoms)


def displaced(frame: ase.Atoms, seed: int, deviation: float = TREMBLE) -> ase.Atoms:
    """A copy whose atoms are moved at random.

    :param frame: structure
    :param seed: of the random numbers
    :param deviation: standard deviation along each axis, Å
    """
    frame = frame.copy()
    shifts = np.random.default_rng(seed).normal(scale=deviation, size=frame.positions.shape)
    frame.positions += shifts
    return frame


def measure(evaluate: Callable[[int], float], repetitions: int, warm_ups: int = 6) -> list[float]:
    """Times of an evaluation, after warming up until two in a row agree within 20 %.

    :param evaluate: takes the number of the call, returns its time in seconds
    :param repetitions: least number of times
    :param warm_ups: largest number of calls before
    :return: times in seconds
    """
    calls = 0
    spent = 0.0
    before = float("nan")
    while calls < warm_ups:
        seconds = evaluate(calls)
        calls += 1
        spent += seconds
        # TorchScript compiles in the second call what it saw in the first, and the backward pass
        # of that in the third; these calls may take the same time by chance
        enough = calls >= COMPILED or spent > LONGEST_WARM_UP
        if enough and abs(seconds - before) < 0.2 * before:
            break
        before = seconds
    times: list[float] = []
    while len(times) < repetitions or sum(times) < SHORTEST_MEASUREMENT:
        times.append(evaluate(calls))
        calls += 1
    return times


def memory(key: str, process: int | str = "self") -> int:
    """Memory of a process in bytes, 0 once it has ended.

    The kernel's ``ru_maxrss`` also counts the parent before it started the process.

    :param key: ``VmRSS`` (now) or ``VmHWM`` (largest so far)
    :param process: its number
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in lines:
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return 0


def available_memory() -> int:
    """Memory that processes can still take, bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/meminfo has no MemAvailable: give a limit")


def default_threads() -> int:
    """OMP_NUM_THREADS, or all processors that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))


def interpreter(path: str) -> str:
    """Type of the option ``--jax-python``."""
    if shutil.which(path) is None:
        raise argparse.ArgumentTypeError(f"no such interpreter: {path}")
    return path


def number_of_atoms(text: str) -> int:
    """Type of the option ``--atoms``."""
    atoms = int(text)
    if atoms < 8 or atoms % 8:
        raise argparse.ArgumentTypeError(
            f"{atoms}: give multiples of 8, such as 8 n³, or 16 (a cluster)"
        )
    return atoms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that all benchmarks share."""
    parser.add_argument(
        "--jax-python",
        type=interpreter,
        default=sys.executable,
        help="interpreter that has lorem-jax",
    )
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="default: %(default)s"
    )
    parser.add_argument(
        "--timeout", type=float, default=300, help="of a process, seconds; default: %(default)s"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=round(0.9 * available_memory() / GIB, 1),
        help="memory of a process, GiB; default: what is free, %(default)s",
    )
    parser.add_argument("--device", default="cpu", help="of the PyTorch models")


def read_task() -> dict:
    """The task of this worker process, from the command line; restricts it to its threads."""
    task = json.loads(sys.argv[1])
    # XLA has no setting for its number of threads, it takes the processors that it may use
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    return task


def run_worker(
    script: str, task: dict, timeout: float, limit: float, python: str = sys.executable
) -> dict:
    """Run a task in a process of its own.

    :param script: file in the folder of this one, which prints the result as JSON in its last line
    :param task: what to do, see the script; ``threads`` is its number of threads
    :param timeout: seconds after which the process is ended
    :param limit: memory in bytes beyond which the process is ended
    :param python: interpreter
    :return: the result, or ``{"failed": REASON}``
    """
    command = [python, str(Path(__file__).parent / script), json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task["threads"])}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        start = time.monotonic()
        failed = ""
        try:
            while process.poll() is None:
                if memory("VmRSS", process.pid) > limit:
                    failed = "out of memory"
                elif time.monotonic() - start > timeout:
                    failed = "too slow"
                if failed:
                    process.kill()
                    process.wait()
                time.sleep(0.02)
        finally:
            # also where the benchmark itself is interrupted
            if process.poll() is None:
                process.kill()
        for file in (output, errors):
            file.seek(0)
        if failed:
            return {"failed": failed}
        if process.returncode == 0:
            return json.loads(output.read().strip().splitlines()[-1])
        return {"failed": _reason(process.returncode, errors.read())}


def write_result(path: Path, result: dict) -> None:
    """Write a result as JSON, all of it or none.

    :param path: file
    :param result: what to write
    """
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(path)


def _reason(code: int, errors: str) -> str:
    words = ("MemoryError", "RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")
    if code == -9 or any(word in errors for word in words):
        return "out of memory"
    lines = errors.strip().splitlines() or [f"exit status {code}"]
    return f"error: {lines[-1][:200]}"


def hardware(threads: int) -> dict:
    """What the measurement ran on."""
    from importlib.metadata import version

    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": cpu,
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "torch": version("torch"),
        "metatrain": version("metatrain"),
        "date": datetime.date.today().isoformat(),
    }


def describe(machine: dict) -> str:
    """One line about the :func:`hardware`."""
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['memory_gib']} GiB, "
        f"torch {machine['torch']}, metatrain {machine['metatrain']}, {machine['date']}"
    )


def digits(value: float | None) -> str:
    """Three significant digits without an exponent; empty for None."""
    if value is None or not np.isfinite(value):
        return ""
    if value == 0:
        return "0"
    decimals = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{decimals}f}"


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned: the first to the left, all others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def exponent(atoms: list[int], seconds: list[float], smallest: int = 1000) -> float | None:
    """Slope of the straight line through log time against log atoms; None where the sizes differ by
    less than a factor of four, over which noise is no slope."""
    points = [(n, s) for n, s in zip(atoms, seconds, strict=True) if n >= smallest]
    if not points or max(n for n, _ in points) < 4 * min(n for n, _ in points):
        return None
    n, s = np.log(np.array(points)).T
    return float(np.polyfit(n, s, 1)[0])
