"""Page and figure of the documentation from the results of the other benchmarks.

    python benchmarks/plot_speed.py speed.json training.json memory.json \\
        --page docs/src/speed.rst --plot docs/images/speed.png

The files are those that ``--json`` of speed.py, training_step.py and memory.py wrote. Of two
files with the same measurement the later counts.
"""

import argparse
import json
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import describe, digits, exponent

INTRODUCTION = """\
Speed
=====

Made by ``benchmarks/plot_speed.py`` from the results of ``benchmarks/speed.py``,
``benchmarks/training_step.py`` and ``benchmarks/memory.py``; ``--help`` tells how to run them. All
models have the default hypers of their architecture and random weights, in single precision; those
of lorem-jax and ours with the same weights agree to rounding errors. Each measurement has a process
of its own, and the median of repeated evaluations after warming up counts. 16 atoms are an isolated
cluster, all other numbers rocksalt NaCl. *sr* is short range alone, *lr* metatrain's long range,
*qeq* charge equilibration, *exported* what engines run. *lorem-jax-coarse* has the grid of the
Ewald sum as coarse as our accuracy allows. lorem-jax pads atoms, pairs and wave vectors to powers
of two.
"""


MARKERS = "osD^vP*X<>"


def plot(rows: dict[tuple[str, int], dict], path: Path) -> None:
    """Log-log plot of time against the number of atoms, each line labelled at its end.

    Models of this package have full lines, peers dashed ones; no two have the same colour and
    marker.

    :param rows: of the speed benchmark, by model and atoms
    :param path: figure to write
    """
    figure, axes = plt.subplots(figsize=(8, 6), constrained_layout=True)
    names = list(dict.fromkeys(name for name, _ in rows))
    ends = []
    for i, name in enumerate(names):
        done = sorted((n, row["seconds"]) for (m, n), row in rows.items() if m == name)
        own = name.startswith("lorem") and not name.startswith("lorem-jax")
        dashes, colour = "-" if own else "--", f"C{i % 10}"
        marker = MARKERS[(i + i // 10) % len(MARKERS)]
        axes.loglog(*zip(*done, strict=True), dashes, color=colour, marker=marker, ms=4)
        ends.append((*done[-1], name, colour))
    axes.set_xlabel("number of atoms")
    axes.set_ylabel("time of energy and forces (s)")
    axes.grid(alpha=0.3, which="both")
    label_ends(axes, ends)
    figure.savefig(path, dpi=150)


def label_ends(axes, ends: list[tuple[int, float, str, str]]) -> None:
    """Names beside the last points of lines, moved apart where they would overlap.

    :param axes: with logarithmic scales
    :param ends: last number of atoms, its time, name and colour of each line
    """
    largest = max(atoms for atoms, *_ in ends)
    axes.set_xlim(right=8 * largest)
    bottom, top = axes.get_ylim()
    step = (top / bottom) ** (1 / 32)
    column = {}
    for atoms, seconds, name, colour in sorted(ends, key=lambda end: end[1]):
        height = max(seconds, step * column.get(atoms, 0.0))
        column[atoms] = height
        axes.annotate(
            name,
            (atoms, seconds),
            xytext=(1.15 * atoms, height),
            color=colour,
            fontsize=8,
            va="center",
        )


def list_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}".rstrip() for i, cell in enumerate(row)]
    return "\n".join(lines)


def speed_section(records: list[dict], figure: str) -> str:
    """
    :param records: of speed.py
    :param figure: path of the figure, relative to the page
    """
    rows = {(row["model"], row["atoms"]): row for record in records for row in record["results"]}
    sizes = sorted({atoms for _, atoms in rows})
    cells = []
    for name in dict.fromkeys(name for name, _ in rows):
        line = [name]
        for atoms in sizes:
            row = rows.get((name, atoms), {})
            line.append(digits(row["seconds"]) if "seconds" in row else row.get("failed", ""))
        done = [(n, r["seconds"]) for (m, n), r in rows.items() if m == name and "seconds" in r]
        value = exponent(*map(list, zip(*done, strict=True))) if done else None
        cells.append([*line, f"{value:.2f}" if value is not None else ""])
    header = ["model \\\\ atoms", *(str(atoms) for atoms in sizes), "exponent"]
    parts = [
        "Energy and forces",
        "-----------------",
        "",
        "Time in seconds, and the exponent of its growth from 1000 atoms.",
        "",
        f".. image:: {figure}",
        "   :alt: time of energy and forces against the number of atoms",
        "",
        list_table(header, cells),
        "",
        *machines(records),
    ]
    for record in records:
        for atoms, counts in record.get("roofline", {}).items():
            parts += [
                f"Of {atoms} atoms the time is {counts['seconds'] / counts['roofline']:.1f} times "
                f"the roofline of the operators one after another, counted from operations "
                f"({counts['flops'] / 1e9:.3g} Gflop at {counts['peak_flops'] / 1e9:.3g} Gflop/s) "
                f"and bytes ({counts['touched'] / 1e9:.3g} GB at "
                f"{counts['bandwidth'] / 1e9:.3g} GB/s).",
                "",
            ]
    return "\n".join(parts)


def training_section(records: list[dict]) -> str:
    parts = ["Training steps", "--------------", ""]
    header = ["model", "step (s)", "structures/s", "structures/s with making batches"]
    for record in records:
        size = record["batch_size"]
        cells = []
        for row in record["results"]:
            if "failed" in row:
                cells.append([row["model"], row["failed"], "", ""])
                continue
            both = row["step"] + row["loading"]
            rates = [digits(size / row["step"]), digits(size / both)]
            cells.append([row["model"], digits(row["step"]), *rates])
        parts += [f"{size} structures of ``{record['data']}``.", "", list_table(header, cells), ""]
    return "\n".join([*parts, *machines(records)])


def memory_section(records: list[dict]) -> str:
    header = ["model", "atoms", "kB/atom"]
    cells = []
    for record in records:
        for row in record["results"]:
            value = digits(row["bytes"] / row["atoms"] / 1e3) if "bytes" in row else row["failed"]
            cells.append([row["model"], str(row["atoms"]), value])
    text = "Peak of energy and forces, beyond libraries, model and structure."
    parts = ["Memory", "------", "", text, ""]
    return "\n".join([*parts, list_table(header, cells), "", *machines(records)])


def machines(records: list[dict]) -> list[str]:
    """What the benchmarks ran on."""
    lines = dict.fromkeys(describe(record["hardware"]) for record in records)
    return [part for line in lines for part in (f"Measured on {line}.", "")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="results, from --json")
    parser.add_argument("--plot", type=Path, required=True, help="figure to write")
    parser.add_argument("--page", type=Path, help="page to write (.rst)")
    arguments = parser.parse_args()

    records: dict[str, list[dict]] = {"speed": [], "training_step": [], "memory": []}
    for file in arguments.files:
        record = json.loads(file.read_text())
        records[record["benchmark"]].append(record)
    if not records["speed"]:
        parser.error("none of the files is from speed.py")
    rows = {
        (row["model"], row["atoms"]): row
        for record in records["speed"]
        for row in record["results"]
        if "seconds" in row
    }
    plot(rows, arguments.plot)
    if arguments.page:
        figure = os.path.relpath(arguments.plot, arguments.page.parent)
        sections = [INTRODUCTION, speed_section(records["speed"], figure)]
        if records["training_step"]:
            sections.append(training_section(records["training_step"]))
        if records["memory"]:
            sections.append(memory_section(records["memory"]))
        arguments.page.write_text("\n".join(sections).rstrip() + "\n")


if __name__ == "__main__":
    main()
