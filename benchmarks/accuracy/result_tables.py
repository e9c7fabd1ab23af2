"""What tables of results are made of."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from datasets import DATASETS
from models import SHOWN

Group = dict[str, list[dict]]


def read_results(folder: Path) -> dict[tuple[str, float], Group]:
    """(set, minutes) -> model -> results of all seeds, in the order of ``DATASETS`` and ``SHOWN``.
    Not those of a share of the training structures.

    :param folder: with a folder per set
    """
    found: dict[tuple[str, float], Group] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text())
        if result.get("share", 1.0) < 1.0:
            continue
        found[result["set"], result["minutes"]][result["model"]].append(result)
    sets, names = list(DATASETS), list(SHOWN)
    ordered = sorted(found, key=lambda key: (sets.index(key[0]), key[1]))
    return {
        key: {name: found[key][name] for name in sorted(found[key], key=names.index)}
        for key in ordered
    }


def values(results: list[dict], column: tuple[str, str], error: str) -> list[float]:
    """An error for each seed; empty if the model does not predict the quantity."""
    test, quantity = column
    tests = [result["tests"][test] for result in results]
    return [x[quantity][error] for x in tests if quantity in x]


def digits(number: float) -> str:
    """Three significant ones."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def cell(
    results: list[dict], column: tuple[str, str], best: float | None, with_mae: bool = True
) -> str:
    """Median of RMSE and MAE over the seeds, and the range of the RMSE."""
    rmse = values(results, column, "rmse")
    if not rmse:
        return ""
    median = float(np.median(rmse))
    text = digits(median)
    if best is not None and text == digits(best):
        text = f"**{text}**"
    if with_mae:
        text += f" ({digits(float(np.median(values(results, column, 'mae'))))})"
    return text if len(rmse) == 1 else f"{text}, {digits(min(rmse))}–{digits(max(rmse))}"


def same_loss(model: str) -> bool:
    """Whether the weight of energies is the same in all epochs, as it is for the peers."""
    return not model.startswith(("lorem-last-", "lorem-forces-"))


def smallest(group: Group, column: tuple[str, str]) -> float:
    """Of the medians of the RMSE of all models whose losses have the same weights."""
    errors = [
        values(results, column, "rmse") for model, results in group.items() if same_loss(model)
    ]
    return min((float(np.median(rmse)) for rmse in errors if rmse), default=float("nan"))


def list_table(rows: list[list[str]]) -> str:
    """reStructuredText of a table whose first row is its header."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'*' if i == 0 else ' '} - {x}".rstrip() for i, x in enumerate(row)]
    return "\n".join(lines)
