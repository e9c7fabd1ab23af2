"""Does one model give slabs and the bulk the same energy where they are the same?

    python benchmarks/accuracy/slab_and_bulk.py --models lorem-lr soap-bpnn-lr

trains models on NaCl clusters, which are neither, and evaluates their exported files on undisplaced
NaCl(001). No labels are needed: each layer that a thick slab gains must add the energy of a layer
of the bulk, ions in its middle must have the charges of the bulk, and a slab with a dipole moment,
its sodium ions shifted along the normal, must have the same energy in whatever vacuum, but for the
images of its dipole moment. Models that fail on slabs get them as crystals with vacuum. Writes
``results/slab_and_bulk.json``; what is there is skipped.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
from models import SHOWN
from result_tables import list_table

HERE = Path(__file__).resolve().parent
RESULT = "slab_and_bulk.json"
PICTURE = "slab-and-bulk.png"
TITLE = "Slabs and bulk of one model"
TOLERANCE = 1.0  # meV/atom, up to which the last layer of a slab is one of the bulk
SPACING = 2.75  # Å, of the ions; as in options/data
ACROSS = 4  # ions
LAYERS = range(2, 11)
BULK_LAYERS = 6
SHIFT = 0.2  # Å, of sodium in the slab with a dipole moment
DIPOLAR_LAYERS = 4
VACUUM = (10.0, 20.0, 40.0)  # Å
SLAB, BULK = (True, True, False), (True, True, True)


def salt(layers: int, pbc: tuple[bool, bool, bool], vacuum: float = 0.0) -> ase.Atoms:
    """NaCl(001) with 16 atoms a layer.

    :param layers: number of layers
    :param pbc: periodic directions; the third axis is the normal
    :param vacuum: added to the thickness of the layers, Å
    """
    sites = np.array(list(np.ndindex(ACROSS, ACROSS, layers)))
    symbols = np.where(sites.sum(axis=1) % 2 == 0, "Na", "Cl")
    height = SPACING * layers + vacuum if pbc[2] else 0.0
    cell = np.diag([ACROSS * SPACING, ACROSS * SPACING, height])
    return ase.Atoms(symbols, SPACING * sites, cell=cell, pbc=pbc)


def dipolar(pbc: tuple[bool, bool, bool], vacuum: float = 0.0) -> ase.Atoms:
    """A slab whose sodium ions are shifted along the normal; see :func:`salt`."""
    atoms = salt(DIPOLAR_LAYERS, pbc, vacuum)
    atoms.positions[atoms.numbers == 11, 2] += SHIFT
    return atoms


def evaluate(model: str, extensions: str) -> dict:
    """What the script says of one exported model.

    :param model: exported file
    :param extensions: folder of the libraries it needs
    :return: ``layer``: energy of each further layer of a slab less that of the bulk (meV/atom), by
        the number of layers; ``charge``, of models that have charges: mean charge of sodium in the
        middle of the thickest slab less that in the bulk (me); ``vacuum``: energy of the slab with
        a dipole moment, as periodic in three directions, less as a slab (meV/atom), by the height
        of the vacuum (Å); ``refused`` instead of this, how the model fails on slabs
    """
    import torch
    from metatomic.torch import ModelOutput
    from metatomic_ase import MetatomicCalculator

    torch._C._set_graph_executor_optimize(False)
    calculator = MetatomicCalculator(model, extensions_directory=extensions, device="cpu")

    def energy(atoms: ase.Atoms) -> float:
        return float(calculator.get_potential_energy(atoms))

    def sodium(atoms: ase.Atoms, height: float) -> float:
        wanted = {"charge": ModelOutput(unit="e", sample_kind="atom")}
        charges = calculator.run_model(atoms, wanted)["charge"].block().values.detach().numpy()
        chosen = (atoms.numbers == 11) & (np.abs(atoms.positions[:, 2] - height) < SPACING)
        return float(charges[chosen].mean())

    found: dict = {}
    boundary: tuple = (SLAB,)
    try:
        as_slab = energy(dipolar(SLAB))
    except RuntimeError as error:
        found["refused"] = str(error).strip().splitlines()[-1]
        boundary = (BULK, VACUUM[-1])
    else:
        found["vacuum"] = {
            height: round(1e3 * (energy(dipolar(BULK, height)) - as_slab) / len(dipolar(BULK)), 4)
            for height in VACUUM
        }
    bulk = salt(BULK_LAYERS, BULK)
    each = energy(bulk) / len(bulk)
    slabs = [energy(salt(n, *boundary)) for n in LAYERS]
    found["layer"] = {
        n: round(1e3 * (more - less) / ACROSS**2 - 1e3 * each, 4)
        for n, less, more in zip(LAYERS[1:], slabs, slabs[1:], strict=False)
    }
    if "charge" in calculator._model.capabilities().outputs:
        thick = salt(LAYERS[-1], *boundary)
        middle = sodium(thick, thick.positions[:, 2].mean())
        found["charge"] = round(1e3 * (middle - sodium(bulk, bulk.positions[:, 2].mean())), 4)
    return found


def read_results(folder: Path) -> list[dict]:
    """In the order of ``SHOWN``; empty if there are none.

    :param folder: of results
    """
    path, names = folder / RESULT, list(SHOWN)
    results = json.loads(path.read_text()) if path.is_file() else []
    return sorted(results, key=lambda result: names.index(result["model"]))


def section(results: list[dict]) -> str:
    """Title, text, picture and table.

    :param results: see :func:`read_results`
    """
    last = str(LAYERS[-1])
    rows = [
        [
            "model",
            f"{LAYERS[-1]}th layer less bulk, meV/atom",
            "charges in the middle less bulk, me",
            f"with {VACUUM[0]:g} Å of vacuum, meV/atom",
            f"with {VACUUM[-1]:g} Å",
            "agree",
            "minutes",
            "epochs",
            "seed",
        ]
    ]
    for result in results:
        label = SHOWN[result["model"]].label
        heights = ["fails on slabs", ""]
        if "vacuum" in result:
            heights = [f"{result['vacuum'][str(height)]:.2f}" for height in VACUUM[::2]]
        layer, charge = result["layer"][last], result.get("charge")
        rows.append(
            [
                label,
                f"{layer:.2f}",
                "" if charge is None else f"{charge:.2f}",
                *heights,
                "yes" if abs(layer) < TOLERANCE else "no",
                *(f"{result[key]:g}" for key in ("minutes", "epochs", "seed")),
            ]
        )
    text = (
        "Models trained on NaCl clusters, and what they say of undisplaced NaCl(001), of which "
        "they have seen neither slabs nor bulk. No labels: each layer that a thick slab gains, as "
        "periodic in two directions, should add what a layer of the bulk has, and ions in its "
        "middle should have the charges of the bulk. *With vacuum*: energy of a slab whose sodium "
        f"ions are shifted by {SHIFT:g} Å along the normal, as periodic in three directions, less "
        "that as periodic in two. Images of the dipole moment lower the former by a few meV/atom, "
        "the less the higher the cell; a model whose difference does not fall to zero contradicts "
        "itself. Models that fail on slabs are evaluated on crystals with "
        f"{VACUUM[-1]:g} Å of vacuum. *Agree*: the last layer is within {TOLERANCE:g} meV/atom of "
        "the bulk."
    )
    image = f".. image:: ../images/{PICTURE}\n   :alt: energy of each further layer of a slab"
    return "\n\n".join([f"{TITLE}\n{'-' * len(TITLE)}", text, image, list_table(rows)])


def draw(results: list[dict], style: Callable[[str], tuple], path: Path) -> None:
    """Distance of each further layer from the bulk.

    :param results: see :func:`read_results`
    :param style: colour, marker and line of a model
    :param path: of the picture
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    drawn: set[str] = set()
    for result in results:
        # the first training of each model
        if result["model"] in drawn:
            continue
        drawn.add(result["model"])
        color, marker, line = style(result["model"])
        layers = [int(n) for n in result["layer"]]
        distances = np.abs(list(result["layer"].values()))
        axes.plot(
            layers,
            # rounding of single precision
            np.maximum(distances, 0.01),
            color=color,
            marker=marker,
            linestyle=line,
            label=SHOWN[result["model"]].label,
        )
    axes.axhline(TOLERANCE, color="gray", linestyle=":", linewidth=1)
    axes.set(
        xlabel="layers of the slab",
        ylabel="|last layer less bulk| (meV/atom)",
        yscale="log",
        xticks=LAYERS[1:],
    )
    axes.grid(alpha=0.2)
    figure.legend(loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    # what the report does not need
    import datasets
    from models import MODELS
    from run import common_parser, measure

    command = common_parser(__doc__)
    command.set_defaults(sets=["nacl-clusters"], minutes=1.0)
    command.add_argument("--models", nargs="+", choices=MODELS, required=True)
    arguments = command.parse_args()
    path = arguments.results / RESULT
    results = json.loads(path.read_text()) if path.is_file() else []
    frames = datasets.load(datasets.DATASETS["nacl-clusters"], arguments.data)
    for seed in arguments.seeds:
        for name in arguments.models:
            key = {"model": name, "seed": seed, "minutes": arguments.minutes}
            if any(key.items() <= result.items() for result in results):
                print(f"{name}, seed {seed}, is there", flush=True)
                continue
            with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
                arguments.keep = Path(folder)
                trained = measure(MODELS[name], frames, arguments, seed)
                program = [sys.executable, str(Path(__file__).resolve()), "model.pt", "extensions"]
                done = subprocess.run(program, cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(done.stderr[-2000:])
            found = json.loads(done.stdout.splitlines()[-1])
            results.append({**key, "epochs": trained["epochs"], **found})
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{name}, seed {seed}: {found}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].endswith(".pt"):
        warnings.simplefilter("ignore")
        print(json.dumps(evaluate(*sys.argv[1:])))
    else:
        main()
