"""Errors against the number of training structures: results of ``run.py --share``."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import DATASETS
from models import SHOWN

PICTURE = "learning-curves.png"
TITLE = "Errors against the number of training structures"

Curves = dict[tuple[str, float], dict[str, dict[int, list[dict]]]]


def read_results(folder: Path) -> Curves:
    """(set, minutes) -> model -> number of training structures -> results of all seeds, of sets and
    models that were trained on a share of a set.

    :param folder: with a folder per set
    """
    found: Curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text())
        models = found[result["set"], result["minutes"]]
        models[result["model"]][result["training_structures"]].append(result)
    sets, names = list(DATASETS), list(SHOWN)
    curves = {}
    for key in sorted(found, key=lambda key: (sets.index(key[0]), key[1])):
        models = {
            name: found[key][name]
            for name in names
            if any(
                x.get("share", 1.0) < 1.0 for results in found[key][name].values() for x in results
            )
        }
        if models:
            curves[key] = models
    return curves


def first_test(name: str) -> str:
    """The test that curves show: of structures like those of training.

    :param name: of a set
    """
    return DATASETS[name].tests[0]


def median(results: list[dict], test: str, quantity: str) -> float:
    return float(np.median([result["tests"][test][quantity]["rmse"] for result in results]))


def section(curves: Curves) -> str:
    """Title, text and picture.

    :param curves: of all sets
    """
    sets = ", ".join(
        f"{DATASETS[name].label} ({first_test(name)}, processor-minutes: {minutes:g})"
        for name, minutes in curves
    )
    return "\n\n".join(
        [
            f"{TITLE}\n{'-' * len(TITLE)}",
            f"{sets}; the same budget for each point, so that fewer structures are seen more "
            "often. Points of one seed scatter, by up to a factor of two in energies.",
            f".. image:: ../images/{PICTURE}\n   :alt: {TITLE.lower()}",
        ]
    )


def draw(curves: Curves, style: Callable[[str], tuple[str, str]], path: Path) -> None:
    """A column for each set: energies above, forces below.

    :param curves: of all sets
    :param style: colour and marker of a model
    :param path: of the picture
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(
        2,
        len(curves),
        figsize=(3.2 * len(curves) + 1.8, 5.0),
        sharex="col",
        layout="constrained",
        squeeze=False,
    )
    handles = {}
    for ((name, minutes), models), column in zip(curves.items(), axes.T, strict=True):
        test = first_test(name)
        for axis, quantity in zip(column, ("energy", "forces"), strict=True):
            for model, points in models.items():
                color, marker, _ = style(model)
                numbers = sorted(points)
                errors = [median(points[number], test, quantity) for number in numbers]
                (line,) = axis.plot(
                    numbers,
                    errors,
                    color=color,
                    marker=marker,
                    markerfacecolor="white" if marker == "o" else color,
                    label=SHOWN[model].label,
                )
                handles[SHOWN[model].label] = line
            axis.set(xscale="log", yscale="log")
            numbers = sorted({number for points in models.values() for number in points})
            axis.set_xticks(numbers, [str(number) for number in numbers])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.grid(which="both", alpha=0.2)
        column[0].set_title(f"{DATASETS[name].label}\n({test}, {minutes:g} min)", fontsize=9)
        column[1].set_xlabel("training structures")
    axes[0, 0].set_ylabel("energy RMSE (meV/atom)")
    axes[1, 0].set_ylabel("force RMSE (meV/Å)")
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
