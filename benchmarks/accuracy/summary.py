"""One row per test: LOREM with its long range, the best of LOREM, the best of the others."""

import numpy as np
from datasets import DATASETS
from models import SHOWN
from result_tables import Group, digits, list_table, same_loss, values

FIRST = "lorem-lr"
"""Shown on every set, best or not."""


def is_other(name: str) -> bool:
    """Whether a model has no part of this package; ``lorem-jax`` has none."""
    return "lorem" not in name or name == "lorem-jax"


def medians(results: list[dict], test: str) -> tuple[float, ...]:
    """Over the seeds, of the RMSE of energies and of forces."""
    return tuple(
        float(np.median(values(results, (test, quantity), "rmse")))
        for quantity in ("energy", "forces")
    )


def summary(groups: dict[tuple[str, float], Group]) -> str:
    """reStructuredText. The best is that with the smallest error of energies.

    :param groups: (set, minutes) -> model -> results of all seeds
    """
    heads = ["energy, meV/atom; forces, meV/Å", "minutes", SHOWN[FIRST].label]
    rows = [[*heads, "best LOREM", "best of the others"]]
    for (name, minutes), group in groups.items():
        for test in DATASETS[name].tests:
            errors = {model: medians(x, test) for model, x in group.items() if same_loss(model)}
            others = [model for model in errors if is_other(model)]
            if FIRST not in errors or not others:
                continue
            ours = [model for model in errors if not is_other(model)]
            shown = [FIRST, *(min(models, key=errors.get) for models in (ours, others))]
            best = [min(column) for column in zip(*(errors[x] for x in shown), strict=True)]
            cells = []
            for model in shown:
                pair = zip(errors[model], best, strict=True)
                marks = ["**" if error == smallest else "" for error, smallest in pair]
                cells.append(
                    "; ".join(
                        f"{mark}{digits(error)}{mark}"
                        for mark, error in zip(marks, errors[model], strict=True)
                    )
                )
            names = ["", *(f" ({SHOWN[x].label.removeprefix('lorem, ')})" for x in shown[1:])]
            label = f"{DATASETS[name].label}: {test}"
            rows.append([label, f"{minutes:g}", *map("".join, zip(cells, names, strict=True))])
    return list_table(rows)
