"""Dimers of the BioFragment database beyond the distances of training.

    python benchmarks/accuracy/far_dimers.py train --data biodimers --classes CC PP --seeds 0 1 2
    python benchmarks/accuracy/far_dimers.py labels --data biodimers
    python benchmarks/accuracy/far_dimers.py fixed --data biodimers --classes CC PP
    python benchmarks/accuracy/far_dimers.py table

``train``: one model per class (charged, polar, apolar partners), trained on the frames of
``lode6_train.xyz`` (ten, below 12.3 Å) and evaluated, as an exported file, on these and on those of
``lode6_test.xyz`` (three, up to 15 Å); adds to ``results/far_dimers.json`` what is not there yet.
With ``--fit-steps`` all weights of each model are then fitted in double precision, energies
weighing more (``fit_weights.py``), and it is evaluated again.

``labels``: whether the labels are of isolated dimers or of dimers in a periodic box, and of which
length: the least misfit of fixed charges on the atoms, for which neither model nor training
matters. ``fixed``: how well such charges carry over to the far frames, by the weight of energies.
"""

import argparse
import copy
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ase
import ase.io
import numpy as np
import torch
from fit_weights import levenberg_marquardt
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import NeighborListOptions, System, systems_to_torch
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.evaluate_model import evaluate_model
from metatrain.utils.hypers import init_with_defaults
from metatrain.utils.loss import LossSpecification
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from omegaconf import OmegaConf
from scipy.optimize import least_squares
from scipy.special import erfc

from metatrain_lorem.model import Lorem
from metatrain_lorem.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "far_dimers.json"
MODELS = ("long-range", "charges", "equilibration")
CLASSES = ("CC", "CA", "PA", "CP", "PP", "AA")
COULOMB_CONSTANT = 14.399645  # eV Å / e²

SIZE = {
    "cutoff": 5.0,
    "num_radial": 12,
    "num_features": 32,
    "num_spherical_features": 4,
    "max_degree": 3,
}
"""That of options/quickstart.yaml."""

CLOSE = 4
"""Frames of training that fixed charges alone do not explain: partners less than 4.7 Å apart."""

FIT_ENERGY_WEIGHT = 1000.0
"""Of energies per atom beside forces, in the fit after the training."""


def read_frames(folder: Path, label: str, isolated: bool) -> tuple[list[ase.Atoms], int]:
    """
    :param folder: with the two files
    :param label: class of dimers
    :param isolated: whether to take the dimers out of their box
    :return: frames with labels in ``info`` and ``arrays``, those of training first; their number
    """
    frames, numbers = [], []
    for split in ("train", "test"):
        found = [
            frame
            for frame in ase.io.read(folder / f"lode6_{split}.xyz", ":")
            if frame.info["label"] == label
        ]
        numbers.append(len(found))
        frames += found
    for frame in frames:
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        frame.calc = None
        frame.info["energy"], frame.arrays["forces"] = energy, forces
        if isolated:
            frame.pbc = False
            frame.cell = None
    return frames, numbers[0]


def dataset_options(path: Path) -> dict:
    """
    :param path: file with energies, forces and total charges
    :return: metatrain's options of the data set
    """
    source = {"read_from": str(path), "reader": "ase"}
    scalar = {"type": "scalar", "sample_kind": "system", "num_subtargets": 1, "description": ""}
    energy = {"quantity": "energy", "key": "energy", "unit": "eV", **source, **scalar}
    energy |= {"forces": {**source, "key": "forces"}, "stress": False, "virial": False}
    charge = {"quantity": "charge", "key": "charge", "unit": "e", **source, **scalar}
    options = {"systems": {**source, "length_unit": "angstrom"}}
    options |= {"targets": {"energy": energy}, "extra_data": {"charge": charge}}
    return OmegaConf.create(options)


def train(
    frames: list[ase.Atoms], seed: int, arguments: argparse.Namespace
) -> Iterator[tuple[bool, Lorem]]:
    """
    :param frames: to train on
    :param seed: of the weights
    :param arguments: of the command line
    :return: whether fitted, and the model: after the last epoch, where the learning rate is zero,
        then after the fit if asked for
    """
    hypers = get_default_hypers("lorem")
    model_hypers, training = copy.deepcopy(hypers["model"]), copy.deepcopy(hypers["training"])
    model_hypers.update(SIZE)
    model_hypers["long_range"].update({"max_degree": 1, "accuracy": 1e-4})
    if arguments.model == "charges":
        model_hypers["long_range"]["energy"] = "charges"
    enable = arguments.model == "equilibration"
    model_hypers["charge_equilibration"].update({"enable": enable, "accuracy": 1e-4})
    loss = copy.deepcopy(init_with_defaults(LossSpecification))
    forces = copy.deepcopy(loss)
    loss["weight"], loss["gradients"] = arguments.energy_weight, {"positions": forces}
    training |= {
        "batch_size": arguments.batch_size,
        "num_epochs": arguments.epochs,
        "learning_rate": 3e-3,
        "num_workers": 0,
        "loss": {"energy": loss},
        "log_interval": arguments.epochs,
        "checkpoint_interval": arguments.epochs,
        "best_model_metric": "rmse_prod",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.xyz"
        ase.io.write(path, frames, format="extxyz")
        dataset, targets, extra_data = get_dataset(dataset_options(path))
        info = DatasetInfo("angstrom", get_atomic_types(dataset), targets, extra_data)
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        model = Lorem(model_hypers, info)
        torch.set_default_dtype(torch.float64)
        devices = [torch.device("cpu")]
        trainer = Trainer(training)
        trainer.train(model, torch.float32, devices, [dataset], [dataset], folder)
    yield False, model
    if arguments.fit_steps:
        yield True, fitted(model, frames, arguments.fit_steps)


def fitted(model: Lorem, frames: list[ase.Atoms], steps: int) -> Lorem:
    """
    The sum of squares is ``FIT_ENERGY_WEIGHT`` times the mean square error of the energies per atom
    in meV², and that of the components of the forces in (meV/Å)².

    :param model: trained; changed in place
    :param frames: of one number of atoms, with labels
    :param steps: of the fit
    :return: the model in double precision, all its weights fitted to energies and forces
    """
    model = model.to(torch.float64).eval()
    energies = [frame.info["energy"] for frame in frames]
    forces = [torch.from_numpy(frame.arrays["forces"]) for frame in frames]
    systems = with_neighbors(frames, get_requested_neighbor_lists(model))
    targets = {"energy": model.dataset_info.targets["energy"]}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    of_energy = 1e3 * (FIT_ENERGY_WEIGHT / len(frames)) ** 0.5 / len(frames[0])
    of_forces = 1e3 / (len(frames) * forces[0].numel()) ** 0.5

    def residuals() -> Iterator[torch.Tensor]:
        for system, energy, label in zip(systems, energies, forces, strict=True):
            block = evaluate_model(model, [system], targets, is_training=True)["energy"].block()
            slope = block.gradient("positions").values.squeeze(-1)
            yield torch.cat(
                [
                    of_energy * (block.values.reshape(-1) - energy),
                    of_forces * (slope + label).reshape(-1),
                ]
            )

    for step, squares in enumerate(levenberg_marquardt(residuals, weights, steps)):
        print(f"step {step}: sum of squares {squares:.4f}", flush=True)
    return model


def errors(model: Lorem, frames: list[ase.Atoms]) -> tuple[np.ndarray, list[np.ndarray]]:
    """
    :param model: to be exported
    :param frames: with labels
    :return: errors of energies in meV and of forces in meV/Å, those of each frame
    """
    exported = model.eval().export()
    systems = with_neighbors(frames, get_requested_neighbor_lists(exported))
    targets = model.dataset_info.targets
    block = evaluate_model(exported, systems, targets, is_training=False)["energy"].block()
    energies = block.values.detach().squeeze(1).numpy()
    forces = -block.gradient("positions").values.detach().squeeze(-1).numpy()
    sizes = np.cumsum([len(frame) for frame in frames])[:-1]
    labels = np.array([frame.info["energy"] for frame in frames])
    return 1e3 * (energies - labels), [
        1e3 * (predicted - frame.arrays["forces"])
        for predicted, frame in zip(np.split(forces, sizes), frames, strict=True)
    ]


def with_neighbors(frames: list[ase.Atoms], requested: list[NeighborListOptions]) -> list[System]:
    """
    :param frames: with total charges
    :param requested: neighbour lists
    :return: systems with both
    """
    systems = [add_charge(s, f) for s, f in zip(systems_to_torch(frames), frames, strict=True)]
    return [get_system_with_neighbor_lists(system, requested) for system in systems]


def add_charge(system: System, frame: ase.Atoms) -> System:
    """
    :param system: to add the total charge to
    :param frame: the same structure
    :return: the system
    """
    zero = torch.tensor([[0]])
    value = torch.tensor([[float(frame.info["charge"])]], dtype=torch.float64)
    block = TensorBlock(value, Labels("system", zero), [], Labels("charge", zero))
    system.add_data("charge", TensorMap(Labels("_", zero), [block]))
    return system


def rms(values: list[np.ndarray]) -> float:
    squares = np.concatenate([np.ravel(x) ** 2 for x in values])
    return float(np.sqrt(squares.mean()))


def train_all(arguments: argparse.Namespace) -> None:
    """Train and evaluate what the results lack.

    :param arguments: of the command line
    """
    for seed in arguments.seeds:
        for label in arguments.classes:
            results = read_results()
            key = {
                "class": label,
                "model": arguments.model,
                "boundaries": "isolated" if arguments.isolated else "periodic",
                "epochs": arguments.epochs,
                "batch_size": arguments.batch_size,
                "energy_weight": arguments.energy_weight,
                "seed": seed,
            }
            keys = {False: key | {"fit_steps": 0}}
            if arguments.fit_steps:
                keys[True] = key | {"fit_steps": arguments.fit_steps}
                keys[True]["fit_energy_weight"] = FIT_ENERGY_WEIGHT
            if all(stored(results, key) for key in keys.values()):
                continue
            frames, num_near = read_frames(arguments.data, label, arguments.isolated)
            started = time.process_time()
            for is_fitted, model in train(frames[:num_near], seed, arguments):
                result = dict(keys[is_fitted])
                result["seconds"] = round(time.process_time() - started)
                energies, forces = errors(copy.deepcopy(model), frames)
                for part, chosen in (
                    ("near", slice(0, num_near)),
                    ("far", slice(num_near, None)),
                    ("all", slice(None)),
                ):
                    result[part] = [
                        round(rms([energies[chosen]]), 3),
                        round(rms(forces[chosen]), 3),
                    ]
                result["energies"] = [round(error, 2) for error in energies.tolist()]
                print(json.dumps(result), flush=True)
                results = read_results()
                if stored(results, keys[is_fitted]):
                    continue
                lines = ",\n".join(json.dumps(x) for x in [*results, result])
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(f"[\n{lines}\n]\n")


def stored(results: list[dict], key: dict) -> bool:
    return any(key.items() <= result.items() for result in results)


def read_results() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def print_table(arguments: argparse.Namespace) -> None:
    """Median and worst seed on the far frames, per class and way of training.

    :param arguments: of the command line
    """
    groups: dict[tuple, list[dict]] = {}
    for result in read_results():
        names = ("class", "boundaries", "model", "epochs", "batch_size", "energy_weight")
        names += ("fit_steps",)
        groups.setdefault(tuple(result[name] for name in names), []).append(result)
    print("class boundaries model epochs batch_size energy_weight fit_steps seeds")
    print("    far, median (worst): energy meV, forces meV/Å; all frames, median: the same")
    for key, group in sorted(groups.items()):
        far, every = (np.array([x[part] for x in group]) for part in ("far", "all"))
        median, worst, of_all = np.median(far, axis=0), far.max(axis=0), np.median(every, axis=0)
        print(*key, len(group))
        print(
            f"    {median[0]:.2f} ({worst[0]:.2f}), {median[1]:.2f} ({worst[1]:.2f}); "
            f"{of_all[0]:.2f}, {of_all[1]:.2f}"
        )


def box_matrices(positions: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Coulomb interaction of unit charges, by direct summation or Ewald's method.

    :param positions: ``[atoms, 3]`` Å
    :param length: of a cubic box in Å, infinite for isolated charges
    :return: energies of pairs ``[atoms, atoms]`` eV, forces on the first ``[atoms, atoms, 3]`` eV/Å
    """
    vectors = positions[:, None] - positions[None]
    # a smooth part of one Gaussian width in k-space; without images all is in the other part
    alpha = 6.0 / length
    if np.isfinite(length):
        vectors = vectors - length * np.round(vectors / length)
    distances = np.linalg.norm(vectors, axis=2) + np.eye(len(positions))
    slope = 2 * alpha / np.sqrt(np.pi) * np.exp(-((alpha * distances) ** 2))
    energies = erfc(alpha * distances) / distances
    forces = ((energies + slope) / distances**2)[..., None] * vectors
    if np.isfinite(length):
        steps = np.arange(-12, 13)
        k = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) * 2 * np.pi / length
        k = k[(k**2).sum(axis=1) > 0]
        squares = (k**2).sum(axis=1)
        weights = 4 * np.pi / length**3 * np.exp(-squares / (2 * alpha) ** 2) / squares
        phases = np.exp(1j * positions @ k.T)
        energies = energies + ((phases * weights) @ phases.conj().T).real
        forces = forces + np.stack(
            [((phases * weights * axis) @ phases.conj().T).imag for axis in k.T], axis=-1
        )
    return COULOMB_CONSTANT * energies, COULOMB_CONSTANT * forces


def charges_of(x: np.ndarray, frame: ase.Atoms) -> np.ndarray:
    """
    :param x: any numbers, one per atom
    :param frame: a dimer
    :return: the same, moved so that either partner has its charge
    """
    charges, size = x.copy(), frame.info["indexB"]
    for part, charge in ((slice(0, size), "chargeA"), (slice(size, len(x)), "chargeB")):
        charges[part] += frame.info[charge] / len(charges[part]) - charges[part].mean()
    return charges


def misfit(frames: list[ase.Atoms], length: float) -> float:
    """How badly fixed charges, with the right charge on either partner, explain the labels.

    :param frames: of rigid partners, so far apart that electrostatics is all
    :param length: of the box in Å
    :return: root mean square misfit of energies (in meV) and of net forces (in meV/Å)
    """
    size, total = frames[0].info["indexB"], len(frames[0])
    matrices = [box_matrices(frame.positions, length) for frame in frames]
    labels = np.array([frame.info["energy"] for frame in frames])
    net = np.array([frame.arrays["forces"][:size].sum(axis=0) for frame in frames])

    def residuals(x: np.ndarray) -> np.ndarray:
        charges = charges_of(x[:total], frames[0])
        a, b = charges[:size], charges[size:]
        energies = np.array([a @ pairs[:size, size:] @ b for pairs, _ in matrices])
        forces = np.array(
            [np.einsum("i,ijc,j->c", a, pairs[:size, size:], b) for _, pairs in matrices]
        )
        # an energy and a net force of the partner alone; charges of 1 e count like 0.2 meV
        energies, forces = energies + x[total] - labels + labels.mean(), forces + x[-3:] - net
        return np.concatenate([1e3 * energies, 1e3 * forces.ravel(), 0.2 * x[:total]])

    found = least_squares(residuals, np.zeros(total + 4) + 1e-3 * np.arange(total + 4) / total)
    return float(np.sqrt((found.fun[:-total] ** 2).mean()))


def extrapolated(frames: list[ase.Atoms], num_near: int, weight: float) -> tuple[float, float]:
    """Fixed charges fitted to energies and forces, with the weights of a training.

    :param frames: of rigid partners in a box of 30 Å, so far apart that electrostatics is all
    :param num_near: of the first ones, to which charges are fitted
    :param weight: of energies per atom beside forces
    :return: root mean square error of the energies of the other frames, meV, and of the forces of
        the near ones, meV/Å
    """
    size, total = frames[0].info["indexB"], len(frames[0])
    matrices = [box_matrices(frame.positions, 30.0) for frame in frames]
    of_pair = np.zeros((total, total))
    of_pair[:size, size:] = of_pair[size:, :size] = 1.0
    energies = np.array([frame.info["energy"] for frame in frames])
    labels = np.array([frame.arrays["forces"] for frame in frames])

    def errors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        charges = charges_of(x[:total], frames[0])
        pairs = [0.5 * charges @ (of_pair * matrix) @ charges for matrix, _ in matrices]
        acting = [np.einsum("i,ij,ijc,j->ic", charges, of_pair, f, charges) for _, f in matrices]
        # what acts within a partner is the same in all frames
        forces = np.array(acting) - labels
        shifted = np.array(pairs) + x[total] - energies + energies[:num_near].mean()
        return 1e3 * shifted, 1e3 * (forces - forces[:num_near].mean(axis=0))

    def residuals(x: np.ndarray) -> np.ndarray:
        of_energies, of_forces = errors(x)
        near = of_energies[:num_near] / total * np.sqrt(weight / num_near)
        forces = of_forces[:num_near].ravel() / np.sqrt(of_forces[:num_near].size)
        # charges of 1 e count like 0.001 meV/Å, as the labels leave some of them open
        return np.concatenate([near, forces, 1e-3 * x[:total]])

    found = least_squares(residuals, np.zeros(total + 1) + 1e-3 * np.arange(total + 1) / total)
    of_energies, of_forces = errors(found.x)
    return rms([of_energies[num_near:]]), rms([of_forces[:num_near]])


def print_fixed(arguments: argparse.Namespace) -> None:
    """Errors of fixed charges against the weight of energies.

    :param arguments: of the command line
    """
    for label in arguments.classes:
        frames, num_near = read_frames(arguments.data, label, isolated=False)
        for weight in (1e-3, 1.0, 100.0, 1000.0):
            energy, forces = extrapolated(frames[CLOSE:], num_near - CLOSE, weight)
            print(
                f"{label}, energy weight {weight:g}: {energy:.3f} meV far apart, "
                f"forces near {forces:.3f} meV/Å",
                flush=True,
            )


def print_labels(arguments: argparse.Namespace) -> None:
    """Misfit against the length of the box.

    :param arguments: of the command line
    """
    for label in arguments.classes:
        frames, _ = read_frames(arguments.data, label, isolated=False)
        for length in (26.0, 28.0, 29.0, 30.0, 31.0, 32.0, 36.0, 45.0, np.inf):
            print(f"{label} {length:5.1f} Å: {misfit(frames[CLOSE:], length):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=("train", "labels", "fixed", "table"))
    parser.add_argument("--data", type=Path, help="folder with lode6_train.xyz, lode6_test.xyz")
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=CLASSES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", choices=MODELS, default="charges")
    parser.add_argument("--isolated", action="store_true", help="take dimers out of their box")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--energy-weight", type=float, default=100.0)
    parser.add_argument(
        "--fit-steps",
        type=int,
        default=0,
        help=f"then fit all weights, energies weighing {FIT_ENERGY_WEIGHT:g} times as much",
    )
    arguments = parser.parse_args()
    if arguments.task != "table" and arguments.data is None:
        parser.error(f"{arguments.task} needs --data")
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    tasks = {"train": train_all, "labels": print_labels, "fixed": print_fixed, "table": print_table}
    tasks[arguments.task](arguments)


if __name__ == "__main__":
    main()
