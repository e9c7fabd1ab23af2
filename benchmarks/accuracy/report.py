"""Tables and pictures from ``results/``: ``python benchmarks/accuracy/report.py``.

Writes a summary and the tables into ``docs/src/accuracy.rst``, each between two comments there, a
picture per set into ``docs/images`` and one of its curves, one of errors against the number of
training structures, one of slabs that grow, and a table of models with and without a backbone into
``docs/src/backbones.rst``.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import learning_curves
import numpy as np
import slab_and_bulk
from datasets import CURVES, DATASETS, load
from models import SHOWN
from result_tables import Group, cell, digits, list_table, read_results, same_loss, smallest, values
from summary import summary

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
UNITS = {"energy": "meV/atom", "forces": "meV/Å", "charges": "me", "dipoles": "me Å"}
COLORS = {"lorem": "tab:blue", "pet": "tab:orange", "soap-bpnn": "tab:green", "mace": "tab:purple"}
COLORS |= {
    "lorem-last": "tab:pink",
    "lorem-forces": "black",
    "lorem-default": "tab:cyan",
    "pet-lorem": "tab:red",
    "soap-bpnn-lorem": "tab:olive",
    "lorem-jax": "tab:brown",
}
MARKERS = {"": "o", "sr": "o", "lr": "^", "charges": "v", "qeq": "s", "both": "D"}
MARKERS |= {"lr1": "<", "both1": "d", "both-features": "P", "both-after": "p"}
MARKERS |= {"head": "X", "head7": "x", "lr-unaware": ">"}

PUBLISHED = {
    ("CC", "CACE-LES"): (2.72, 10.7),
    ("CC", "CACE-SOG"): (2.45, 11.6),
    ("PP", "CACE-LES"): (2.91, 6.15),
    ("PP", "CACE-SOG"): (1.46, 4.26),
    ("AA", "CACE-LES"): (1.68, 0.95),
    ("AA", "CACE-SOG"): (1.04, 0.61),
}
"""Far dimers: errors over all frames, those of training included, in meV and meV/Å."""
FAR_DIMERS = ("epochs", "batch_size", "energy_weight")
"""Settings of their trainings: the table has those of the usual ones."""
CLASSES = {
    "CC": "charged, charged",
    "CP": "charged, polar",
    "CA": "charged, apolar",
    "PP": "polar, polar",
    "PA": "polar, apolar",
    "AA": "apolar, apolar",
}
COMPARED = {
    ("dimers", "far"): "far pairs",
    ("nacl-clusters", "test"): "NaCl clusters",
    ("ag3", "test"): "Ag₃⁺, Ag₃⁻",
}
"""Set and test of the columns of the table of backbones, after ``BACKBONE_MINUTES``."""
BACKBONE_MINUTES = 1.0

TRAINED = {
    "NH4+ and NH4+": 5.0,
    "HCOO- and HCOO-": 5.0,
    "Cl- and CH3Br": 4.2,
    "Na5Cl4+ and Na2Cl+": 8.0,
    "Na9Cl8+": 4.0,
    "Na8Cl8": 4.0,
}
"""Curve -> the largest coordinate in training, Å; those of others have all angles in training."""
ALL_ANGLES = ("rotation", "gold")
TOLERANCE = 0.05
"""Relative error of the work beyond that, up to which a model has it right."""
LINES = {"sr": ":", "lr": "-", "charges": "--", "qeq": "-.", "both": (0, (4, 1, 1, 1, 1, 1))}
LINES |= {"lr1": (0, (8, 2)), "both1": (0, (8, 1, 1, 1)), "both-features": (0, (3, 1))}
LINES |= {"both-after": (0, (1, 1)), "head": (0, (1, 4)), "head7": (0, (2, 4))}
LINES |= {"lr-unaware": (0, (6, 3))}
"""Line of a model in pictures of curves."""


def quantities(group: Group) -> list[tuple[str, str]]:
    """(test, quantity) of the columns: what any of the models predicts."""
    results = [result for results in group.values() for result in results]
    return [
        (test, quantity)
        for test in DATASETS[results[0]["set"]].tests
        for quantity in UNITS
        if any(quantity in result["tests"][test] for result in results)
    ]


def table(group: Group) -> str:
    """A table of one set and budget, as reStructuredText."""
    columns = quantities(group)
    # one model is not the best of several
    best = {column: smallest(group, column) if len(group) > 1 else None for column in columns}
    heads = [f"{test}: {quantity}, {UNITS[quantity]}" for test, quantity in columns]
    rows = [["model", *heads, "epochs", "seeds"]]
    known = [
        next(x for x in (values(r, column, "label_rms") for r in group.values()) if x)
        for column in columns
    ]
    rows.append(["*zero*", *(digits(x[0]) for x in known), "", ""])
    for name, results in group.items():
        epochs = [result["epochs"] for result in results]
        row = [SHOWN[name].label]
        for column in columns:
            row.append(cell(results, column, best[column] if same_loss(name) else None))
        rows.append([*row, f"{np.median(epochs):.0f}", str(len(results))])
    return list_table(rows)


def backbone_table(groups: dict[tuple[str, float], Group]) -> str:
    """RMSE of models with a backbone, of the backbones and of lorem alone, on ``COMPARED``."""
    names = [name for name in SHOWN if "-lorem-" in name]
    names += {name.split("-lorem-")[0] + end for name in names for end in ("", "-lr")}
    # charges to the same degree as beside a backbone
    names += ["lorem-lr1", "lorem-both1"]
    chosen = {
        key: {
            name: results
            for name, results in groups.get((key[0], BACKBONE_MINUTES), {}).items()
            if name in names
        }
        for key in COMPARED
    }
    columns = [(key, (key[1], quantity)) for key in COMPARED for quantity in ("energy", "forces")]
    rows = [["model", *(f"{COMPARED[key]}: {x}, {UNITS[x]}" for key, (_, x) in columns), "seeds"]]
    for name in SHOWN:
        seeds = [len(group[name]) for group in chosen.values() if name in group]
        if not seeds:
            continue
        row = [SHOWN[name].label]
        for key, column in columns:
            results = chosen[key].get(name, [])
            row.append(cell(results, column, smallest(chosen[key], column), with_mae=False))
        rows.append([*row, "–".join(str(x) for x in sorted({min(seeds), max(seeds)}))])
    return list_table(rows)


def reference_curves(name: str) -> dict[str, dict[str, list[float]]]:
    """Name of the curve -> coordinates (Å), energies (eV), charges of the part that moves (e).

    :param name: of a set with curves
    """
    found: dict[str, dict[str, list[float]]] = {}
    for atoms in load(DATASETS[name], Path())[CURVES]:
        curve = found.setdefault(
            atoms.info["curve"], {"coordinate": [], "energy": [], "charge": []}
        )
        curve["coordinate"].append(float(atoms.info["coordinate"]))
        curve["energy"].append(atoms.get_potential_energy())
        curve["charge"].append(float(atoms.arrays["atomic_charge"][atoms.info["part"] :].sum()))
    return found


def work(curve: dict[str, list[float]], trained: float) -> float:
    """Energy at the last coordinate less that at the first one beyond training, eV."""
    first = next(i for i, x in enumerate(curve["coordinate"]) if x > trained)
    return curve["energy"][-1] - curve["energy"][first]


def with_curves(name: str, group: Group) -> Group:
    """Those of the models and seeds that were evaluated on all curves of a set."""
    if CURVES not in DATASETS[name].files:
        return {}
    curves = set(reference_curves(name))
    found = {
        model: [x for x in results if curves <= set(x.get(CURVES, {}))]
        for model, results in group.items()
    }
    return {model: results for model, results in found.items() if results}


def curve_table(name: str, group: Group) -> str:
    """Work beyond the distances of training, of labels and models.

    :param name: of the set
    :param group: models with curves
    """
    reference = reference_curves(name)
    labels = {curve: work(x, TRAINED.get(curve, -np.inf)) for curve, x in reference.items()}
    rows = [["model", *(f"{curve}: work, eV" for curve in reference), "right", "seeds"]]
    rows.append(["*labels*", *(f"{x:.3f}" for x in labels.values()), "", ""])
    for model, results in group.items():
        row, right = [SHOWN[model].label], True
        for curve, label in labels.items():
            found = [work(result[CURVES][curve], TRAINED.get(curve, -np.inf)) for result in results]
            row.append(f"{np.median(found):.3f}")
            if len(found) > 1:
                row[-1] += f", {min(found):.3f} to {max(found):.3f}"
            right = right and all(abs(x - label) < TOLERANCE * abs(label) for x in found)
        rows.append([*row, "yes" if right else "no", str(len(results))])
    return list_table(rows)


def budget(minutes: float) -> str:
    return f"{minutes:g} processor-minute{'' if minutes == 1 else 's'}"


def picture_name(name: str, minutes: float, what: str = "accuracy") -> str:
    return f"{what}-{name}-{minutes:g}.png"


def section(name: str, minutes: float, group: Group) -> str:
    """Title, what was done, picture and table of one set and budget."""
    dataset = DATASETS[name]
    first = next(iter(group.values()))[0]
    seeds = sorted({result["seed"] for results in group.values() for result in results})
    numbers = ", ".join(f"{first['tests'][test]['structures']} {test}" for test in dataset.tests)
    title = f"{dataset.label}: {budget(minutes)}"
    curves = with_curves(name, group)
    about_curves = [
        f".. image:: ../images/{picture_name(name, minutes, CURVES)}\n"
        f"   :alt: energies in steps, {dataset.label}",
        "Energies in steps"
        + ("" if name in ALL_ANGLES else "; dotted: the largest distance in training")
        + ". *Work* is the energy at the last step less that at the first one"
        + ("" if name in ALL_ANGLES else " beyond training")
        + f"; it is right where it is within {100 * TOLERANCE:g} % for all curves and seeds.",
        curve_table(name, curves) if curves else "",
    ]
    return "\n\n".join(
        [
            f"{title}\n{'-' * (len(title) + 2)}",
            f"{dataset.source}. **{budget(minutes)}, {len(seeds)} "
            f"{'seed' if len(seeds) == 1 else 'seeds'}, {first['training_structures']} training "
            f"structures**; tests: {numbers}.",
            f".. image:: ../images/{picture_name(name, minutes)}\n"
            f"   :alt: errors of forces against errors of energies, {dataset.label}",
            table(group),
            *(about_curves if curves else []),
        ]
    )


def median_and_worst(numbers: list[float]) -> str:
    median = digits(float(np.median(numbers)))
    return median if len(numbers) == 1 else f"{median} ({digits(max(numbers))})"


def far_dimers(results: list[dict]) -> str:
    """A table of dimers beyond the distances of training, beside published models.

    :param results: of ``far_dimers.py``
    """
    results = [result for result in results if result["boundaries"] == "periodic"]
    settings = [tuple(result[name] for name in FAR_DIMERS) for result in results]
    usual = max(settings, key=settings.count)
    results = [x for x, setting in zip(results, settings, strict=True) if setting == usual]
    weights = {f"{x['fit_energy_weight']:g}" for x in results if x["fit_steps"]}
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for result in results:
        fit = f", fitted in {result['fit_steps']} steps" if result["fit_steps"] else ""
        groups[result["class"], f"lorem, {result['model']}{fit}"].append(result)
    heads = ["partners", "model", "far: energy, meV", "far: forces, meV/Å"]
    rows = [[*heads, "all: energy", "all: forces", "seeds"]]
    for label, description in CLASSES.items():
        for (_, model), group in ((k, x) for k, x in groups.items() if k[0] == label):
            errors = [
                median_and_worst([result[part][i] for result in group])
                for part in ("far", "all")
                for i in (0, 1)
            ]
            rows.append([description, model, *errors, str(len(group))])
        for (_, model), errors in ((k, x) for k, x in PUBLISHED.items() if k[0] == label):
            rows.append([description, model, "", "", *(f"{x:g}" for x in errors), "1"])
    epochs, batch, weight = usual
    title = "Dimers of the BioFragment database, beyond the distances of training"
    text = (
        f"DFT, ten frames of each pair below 12.3 Å for training, three up to 15 Å (*far*), one "
        f"model per class. {epochs} epochs, batches of {batch}, energy weight {weight:g}; "
        "*fitted*: then all weights by least squares in double precision, energy weight "
        f"{', '.join(sorted(weights))}. "
        "Median over seeds, the worst one in parentheses. Published errors are over all thirteen "
        "frames."
    )
    return "\n\n".join([f"{title}\n{'-' * len(title)}", text, list_table(rows)])


def sections(results: Path) -> str:
    """What stands between the two comments of the page.

    :param results: folder of results
    """
    groups = read_results(results)
    parts = [section(*key, group) for key, group in groups.items()]
    if learning := learning_curves.read_results(results):
        parts.append(learning_curves.section(learning))
    if slabs := slab_and_bulk.read_results(results):
        parts.append(slab_and_bulk.section(slabs))
    if (results / "far_dimers.json").is_file():
        parts.append(far_dimers(json.loads((results / "far_dimers.json").read_text())))
    return "\n\n".join(parts)


def style(name: str) -> tuple[str, str, str | tuple]:
    """Colour of the family and size; marker and line of the long-range part."""
    family = max((key for key in COLORS if name.startswith(key)), key=len)
    # whose size has a long range, too
    part = "lr" if name == "lorem-jax" else name.removeprefix(family).removeprefix("-")
    return COLORS[family], MARKERS[part], LINES.get(part, LINES["sr"])


def draw(name: str, group: Group, path: Path) -> None:
    """A point for each model, its median over the seeds, with a line across their range."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    tests = DATASETS[name].tests
    # as high as the legend
    size = 3.2 * len(tests) + 1.8, max(3.0, 0.18 * len(group) + 0.3)
    figure, axes = plt.subplots(1, len(tests), figsize=size, layout="constrained", squeeze=False)
    for axis, test in zip(axes[0], tests, strict=True):
        for model, results in group.items():
            color, marker, _ = style(model)
            x, y = (values(results, (test, key), "rmse") for key in ("energy", "forces"))
            middle = float(np.median(x)), float(np.median(y))
            axis.errorbar(
                *middle,
                xerr=[[middle[0] - min(x)], [max(x) - middle[0]]],
                yerr=[[middle[1] - min(y)], [max(y) - middle[1]]],
                color=color,
                marker=marker,
                # hollow without long range
                markerfacecolor="white" if marker == "o" else color,
                linestyle="none",
                label=SHOWN[model].label,
            )
        axis.set(xscale="log", yscale="log", title=test, xlabel="energy RMSE (meV/atom)")
        axis.margins(0.15)
        for scale in (axis.xaxis, axis.yaxis):
            low, high = scale.get_view_interval()
            scale.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            scale.set_major_formatter(lambda value, _: f"{value:g}")
            scale.set_minor_formatter(NullFormatter())
        axis.grid(which="both", alpha=0.2)
    axes[0, 0].set_ylabel("force RMSE (meV/Å)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(name: str, group: Group, path: Path) -> None:
    """Energies above, charges below; models by their first seed.

    :param name: of the set
    :param group: models with curves
    :param path: of the picture
    """
    import matplotlib.pyplot as plt

    reference = reference_curves(name)
    figure, axes = plt.subplots(
        2,
        len(reference),
        figsize=(3.6 * len(reference) + 2.0, 5.0),
        height_ratios=[2, 1],
        sharex="col",
        layout="constrained",
        squeeze=False,
    )
    for (curve, known), (above, below) in zip(reference.items(), axes.T, strict=True):
        for model, results in group.items():
            color, _, line = style(model)
            kind = {"color": color, "linestyle": line}
            found = results[0][CURVES][curve]
            above.plot(found["coordinate"], found["energy"], label=SHOWN[model].label, **kind)
            if "charge" in found:
                below.plot(found["coordinate"], found["charge"], **kind)
        above.plot(known["coordinate"], known["energy"], "k.", label="labels")
        below.plot(known["coordinate"], known["charge"], "k.")
        low, high = min(known["energy"]), max(known["energy"])
        # models that are far off shall not hide the others
        above.set(title=curve, ylim=(low - 0.3 * (high - low), high + 0.3 * (high - low)))
        low, high = below.get_ylim()
        # a charge that stays is a flat line
        what = "angle (°)" if name in ALL_ANGLES else "coordinate (Å)"
        below.set(xlabel=what, ylim=(min(low, high - 0.4), max(high, low + 0.4)))
        for axis in (above, below):
            if curve in TRAINED:
                axis.axvline(TRAINED[curve], color="gray", linestyle=":", linewidth=1)
            axis.grid(alpha=0.2)
    axes[0, 0].set_ylabel("energy (eV)")
    axes[1, 0].set_ylabel("charge of the part (e)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def with_tables(page: str, tables: str, what: str = "tables") -> str:
    """The page with other tables between two comments."""
    begin, end = f".. begin of {what}", f".. end of {what}"
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{tables}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--page", type=Path, default=DOCS / "src" / "accuracy.rst")
    parser.add_argument("--images", type=Path, default=DOCS / "images")
    parser.add_argument("--backbones", type=Path, default=DOCS / "src" / "backbones.rst")
    arguments = parser.parse_args()
    groups = read_results(arguments.results)
    for (name, minutes), group in groups.items():
        draw(name, group, arguments.images / picture_name(name, minutes))
        if curves := with_curves(name, group):
            picture = arguments.images / picture_name(name, minutes, CURVES)
            draw_curves(name, curves, picture)
    if learning := learning_curves.read_results(arguments.results):
        learning_curves.draw(learning, style, arguments.images / learning_curves.PICTURE)
    if slabs := slab_and_bulk.read_results(arguments.results):
        slab_and_bulk.draw(slabs, style, arguments.images / slab_and_bulk.PICTURE)
    for page, text, what in (
        (arguments.page, summary(groups), "summary"),
        (arguments.page, sections(arguments.results), "tables"),
        (arguments.backbones, backbone_table(groups), "tables"),
    ):
        page.write_text(with_tables(page.read_text(), text, what))


if __name__ == "__main__":
    main()
