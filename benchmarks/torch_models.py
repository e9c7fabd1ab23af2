"""The models of the benchmarks by name, and their files."""

import copy
import importlib
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from common import run_worker
from metatrain.utils.architectures import get_default_hypers, import_architecture
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import TargetInfo, get_energy_target_info
from metatrain.utils.io import load_model

from metatrain_lorem.commands.convert_lorem_jax.conversion import convert
from metatrain_lorem.trainer import Trainer

SODIUM, CHLORINE = 11, 17

COARSE_WAVELENGTH = 1.0
"""Of lorem-jax's Ewald grid with the accuracy of ours, Å. For 216 atoms in double precision the
forces of lorem-exported are 6.7e-8 eV/Å (rms) from those of a converged Coulomb sum. Those of
lorem-jax change by 6.3e-8 eV/Å from its default, 0.625 Å, to 1.0 Å; by 4e-10 to 0.8 Å, 3.0e-7 to
1.2 Å, 1.3e-6 to 1.35 Å and 2.5e-5 to 1.5 Å. (By the pairs beyond the cutoff it is 3.4e-7 eV/Å from
the converged sum on all these grids.)"""


class Model(NamedTuple):
    """How to get a model.

    :param architecture: name in metatrain, or ``lorem-jax``
    :param hypers: what differs from its default hypers; of a section, what differs inside
    :param exported: whether it is evaluated as an exported model
    :param wavelength: of lorem-jax's Ewald grid, Å, None for its default
    """

    architecture: str
    hypers: dict = {}
    exported: bool = True
    wavelength: float | None = None


SHORT_RANGE = {"long_range": {"enable": False}}
ENABLED = {"enable": True}
LONG_RANGE = {"long_range": ENABLED}
MODELS = {
    "lorem": Model("lorem", exported=False),
    "lorem-exported": Model("lorem"),
    "lorem-qeq-exported": Model("lorem", {"charge_equilibration": ENABLED}),
    "lorem-qeq-sr-exported": Model("lorem", {**SHORT_RANGE, "charge_equilibration": ENABLED}),
    "lorem-sr-exported": Model("lorem", SHORT_RANGE),
    "lorem-jax": Model("lorem-jax"),
    "lorem-jax-coarse": Model("lorem-jax", wavelength=COARSE_WAVELENGTH),
    "lorem-jax-sr": Model("lorem-jax", SHORT_RANGE),
    "pet": Model("pet"),
    "pet-lr": Model("pet", LONG_RANGE),
    "soap-bpnn": Model("soap_bpnn"),
    "soap-bpnn-lr": Model("soap_bpnn", LONG_RANGE),
    "mace": Model("experimental.mace"),
}

SAME_WEIGHTS = {
    "lorem-jax": "lorem-exported",
    "lorem-jax-coarse": "lorem-exported",
    "lorem-jax-sr": "lorem-sr-exported",
}
"""Models of lorem-jax, and ours with the weights of theirs."""


def new_model(name: str, atomic_types: list[int], targets: dict[str, TargetInfo]):
    """A model with random weights.

    :param name: key of ``MODELS``
    :param atomic_types: atomic numbers
    :param targets: targets
    """
    architecture, changes = MODELS[name].architecture, MODELS[name].hypers
    hypers = copy.deepcopy(get_default_hypers(architecture)["model"])
    for key, value in changes.items():
        hypers[key] = {**hypers[key], **value} if isinstance(value, dict) else value
    torch.manual_seed(0)
    model = import_architecture(architecture).__model__(
        hypers, DatasetInfo("angstrom", atomic_types, targets)
    )
    if name.startswith("lorem-qeq"):
        # charges around 0.6 e
        chi = torch.where(torch.tensor(atomic_types) == CHLORINE, 0.6, -0.6)
        model.charge_equilibration.species_electronegativity.data = chi
    return model


def missing(name: str) -> str:
    """What stops a model of this Python from being built; empty if nothing does."""
    needed = ["torchpme"] if MODELS[name].hypers == LONG_RANGE else []
    architecture = MODELS[name].architecture
    if architecture == "lorem-jax":
        return ""
    try:
        import_architecture(architecture)
        for module in needed:
            importlib.import_module(module)
    except ImportError as error:
        return " ".join(str(error).split())
    return ""


def write_models(
    names: list[str], folder: Path, jax_python: str, threads: int, limit: float
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the files of models, those of lorem-jax and of ours with the same weights.

    :param names: keys of ``MODELS``
    :param folder: folder for the files
    :param jax_python: interpreter that has lorem-jax
    :param threads: of the process that makes lorem-jax's weights
    :param limit: its memory, bytes
    :return: path of each model that can be evaluated; reasons why others can't
    """
    warnings.simplefilter("ignore")
    paths: dict[str, str] = {}
    skipped = {name: reason for name in names if (reason := missing(name))}
    for long_range in (True, False):
        jax_names = [
            n
            for n in names
            if MODELS[n].architecture == "lorem-jax"
            and (MODELS[n].hypers == SHORT_RANGE) != long_range
        ]
        suffix = "lorem" if long_range else "lorem-sr"
        own_names = [n for n in (suffix, f"{suffix}-exported") if n in names]
        checkpoint = folder / f"{suffix}.ckpt"
        if jax_names:
            task = {
                "task": "checkpoint",
                "folder": str(folder / f"jax-{suffix}"),
                "long_range": long_range,
                "threads": threads,
            }
            result = run_worker("jax_worker.py", task, 300, limit, jax_python)
            if "failed" in result:
                skipped.update({name: result["failed"] for name in jax_names})
                jax_names = []
            paths.update({name: task["folder"] for name in jax_names})
        if own_names:
            if jax_names:
                convert(paths[jax_names[0]], checkpoint)
            else:
                model = new_model(own_names[0], [SODIUM, CHLORINE], _energy())
                trainer = Trainer(get_default_hypers("lorem")["training"])
                trainer.save_checkpoint(model, checkpoint)
        for name in own_names:
            paths[name] = str(checkpoint)
            if MODELS[name].exported:
                paths[name] = str(folder / f"{name}.pt")
                _save(load_model(checkpoint), paths[name])
    for name in names:
        if name not in paths and name not in skipped:
            paths[name] = str(folder / f"{name}.pt")
            _save(new_model(name, [SODIUM, CHLORINE], _energy()), paths[name])
    return paths, skipped


def extensions_folder(path: str) -> str:
    """Where the libraries lie that exported models need, SOAP-BPNN's for example."""
    return str(Path(path).with_suffix(".extensions"))


def _save(model, path: str) -> None:
    model.eval().export().save(path, collect_extensions=extensions_folder(path))


def _energy() -> dict[str, TargetInfo]:
    return {"energy": get_energy_target_info("energy", {"unit": "eV"})}


def no_such_model(names: list[str]) -> None:
    """Refuse unknown names.

    :raises SystemExit: naming them
    """
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        sys.exit(f"unknown models {', '.join(unknown)}: choose among {', '.join(MODELS)}")
