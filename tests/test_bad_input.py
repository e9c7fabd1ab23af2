"""Input that can't be evaluated, or not trained on: each with an error that says what and where.

Labels that are infinite or not numbers, and too little memory, are in ``test_trainer.py``; targets
that can't be built in ``test_targets.py``; interrupted files in ``test_restart.py``.
"""

import copy
import logging

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelEvaluationOptions, ModelOutput, System, load_atomistic_model
from metatrain.cli.train import train_model
from metatrain.utils.architectures import check_architecture_options, get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.errors import ArchitectureError
from metatrain.utils.io import load_model, model_from_checkpoint
from metatrain.utils.pydantic import MetatrainValidationError
from omegaconf import OmegaConf

from metatrain_lorem.model import Lorem

pytestmark = pytest.mark.usefixtures("interpreted")

PAIR = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.2]]
FLAT = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [4.0, 4.0, 0.0]]
REFUSED = {
    "unknown species": (Atoms("ArH", PAIR), "structure 1 .*, atom 0: .* atomic type 18"),
    "one periodic direction": (
        Atoms("OH", PAIR, cell=[0, 0, 5], pbc=[False, False, True]),
        "structure 1 .* is periodic in one direction only",
    ),
    "no cell": (Atoms("OH", PAIR, pbc=True), "vectors of structure 1 .* span no volume"),
    "empty": (Atoms(), "structure 1 of the batch has no atoms"),
    "one spot": (
        Atoms("HHO", [PAIR[0], PAIR[0], PAIR[1]]),
        "structure 1 .*: atoms 0 and 1 are on one spot",
    ),
    "one spot, as an image": (
        Atoms("HHO", [PAIR[0], [0.0, 5.0, 0.0], PAIR[1]], cell=[5, 5, 5], pbc=True),
        "structure 1 .*: atoms 0 and 1 are on one spot",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_structures(lorem, name):
    model = lorem.new_model()
    frame, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        lorem.values(model, [lorem.frames["molecule"], frame])


def test_refused_structures_by_an_exported_model(lorem, tmp_path):
    lorem.new_model().export().save(str(tmp_path / "model.pt"))
    model = load_atomistic_model(str(tmp_path / "model.pt"))
    outputs = {"energy": ModelOutput(sample_kind="system")}
    options = ModelEvaluationOptions(length_unit="angstrom", outputs=outputs)
    for name, (frame, message) in REFUSED.items():
        if name == "unknown species":  # found by metatomic
            message = "does not support the atomic type '18'"
        batch = lorem.systems(model, [lorem.frames["molecule"], frame])
        with pytest.raises((ValueError, torch.jit.Error), match=message):
            model(batch, options, check_consistency=True)


@pytest.mark.parametrize(
    "cell, pbc, message",
    [
        (FLAT, [True, True, True], "structure 0 .* span no volume"),
        ([FLAT[0], FLAT[0], [0.0] * 3], [True, True, False], "structure 0 .* span no area"),
        (np.full((3, 3), np.nan), [True, True, True], "structure 0 .* span no volume"),
    ],
)
def test_cells_that_the_neighbour_list_of_an_engine_let_pass(lorem, cell, pbc, message):
    model = lorem.new_model()
    system = with_pairs(model, PAIR, cell, pbc, [])
    with pytest.raises(ValueError, match=message):
        model([system], {"energy": ModelOutput(sample_kind="system")})


def test_coordinates_that_are_not_numbers(lorem):
    model = lorem.new_model()
    positions = [PAIR[0], [0.0, 0.0, np.nan]]
    system = with_pairs(model, positions, np.zeros((3, 3)), [False] * 3, [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="atoms 0 and 1 .* coordinates are not numbers"):
        model([system], {"energy": ModelOutput(sample_kind="system")})


def with_pairs(model, positions, cell, pbc, pairs):
    """Oxygen atoms with a neighbour list that is given instead of computed."""
    positions = torch.tensor(positions, dtype=torch.float64)
    cell = torch.tensor(cell, dtype=torch.float64)
    types = torch.full((len(positions),), 8)
    system = System(types, positions, cell, torch.tensor(pbc))
    pairs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    samples = torch.cat([pairs, torch.zeros(len(pairs), 3, dtype=pairs.dtype)], dim=1)
    names = ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"]
    block = TensorBlock(
        (positions[pairs[:, 1]] - positions[pairs[:, 0]]).unsqueeze(-1),
        Labels(names, samples),
        [Labels.range("xyz", 3)],
        Labels.range("distance", 1),
    )
    system.add_neighbor_list(model.requested_nl, block)
    return system


def test_spin_multiplicity_of_a_structure(lorem):
    model = lorem.new_model()
    system = lorem.systems(model, [lorem.frames["molecule"]])[0]
    block = TensorBlock(
        torch.ones(1, 1, dtype=torch.float64),
        Labels(["system"], torch.tensor([[0]])),
        [],
        Labels.range("spin_multiplicity", 1),
    )
    system.add_data("spin_multiplicity", TensorMap(Labels.single(), [block]))
    with pytest.raises(ValueError, match="structure 0 .* has a spin multiplicity"):
        model([system], {"energy": ModelOutput(sample_kind="system")})


EQUILIBRATED = {"charge_equilibration": {"enable": True}, "long_range": {"enable": False}}


@pytest.mark.parametrize("name", ["one periodic direction", "no cell", "one spot"])
def test_refused_structures_with_charge_equilibration(lorem, name):
    model = lorem.new_model(**EQUILIBRATED)
    frame, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        lorem.values(model, [lorem.frames["molecule"], frame])


@pytest.mark.parametrize("atomic_type", [0, 97, 118])
def test_species_without_covalent_radius(atomic_type):
    hypers = get_default_hypers("lorem")["model"]
    targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    info = DatasetInfo("angstrom", [1, atomic_type], targets)
    Lorem(hypers, info)
    hypers["charge_equilibration"]["enable"] = True
    with pytest.raises(ValueError, match=f"atomic type {atomic_type} has none .1 to 96"):
        Lorem(hypers, info)


@pytest.mark.parametrize(
    "name, section, message",
    [
        ("charge", {"sample_kind": "atom"}, "target 'charge': .*'mtt::atomic_charge'"),
        ("mtt::charge", {"sample_kind": "atom"}, "target 'mtt::charge': .*'mtt::atomic_charge'"),
        ("mtt::atomic_charge", {}, "must be one scalar per atom in e"),
        ("mtt::atomic_charge", {"sample_kind": "atom", "num_subtargets": 2}, "must be one scalar"),
        ("mtt::atomic_charge", {"sample_kind": "atom", "unit": "eV"}, "must be one scalar"),
        ("mtt::dipole_moment", {}, "must be one vector per structure"),
        ("mtt::dipole_moment", {"type": {"cartesian": {"rank": 2}}}, "must be one vector"),
        (
            "mtt::dipole_moment",
            {"type": {"cartesian": {"rank": 1}}, "unit": "eV"},
            "its unit 'eV' is none of a dipole moment",
        ),
    ],
)
def test_targets_of_charges(lorem, name, section, message):
    section = {"type": "scalar", "sample_kind": "system", "num_subtargets": 1, **section}
    target = get_generic_target_info(name, {"quantity": "", "unit": "", **section})
    with pytest.raises(ValueError, match=message):
        lorem.new_model({name: target}, **EQUILIBRATED)


def test_wire_without_long_range(lorem):
    """One periodic direction is fine for a short-range model: a ring of images adds nothing."""
    model = lorem.new_model(long_range={"enable": False})
    wire = Atoms("OH", PAIR, cell=[0, 0, 20], pbc=[False, False, True])
    torch.testing.assert_close(
        lorem.values(model, [wire]), lorem.values(model, [Atoms("OH", PAIR)])
    )


@pytest.mark.parametrize("num_message_passing", [0, 1])
@pytest.mark.parametrize("enable", [True, False])
@pytest.mark.parametrize("pbc", [[False] * 3, [True, True, False], [True] * 3])
def test_single_atom(lorem, pbc, enable, num_message_passing):
    """No force, and a finite second derivative, which training on forces needs."""
    model = lorem.new_model(long_range={"enable": enable}, num_message_passing=num_message_passing)
    # without neighbours within the cutoff
    system = lorem.systems(model, [Atoms("O", cell=[9, 9, 9], pbc=pbc)])[0]
    system.positions.requires_grad_(True)
    energy = model([system], {"energy": ModelOutput(sample_kind="system")})["energy"][0].values
    (gradient,) = torch.autograd.grad(energy.sum(), system.positions, create_graph=True)
    assert torch.isfinite(energy).all()
    assert gradient.abs().max() < 1e-12
    parameters = list(model.parameters())
    for second in torch.autograd.grad(gradient.pow(2).sum(), parameters, allow_unused=True):
        assert second is None or torch.isfinite(second).all()


@pytest.mark.parametrize(
    "hypers, message",
    [
        ({"num_features": 0}, "num_features: 0"),
        ({"num_radial": -1}, "num_radial: -1"),
        ({"max_degree": -1}, "max_degree: -1"),
        ({"long_range": {"max_degree": 4}}, "long_range.max_degree: 4 .* max_degree"),
        (
            {"long_range": {"energy": "charges", "exponents": [1, 6]}},
            r"long_range.exponents: \[1, 6\] needs `energy: features`",
        ),
        (
            {"long_range": {"energy": "charges"}, "charge_equilibration": {"enable": True}},
            "long_range.energy: charges beside charge_equilibration",
        ),
        ({"long_range": {"accuracy": 0.0}}, "long_range.accuracy: 0.0"),
        ({"long_range": {"accuracy": 1.0}}, "long_range.accuracy: 1.0"),
        ({"charge_equilibration": {"accuracy": 1.0}}, "charge_equilibration.accuracy: 1.0"),
        ({"charge_equilibration": {"tolerance": 0.0}}, "charge_equilibration.tolerance: 0.0"),
        ({"charge_equilibration": {"max_iterations": 0}}, "charge_equilibration.max_iterations: 0"),
        ({"charge_equilibration": {"epsilon_infinity": 0.9}}, "epsilon_infinity: 0.9 is no"),
        (
            {
                "charge_equilibration": {"enable": True, "after_long_range": True},
                "long_range": {"enable": False},
            },
            "after_long_range: true without long_range",
        ),
        ({"cutoff": -1.0}, "cutoff"),
        ({"cutoff": 0.0, "long_range": {"enable": False}}, "cutoff"),
        ({"cutoff_function": "shifted"}, "shifted"),
        ({"radial_basis": "fourier"}, "fourier"),
    ],
)
def test_hypers_out_of_range(lorem, hypers, message):
    with pytest.raises(ValueError, match=message):
        lorem.new_model(**hypers)


@pytest.mark.parametrize("part", ["model", "training"])
def test_unknown_hyper(part):
    hypers = get_default_hypers("lorem")
    hypers[part]["learning_rat"] = 1.0
    with pytest.raises(
        MetatrainValidationError, match=f"Unrecognized option 'learning_rat' for {part}"
    ):
        check_architecture_options("lorem", hypers)


def test_checkpoint_of_a_newer_version(lorem):
    checkpoint = lorem.new_model().get_checkpoint()
    checkpoint["model_ckpt_version"] += 1
    with pytest.raises(RuntimeError, match="version 8, .* only supports up to version 7"):
        model_from_checkpoint(checkpoint, context="export")


@pytest.mark.parametrize("length", [0, 1000, -1000])
def test_truncated_checkpoint(lorem, tmp_path, length):
    path = tmp_path / "model.ckpt"
    torch.save(lorem.new_model().get_checkpoint(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(RuntimeError, match="your checkpoint file is corrupted"):
        load_model(path)


OPTIONS = {
    "seed": 0,
    "device": "cpu",
    "base_precision": 64,
    "architecture": {
        "name": "lorem",
        "model": {"num_radial": 4, "num_features": 8, "num_spherical_features": 2, "max_degree": 2},
        "training": {"num_epochs": 1, "batch_size": 2, "num_workers": 0},
    },
    "training_set": {
        "systems": {"read_from": "training.xyz", "length_unit": "angstrom"},
        "targets": {"energy": {"key": "U0", "unit": "eV"}},
    },
    "validation_set": {
        "systems": {"read_from": "validation.xyz", "length_unit": "angstrom"},
        "targets": {"energy": {"key": "U0", "unit": "eV"}},
    },
}


def train(folder, monkeypatch, change):
    """Run ``mtt train`` after a change to options and structures."""
    options = copy.deepcopy(OPTIONS)
    frames = [Atoms("OHH", [*PAIR, [0, 1, 0.1 * i]], info={"U0": 0.1 * i}) for i in range(8)]
    change(options, frames)
    monkeypatch.chdir(folder)
    ase.io.write("training.xyz", frames[:6])
    ase.io.write("validation.xyz", frames[6:])
    train_model(OmegaConf.create(options), checkpoint_dir=".", output="model.pt")


@pytest.mark.parametrize("where, unit", [("targets", "eVV"), ("systems", "parsec")])
def test_wrong_unit(tmp_path, monkeypatch, where, unit):
    def change(options, frames):
        if where == "targets":
            options["training_set"]["targets"]["energy"]["unit"] = unit
        else:
            options["training_set"]["systems"]["length_unit"] = unit

    with pytest.raises(ValueError, match=unit):
        train(tmp_path, monkeypatch, change)


@pytest.mark.parametrize("number, split", [(2, "training"), (6, "validation")])
def test_empty_structure_in_the_data(tmp_path, monkeypatch, number, split):
    def change(options, frames):
        frames[number] = Atoms(info={"U0": 0.0})

    index = number if split == "training" else number - 6
    with pytest.raises(
        ArchitectureError, match=rf"Structure {index} of the {split} set \({split}.xyz\) has no"
    ):
        train(tmp_path, monkeypatch, change)


def test_spin_multiplicity_in_the_data(tmp_path, monkeypatch):
    def change(options, frames):
        for frame in frames:
            frame.info["spin_multiplicity"] = 1.0
        for split in ("training", "validation"):
            options[f"{split}_set"]["extra_data"] = {
                "spin_multiplicity": {
                    "read_from": f"{split}.xyz",
                    "key": "spin_multiplicity",
                    "type": "scalar",
                    "sample_kind": "system",
                }
            }

    with pytest.raises(ArchitectureError, match="spin_multiplicity is not supported"):
        train(tmp_path, monkeypatch, change)


def test_good_data_trains(tmp_path, monkeypatch):
    """The other tests fail for what they change, not for something else."""
    train(tmp_path, monkeypatch, lambda options, frames: None)
    assert (tmp_path / "model.pt").is_file()


def test_lengths_in_bohr_are_announced(caplog):
    """The cutoff is a length in the unit of the data, whatever its default was meant for."""
    info = DatasetInfo("bohr", [1], {"energy": get_energy_target_info("energy", {"unit": "eV"})})
    with caplog.at_level(logging.WARNING):
        Lorem(get_default_hypers("lorem")["model"], info)
    assert "lengths are in bohr: so is architecture.model.cutoff, 5.0" in caplog.text
