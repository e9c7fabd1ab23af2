"""One row per test: LOREM with its long range, the best of LOREM, of the other architectures of
metatrain, and lorem-jax."""

from collections.abc import Sequence

import numpy as np
from datasets import DATASETS
from models import SHOWN
from result_tables import Group, digits, list_table, same_loss, values

FIRST = "lorem-lr"
"""Shown on every set, best or not."""
LOREM_JAX = "lorem-jax"
"""Shown where it was trained."""


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
    rows = [[*heads, "best of this package", "best other architecture", SHOWN[LOREM_JAX].label]]
    for (name, minutes), group in groups.items():
        for test in DATASETS[name].tests:
            errors = {model: medians(x, test) for model, x in group.items() if same_loss(model)}
            others = [model for model in errors if "lorem" not in model]
            if FIRST not in errors or not others:
                continue
            ours = [model for model in errors if model not in (*others, LOREM_JAX)]
            chosen = [min(models, key=errors.get) for models in (ours, others)]
            shown = [FIRST, *chosen] + [LOREM_JAX] * (LOREM_JAX in errors)
            smallest = np.min([errors[model] for model in shown], axis=0)
            cells = [pair(errors[model], smallest) for model in shown]
            for i, model in enumerate(chosen, 1):
                cells[i] += f" ({SHOWN[model].label.removeprefix('lorem, ')})"
            if LOREM_JAX not in errors:
                cells.append("")
            rows.append([f"{DATASETS[name].label}: {test}", f"{minutes:g}", *cells])
    return list_table(rows)


def pair(errors: Sequence[float], smallest: Sequence[float]) -> str:
    """Of energies and forces; bold what is the smallest in the digits that are shown."""
    texts = [digits(error) for error in errors]
    best = [digits(error) for error in smallest]
    marked = [f"**{x}**" if x == y else x for x, y in zip(texts, best, strict=True)]
    return "; ".join(marked)
