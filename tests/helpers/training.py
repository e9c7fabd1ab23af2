"""A small data set, and what a trainer needs to fit it in seconds."""

import copy
from pathlib import Path

import ase
import numpy as np
import torch
from ase.calculators.morse import MorsePotential
from metatrain.utils.data import Dataset, DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.hypers import init_with_defaults
from metatrain.utils.loss import LossSpecification
from omegaconf import OmegaConf

from metatrain_lorem.documentation import ModelHypers
from metatrain_lorem.model import Lorem
from metatrain_lorem.trainer import Trainer
from metatrain_lorem.training.hypers import TrainerHypers

MODEL_HYPERS = {
    "cutoff": 3.0,
    "num_radial": 4,
    "num_features": 8,
    "num_spherical_features": 2,
    "num_species_features": 2,
    "max_degree": 2,
}


def structures(number: int) -> list[ase.Atoms]:
    """Clusters of 3 to 6 hydrogen and oxygen atoms with the energy of a pair potential."""
    rng = np.random.default_rng(1)
    frames = []
    grid = 1.3 * np.stack(np.meshgrid(*3 * [np.arange(2)]), axis=-1).reshape(-1, 3)
    for i in range(number):
        n = 3 + i % 4
        positions = grid[rng.permutation(8)[:n]] + rng.normal(scale=0.05, size=(n, 3))
        frame = ase.Atoms("HOHHOH"[:n], positions=positions)
        frame.calc = MorsePotential(epsilon=0.5, r0=1.3, rho0=2.5)
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        frame.calc = None
        frame.info["energy"] = energy - 3.0 * n
        frame.arrays["forces"] = forces
        frames.append(frame)
    return frames


def dataset_options(path: Path) -> dict:
    """The data section of metatrain's options for energies and forces in a file."""
    energy = {
        "quantity": "energy",
        "read_from": str(path),
        "reader": "ase",
        "key": "energy",
        "unit": "eV",
        "type": "scalar",
        "sample_kind": "system",
        "num_subtargets": 1,
        "description": "",
        "forces": {"read_from": str(path), "reader": "ase", "key": "forces"},
        "stress": False,
        "virial": False,
    }
    systems = {"read_from": str(path), "reader": "ase", "length_unit": "angstrom"}
    return OmegaConf.create({"systems": systems, "targets": {"energy": energy}})


def read(path: Path) -> tuple[Dataset, DatasetInfo]:
    """The data set in a file, and its description."""
    dataset, targets, _ = get_dataset(dataset_options(path))
    info = DatasetInfo("angstrom", get_atomic_types(dataset), targets)
    return dataset, info


def new_model(info: DatasetInfo, **hypers) -> Lorem:
    """A tiny model with reproducible weights."""
    torch.manual_seed(3)
    defaults = init_with_defaults(ModelHypers)
    return Lorem({**copy.deepcopy(defaults), **MODEL_HYPERS, **hypers}, info)


def new_trainer(**hypers) -> Trainer:
    """A trainer with small batches."""
    defaults = init_with_defaults(TrainerHypers)
    loss = init_with_defaults(LossSpecification)
    small = {"batch_size": 4, "num_epochs": 2, "num_workers": 0, "loss": {"energy": loss}}
    return Trainer({**copy.deepcopy(defaults), **small, **hypers})


def fit(trainer: Trainer, model: Lorem, train, valid, folder: Path, dtype=torch.float64) -> None:
    """Train on the CPU."""
    trainer.train(model, dtype, [torch.device("cpu")], [train], [valid], str(folder))
