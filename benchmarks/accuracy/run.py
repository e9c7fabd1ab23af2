"""Train models on data sets for a fixed processor time each, and keep their errors.

From the repository's root, in an environment that has the peers, too
(``pip install "metatrain[soap-bpnn,mace]" .``):

    python benchmarks/accuracy/run.py --models lorem-sr lorem-lr pet-lr --sets nacl-clusters

Each training writes ``results/SET/MODEL-MINUTES-SEED.json`` beside this file, with ``--share`` one
that ends in the share of the training structures. Repeat the command to go on: what is finished is
skipped unless the hypers of the model have changed since.

The budget is processor time of epochs, validation included, on one thread. A first, short training
tells the time of an epoch, and the number of epochs follows, so that the learning rate of every
model warms up and falls to zero within the budget. Imports, compilation before the first epoch and
export do not count.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import ase.io
import datasets
import yaml
from models import MODELS, Model, architecture

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TICK = os.sysconf("SC_CLK_TCK")
POLL = 0.05  # seconds
COMPILED = 3  # epochs after which all of them take the same time
CALIBRATION = 12.0  # processor seconds
EXPORTED = "Running final evaluation"  # in the log: what follows is done by ``evaluate.py``
PACKAGES = ("metatrain", "torch", "torch-pme", "mace-torch")


def spent(process: subprocess.Popen) -> float:
    """Processor time that a running process has taken, seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def train(folder: Path, options: dict, limit: float = float("inf")) -> list[float]:
    """Run ``mtt train``, up to the exported model; see :func:`watch`.

    :param folder: where its files go
    :param options: its input
    """
    folder.mkdir(parents=True)
    (folder / "options.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "metatrain", "train", "options.yaml"]
    return watch(command, folder, "- Epoch:", lambda text: EXPORTED in text, limit)


def watch(
    command: list[str], folder: Path, mark: str, done: Callable[[str], bool], limit: float
) -> list[float]:
    """Run a training and stop it when nothing of interest follows.

    :param command: what to run
    :param folder: where
    :param mark: what its log has for each epoch
    :param done: whether it may be stopped, by its log
    :param limit: processor time after which it is stopped, from the end of the first epoch and
        after some more, seconds
    :return: processor time at the end of each epoch, seconds
    :raises RuntimeError: if it fails
    """
    log = folder / "log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    times: list[float] = []
    text = ""
    try:
        while process.poll() is None:
            text = log.read_text(errors="replace")
            times += [spent(process)] * (text.count(mark) - len(times))
            enough = len(times) > COMPILED + 1 and times[-1] - times[0] > limit
            if enough or done(text):
                return times
            time.sleep(POLL)
        raise RuntimeError("\n".join(text.splitlines()[-15:]))
    finally:
        process.kill()
        process.wait()


def number_of_epochs(times: list[float], budget: float) -> int:
    """How many fit into the budget.

    :param times: at the end of the first epochs, seconds
    :param budget: seconds
    """
    # epochs shorter than a tick of the clock
    each = max((times[-1] - times[COMPILED]) / (len(times) - 1 - COMPILED), 1.0 / TICK)
    # the first ones take longer, the very first about as long as the second
    first = times[COMPILED] - times[0] + times[1] - times[0]
    return max(1, COMPILED + 1 + int((budget - first) / each))


def processor_seconds(times: list[float]) -> float:
    """Of all epochs; the first one, whose beginning is not seen, like the second.

    :param times: at the end of each epoch, seconds
    """
    return round(times[-1] - times[0] + (times[1] - times[0] if len(times) > 1 else 0.0), 1)


def options(
    model: Model, frames: dict[str, list[ase.Atoms]], folder: Path, epochs: int, seed: int
) -> dict:
    """Input of ``mtt train``."""
    targets = {"energy": {"key": "energy", "unit": "eV", "forces": True}}
    weights: dict = {"energy": {"weight": 1.0, "forces": {"weight": 1.0}}}
    if model.equilibrates or model.predicts_charges:
        # one over the variance, and more where forces are large; peers have no use for charges
        by_forces = model.training.get("energy_scale") == "forces"
        share = model.charge_factor * datasets.share_of_forces(frames["train"], by_forces)
        if variance := datasets.charge_variance(frames["train"]):
            targets["mtt::atomic_charge"] = {
                "key": "atomic_charge",
                "quantity": "charge",
                "unit": "e",
                "sample_kind": "atom",
            }
            weights["mtt::atomic_charge"] = {"weight": float(f"{share / variance:.2g}")}
        variance = datasets.dipole_variance(frames["train"])
        if model.equilibrates and variance:
            targets["mtt::dipole_moment"] = {
                "key": "dipole_moment",
                "quantity": "dipole",
                "unit": "e*A",
                "type": {"cartesian": {"rank": 1}},
            }
            weights["mtt::dipole_moment"] = {"weight": float(f"{share / variance:.2g}")}
    charged = datasets.is_charged(frames) and model.knows_total_charge
    extra = {}
    if charged and model.architecture in ("lorem", "pet"):
        extra["charge"] = {"key": "charge", "unit": "e"}
    if charged and model.architecture == "pet":
        extra["spin_multiplicity"] = {"key": "spin_multiplicity", "unit": ""}

    def section(name: str) -> dict:
        systems = {"read_from": str(folder / f"{name}.xyz"), "length_unit": "angstrom"}
        return {"systems": systems, "targets": targets} | ({"extra_data": extra} if extra else {})

    return {
        "seed": seed,
        "device": "cpu",
        "architecture": architecture(model, epochs, weights, charged),
        "training_set": section("train"),
        "validation_set": section("valid"),
        "test_set": 0.0,
    }


def without_epochs(section: dict) -> dict:
    """The hypers of a training but for those that follow from the time of an epoch."""
    changing = ("num_epochs", "lr_scheduler_gamma", "max_epochs", "warmup_epochs")
    training = {key: x for key, x in section["training"].items() if key not in changing}
    return section | {"training": training}


def finished(path: Path, given: dict) -> bool:
    """Whether there is a result of the same hypers and inputs.

    :param path: of the result
    :param given: options of the training
    """
    if not path.is_file():
        return False
    before, inputs = json.loads(path.read_text()), inputs_of(given)
    if before.get("inputs", inputs) != inputs:
        return False
    return without_epochs(before["architecture"]) == without_epochs(given["architecture"])


def inputs_of(given: dict) -> list[str]:
    """What a model is given besides structures, from the options of its training."""
    return sorted(given["training_set"].get("extra_data", {}))


def versions(packages: Iterable[str]) -> dict[str, str]:
    installed = {x.metadata["Name"]: x.version for x in importlib.metadata.distributions()}
    return {name: installed[name] for name in packages if name in installed}


def tests_of(frames: dict[str, list[ase.Atoms]]) -> list[str]:
    return [file for file in frames if file not in ("train", "valid", datasets.CURVES)]


def measure(
    model: Model, frames: dict[str, list[ase.Atoms]], arguments: argparse.Namespace, seed: int
) -> dict:
    """Train a model and evaluate its exported file.

    :raises RuntimeError: if training or evaluation fails
    """
    budget = 60 * arguments.minutes
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        for file, structures in frames.items():
            ase.io.write(folder / f"{file}.xyz", structures, format="extxyz")
        # a number that is never reached
        trial = options(model, frames, folder, 100_000, seed)
        times = train(folder / "trial", trial, min(CALIBRATION, budget / 8))
        epochs = number_of_epochs(times, budget)
        final = options(model, frames, folder, epochs, seed)
        times = train(folder / "final", final)
        for line in (folder / "final" / "log").read_text(errors="replace").splitlines():
            if "[WARNING]" in line and "Warning:" not in line:
                print(line, file=sys.stderr)
        tests = tests_of(frames)
        command = [sys.executable, str(HERE / "evaluate.py"), "model.pt", "extensions"]
        command += [str(folder / f"{test}.xyz") for test in tests]
        if datasets.CURVES in frames:
            command += ["--curves", str(folder / f"{datasets.CURVES}.xyz")]
        done = subprocess.run(command, cwd=folder / "final", capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        if arguments.keep:
            shutil.copytree(folder / "final", arguments.keep, dirs_exist_ok=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "seed": seed,
        "minutes": arguments.minutes,
        "training_structures": len(frames["train"]),
        "epochs": epochs,
        "processor_seconds": processor_seconds(times),
        "versions": versions(PACKAGES),
        "inputs": inputs_of(final),
        "architecture": final["architecture"],
        "tests": dict(zip(tests, found["tests"], strict=True)),
        "curves": found["curves"],
    }


def common_parser(description: str) -> argparse.ArgumentParser:
    """What all trainings can be told.

    :param description: of the program
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sets", nargs="+", choices=datasets.DATASETS, default=list(datasets.DATASETS))
    add("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    add("--minutes", type=float, default=2.0, help="processor time of each; default: %(default)s")
    add("--share", type=fraction, default=1.0, help="of the training structures; default: all")
    add(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of the sets that are not part of the repository; default: %(default)s",
    )
    add("--results", type=Path, default=HERE / "results", help="default: %(default)s")
    add("--work", type=Path, help="folder for temporary files; default: that of the system")
    add("--keep", type=Path, help="folder for the files of the last training")
    return parser


def fraction(text: str) -> float:
    """Of the training structures, from the command line."""
    if not 0.0 < float(text) <= 1.0:
        raise argparse.ArgumentTypeError(f"{text}: not more than 0 and at most 1")
    return float(text)


def repeat(
    arguments: argparse.Namespace,
    keys: list[str],
    given: Callable[[str, dict, int], dict],
    measured: Callable[[str, dict, int], dict],
) -> None:
    """Train what has no result yet, on all sets and with all seeds.

    :param arguments: see :func:`common_parser`
    :param keys: names of the models
    :param given: options of a training, from model, structures and seed
    :param measured: results, from the same
    """
    # leaves no training behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in arguments.sets:
        dataset = datasets.DATASETS[name]
        if reason := datasets.missing(dataset, arguments.data):
            print(f"{name}: left out, {reason}", flush=True)
            continue
        frames = datasets.load(dataset, arguments.data, arguments.share)
        end = f"-{arguments.share:g}" if arguments.share < 1.0 else ""
        for seed in arguments.seeds:
            for key in keys:
                path = arguments.results / name / f"{key}-{arguments.minutes:g}-{seed}{end}.json"
                if finished(path, given(key, frames, seed)):
                    print(f"{path.name} of {name} is there", flush=True)
                    continue
                try:
                    result = measured(key, frames, seed)
                except RuntimeError as error:
                    print(f"{key} on {name} failed:\n{error}", flush=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                result = {"set": name, "model": key, "share": arguments.share, **result}
                path.write_text(json.dumps(result, indent=1) + "\n")
                errors = "; ".join(
                    f"{test}: {x['energy']['rmse']:.2f} meV/atom, {x['forces']['rmse']:.1f} meV/Å"
                    for test, x in result["tests"].items()
                )
                print(f"{key} on {name}, seed {seed}, {result['epochs']} epochs: {errors}")


def main() -> None:
    command = common_parser(__doc__)
    command.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = command.parse_args()
    repeat(
        arguments,
        arguments.models,
        lambda key, frames, seed: options(MODELS[key], frames, Path(), 1, seed),
        lambda key, frames, seed: measure(MODELS[key], frames, arguments, seed),
    )


if __name__ == "__main__":
    main()
