"""Train lorem-jax, the program LOREM comes from, on the sets of ``run.py`` with the same budget.

In an environment that has it (``pip install lorem-jax``; metatrain is not needed):

    python benchmarks/accuracy/lorem_jax.py --sets rotation --minutes 1

Its own training program runs, in a process of its own, and its own calculator tells the errors;
results lie beside those of ``run.py``. Compilation is before the first epoch and not counted.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import ase
import numpy as np
import run
import yaml
from ase.neighborlist import neighbor_list
from datasets import CURVES
from errors import errors
from models import REFERENCE, SMALL

KEY = "lorem-jax"
BATCH = 8  # structures
PROGRAM = "from lorem.train import main; main()"  # that of the command lorem-train
VALIDATED = "state at step:"  # in the log, after each epoch
BEST = Path("run", "checkpoints", "R2_E+F")
"""Of the epoch with the largest sum of R² of energies and forces: lorem-jax keeps no product."""
PACKAGES = ("lorem-jax", "marathon-train", "jax", "jax-pme", "e3x", "optax")
ENVIRONMENT = {
    # one thread
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    # keeps the many small functions, too
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def batches(structures: int) -> int:
    """How many batches the schedule of lorem-jax takes for an epoch.

    Half of those in two epochs, where batches go across epochs and the last one is left out.

    :raises ValueError: for fewer structures than this leaves a batch of
    """
    if structures <= BATCH:
        raise ValueError(f"{structures} training structures: lorem-jax takes more than {BATCH}")
    return ((2 * structures - 1) // BATCH) // 2


def paddings(structures: list[ase.Atoms]) -> dict[str, str]:
    """Sizes to which batches are padded.

    lorem-jax compiles anew for each size, which takes as long as many epochs here. Its defaults are
    powers of 4 and 8; these are as large as the largest batch that is to be expected.

    :param structures: of training
    """
    atoms = np.array([len(x) for x in structures])
    pairs = np.array([len(neighbor_list("i", x, SMALL["cutoff"])) for x in structures])
    # those of the long range are padded alike
    pairs = np.maximum(pairs, atoms * (atoms - 1) // 2)
    drawn = np.random.default_rng(0).integers(len(structures), size=(100_000, BATCH))
    # one more is for padding, and the multiple has to be larger
    sizes = [int(number[drawn].sum(axis=1).max()) + 2 for number in (atoms, pairs)]
    return {
        "size_strategy": f"multiples_of_{sizes[0]}",
        "coarse_strategy": f"multiples_of_{sizes[1]}",
    }


def options(frames: dict[str, list[ase.Atoms]], epochs: int, seed: int) -> dict:
    """Input of ``lorem-train`` but for the paths, as sections of an options file of metatrain."""
    model = REFERENCE[KEY]
    structures = len(frames["train"])
    training = {
        **model.training,
        "seed": seed,
        # one of them is for padding
        "batcher": {"batch_size": BATCH + 1, **paddings(frames["train"])},
        "max_epochs": epochs,
        # as metatrain-lorem
        "warmup_epochs": epochs / 100,
        # after as many batches as the schedule takes for an epoch; half a structure for rounding
        "valid_every_epoch": (BATCH * batches(structures) - 0.5) / structures,
        # by the process whose time is counted
        "worker_count": 0,
        "use_wandb": False,
    }
    architecture = {"name": model.architecture, "model": model.hypers, "training": training}
    return {"architecture": architecture, "training_set": {}}


def train(
    folder: Path, data: Path, zero: dict[int, float], section: dict, limit: float = float("inf")
) -> list[float]:
    """Run ``lorem-train``; see ``run.watch``.

    :param folder: where its files go
    :param data: folder of the structures
    :param zero: baseline of each element, eV
    :param section: model and training
    """
    folder.mkdir(parents=True)
    paths = {name: str(data / name) for name in ("train", "valid")}
    model = {"model": {"lorem.Lorem": section["model"]}, "baseline": {"elemental": zero}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(section["training"] | paths))
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    epochs = section["training"]["max_epochs"]
    # what is left then has a learning rate of zero
    return run.watch(
        [sys.executable, "-u", "-c", PROGRAM],
        folder,
        VALIDATED,
        lambda text: text.count(VALIDATED) >= epochs,
        limit,
    )


def evaluate(calculator, structures: list[ase.Atoms]) -> dict:
    """Errors of energies and forces.

    :param calculator: of lorem-jax
    :param structures: with labels
    """
    energies, forces = [], []
    for atoms in structures:
        moved = atoms.copy()
        moved.calc = calculator
        energies.append(moved.get_potential_energy() / len(moved))
        forces.append(moved.get_forces())
    labels = [atoms.get_potential_energy() / len(atoms) for atoms in structures]
    return {
        "structures": len(structures),
        "energy": errors(energies, labels, 1e-3),
        "forces": errors(forces, [atoms.get_forces() for atoms in structures], 1e-3),
    }


def curves(calculator, structures: list[ase.Atoms]) -> dict[str, dict[str, list[float]]]:
    """Name of the curve -> coordinates (Å) and energies (eV).

    :param calculator: of lorem-jax
    :param structures: their ``info`` as in ``datasets.CURVES``
    """
    found: dict[str, dict[str, list[float]]] = {}
    for atoms in structures:
        curve = found.setdefault(atoms.info["curve"], {"coordinate": [], "energy": []})
        curve["coordinate"].append(atoms.info["coordinate"])
        moved = atoms.copy()
        moved.calc = calculator
        curve["energy"].append(round(moved.get_potential_energy(), 5))
    return found


def measure(frames: dict[str, list[ase.Atoms]], arguments: argparse.Namespace, seed: int) -> dict:
    """Train, and evaluate the best epoch.

    :raises RuntimeError: if training fails
    """
    from lorem import LOREMCalculator
    from marathon.grain import prepare

    budget = 60 * arguments.minutes
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        for file in ("train", "valid"):
            prepare(frames[file], folder=folder / file)
        # energies have lost theirs already
        zero = {z: 0.0 for atoms in frames["train"] for z in atoms.numbers.tolist()}
        # a number that is never reached
        trial = options(frames, 100_000, seed)["architecture"]
        times = train(folder / "trial", folder, zero, trial, min(run.CALIBRATION, budget / 8))
        section = options(frames, run.number_of_epochs(times, budget), seed)["architecture"]
        times = train(folder / "final", folder, zero, section)
        calculator = LOREMCalculator.from_checkpoint(folder / "final" / BEST)
        if arguments.keep:
            shutil.copytree(folder / "final", arguments.keep, dirs_exist_ok=True)
    return {
        "seed": seed,
        "minutes": arguments.minutes,
        "training_structures": len(frames["train"]),
        "epochs": len(times),
        "processor_seconds": run.processor_seconds(times),
        "versions": run.versions(PACKAGES),
        "inputs": [],
        "architecture": section,
        "tests": {test: evaluate(calculator, frames[test]) for test in run.tests_of(frames)},
        "curves": curves(calculator, frames.get(CURVES, [])),
    }


def main() -> None:
    arguments = run.common_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as cache:
        # what the trial, the training and the calculator compile alike
        os.environ.update(ENVIRONMENT, JAX_COMPILATION_CACHE_DIR=cache)
        run.repeat(
            arguments,
            [KEY],
            lambda _, frames, seed: options(frames, 1, seed),
            lambda _, frames, seed: measure(frames, arguments, seed),
        )


if __name__ == "__main__":
    main()
