"""Every file in ``options/`` trains two epochs on a few structures, so that none goes stale."""

import re
import shutil
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator
from metatrain.__main__ import main
from omegaconf import OmegaConf

from metatrain_lorem.commands.report.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("interpreted")

REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONS = REPOSITORY / "options"
FILES = sorted(path.name for path in OPTIONS.glob("*.yaml"))
SMALLER = {
    "model.num_radial": 4,
    "model.num_features": 8,
    "model.num_spherical_features": 2,
    "model.max_degree": 2,
    "training.num_epochs": 2,
    "training.num_workers": 0,
}


def write_first_frames(source: Path, destination: Path, count: int) -> None:
    """Copy the first frames of an extended XYZ file."""
    lines = source.read_text().splitlines()
    end = 0
    for _ in range(count):
        end += int(lines[end]) + 2
    destination.write_text("\n".join(lines[:end]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place like the repository's root, with less data."""
    root = tmp_path_factory.mktemp("root")
    (root / "options" / "data").mkdir(parents=True)
    for name in FILES:
        shutil.copy(OPTIONS / name, root / "options")
    data = list((OPTIONS / "data").glob("*.xyz"))
    assert len(data) == 8
    for path in data:
        count = 2 if "crystal" in path.name else 20
        write_first_frames(path, root / "options" / "data" / path.name, count)
    return root


def train(folder: Path, name: str, *more: str) -> Path:
    """Run ``mtt train`` on an options file, with a smaller model.

    :return: the checkpoint
    """
    overrides = [f"architecture.{key}={value}" for key, value in SMALLER.items()]
    model = folder / Path(name).with_suffix(".pt").name
    arguments = [f"options/{name}", "-o", model.name]
    for override in (*overrides, *more):
        arguments += ["-r", override]
    mtt_train(folder, *arguments)
    assert model.is_file()
    return model.with_suffix(".ckpt")


def mtt_train(folder: Path, *arguments: str) -> None:
    """Run ``mtt train`` in this process, where everything is imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["mtt", "train", *arguments])
        main()


@pytest.fixture(scope="module")
def long_range(folder):
    return train(folder, "long-range.yaml")


def test_long_range(long_range):
    checkpoint = torch.load(long_range, weights_only=False)
    assert checkpoint["architecture_name"] == "lorem"


def test_fine_tuning(folder, long_range):
    # another seed than the first one's, which would give the same start without any checkpoint
    read_from = f"architecture.training.finetune.read_from={long_range.name}"
    tuned = train(folder, "fine-tuning.yaml", read_from, "seed=7")
    before, after = (
        torch.load(path, weights_only=False)["best_model_state_dict"]
        for path in (long_range, tuned)
    )
    # two epochs at a small learning rate stay near the start; other random weights would not
    weight = next(name for name in before if before[name].ndim == 2 and "mlp" in name.lower())
    assert not torch.equal(before[weight], after[weight])
    assert torch.allclose(before[weight], after[weight], atol=0.02)


@pytest.fixture(scope="module")
def quickstart(folder):
    return train(folder, "quickstart.yaml")


def test_uncertainties(folder, quickstart):
    """Of the quickstart's model, whose total charges LLPR passes on."""
    checkpoint = f"architecture.training.model_checkpoint={quickstart.name}"
    mtt_train(folder, "options/llpr.yaml", "-o", "llpr.pt", "-r", checkpoint)
    frames = ase.io.read(folder / "options" / "data" / "nacl-clusters-test.xyz", ":")
    requested = {"energy_uncertainty": ModelOutput(unit="eV", sample_kind="system")}
    results = MetatomicCalculator(folder / "llpr.pt").run_model(frames, requested)
    uncertainties = results["energy_uncertainty"].block().values
    assert uncertainties.shape == (20, 1) and (uncertainties > 0).all()


SMALL_PET = {"d_pet": 8, "d_node": 8, "d_head": 8, "d_feedforward": 8, "num_heads": 1}
"""Not more than two epochs of a small one."""


def test_pet_with_charges(folder):
    smaller = [f"architecture.model.backbone.hypers.{k}={v}" for k, v in SMALL_PET.items()]
    train(folder, "pet-with-charges.yaml", *smaller)


def test_charges_for_a_trained_pet(folder):
    overrides = [f"architecture.model.{key}={value}" for key, value in SMALL_PET.items()]
    overrides += ["architecture.training.num_epochs=2", "architecture.training.num_workers=0"]
    arguments = [word for override in overrides for word in ("-r", override)]
    mtt_train(folder, "options/pet.yaml", "-o", "pet.pt", *arguments)
    tuned = train(folder, "finetune-pet.yaml")
    checkpoint = torch.load(tuned, weights_only=False)
    assert checkpoint["model_data"]["backbone"]["architecture_name"] == "pet"


OTHERS = {
    "long-range.yaml",
    "fine-tuning.yaml",
    "quickstart.yaml",
    "llpr.yaml",
    "pet.yaml",
    "pet-with-charges.yaml",
    "finetune-pet.yaml",
}


@pytest.mark.parametrize("name", sorted(set(FILES) - OTHERS))
def test_trains(folder, name):
    more = ["architecture.model.num_spherical_features=3"] if name == "born-charges.yaml" else []
    train(folder, name, *more)


def options(name):
    return OmegaConf.to_container(OmegaConf.load(OPTIONS / name))


def test_only_the_long_range_block_differs():
    """The comparison of long-range and short-range is one of the long-range block alone."""
    long_range, short_range = options("long-range.yaml"), options("short-range.yaml")
    assert long_range["architecture"]["model"].pop("long_range") != {"enable": False}
    assert short_range["architecture"]["model"].pop("long_range") == {"enable": False}
    assert long_range == short_range


def test_only_charges_differ():
    """Quickstart and long-range differ in charge equilibration and its data."""
    quickstart, long_range = options("quickstart.yaml"), options("long-range.yaml")
    architecture = quickstart["architecture"]
    assert architecture["model"].pop("charge_equilibration") == {"enable": True}
    assert architecture["training"]["loss"].pop("mtt::atomic_charge")
    for split in ("training_set", "validation_set", "test_set"):
        assert quickstart[split]["targets"].pop("mtt::atomic_charge")["key"] == "atomic_charge"
        assert quickstart[split].pop("extra_data")["charge"]["key"] == "charge"
    assert quickstart == long_range


def test_only_size_and_steps_differ():
    """The two files to start from; the small one is nearly as small as the quickstart's."""
    small, default = options("small.yaml"), options("default.yaml")
    size = small["architecture"].pop("model")
    quickstart = options("long-range.yaml")["architecture"]["model"]
    assert size.pop("long_range") == default["architecture"]["model"].pop("long_range")
    assert quickstart.pop("long_range") == {"max_degree": 1} and size == quickstart
    assert default["architecture"].pop("model").keys() <= size.keys()
    # what is measured of the small one only
    assert small["architecture"]["training"].pop("final_energy_factor") == 100.0
    for file in (small, default):
        for key in ("num_epochs", "learning_rate"):
            file["architecture"]["training"].pop(key)
    assert small == {key: value for key, value in default.items() if key != "base_precision"}


def rms(difference):
    return np.sqrt(np.mean(difference**2))


@pytest.mark.slow
def test_quickstart_is_as_good_as_the_readme_says(tmp_path):
    """Errors for the test set, in meV and me, and by how much those of two runs may differ."""
    shutil.copytree(OPTIONS, tmp_path / "options")
    mtt_train(tmp_path, "options/quickstart.yaml")
    test = evaluate(tmp_path / "model.pt", OPTIONS / "data" / "nacl-clusters-test.xyz")
    energies = (test.predicted_energy - test.energy) / test.composition.sum(axis=1)
    errors = {
        "meV/atom": rms(energies),
        "meV/Å": rms(test.predicted_forces - test.forces),
        "me": rms(test.predicted_atomic_charges - test.atomic_charges),
    }
    readme = (REPOSITORY / "README.md").read_text()
    row = re.search(r"^\|.*options/quickstart\.yaml.*$", readme, re.MULTILINE).group()
    for (unit, error), scatter in zip(errors.items(), (1.7, 1.1, 1.1), strict=True):
        claimed = float(re.search(rf"([\d.]+) {unit} \|", row).group(1))
        print(f"{1000 * error:.2f} {unit}, {claimed} in README.md")
        assert claimed / scatter < 1000 * error < claimed * scatter
