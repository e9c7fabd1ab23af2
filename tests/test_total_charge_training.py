"""Training with total charges, charges and dipoles."""

import copy
import logging
import math

import ase.io
import numpy as np
import pytest
import torch
from helpers.training import MODEL_HYPERS
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.io import model_from_checkpoint
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from omegaconf import OmegaConf
from torch.utils.data import Subset

from metatrain_lorem.model import Lorem
from metatrain_lorem.trainer import Trainer
from metatrain_lorem.training.total_charges import fill_missing

CHARGE, DIPOLE = "mtt::atomic_charge", "mtt::dipole_moment"
SCALAR = {"quantity": "", "unit": "", "type": "scalar", "num_subtargets": 1, "description": ""}
SECTIONS = {
    "charge": {"key": "charge", "sample_kind": "system"},
    CHARGE: {"key": "atomic_charge", "sample_kind": "atom"},
    DIPOLE: {"key": "dipole_moment", "sample_kind": "system", "type": {"cartesian": {"rank": 1}}},
}


def charged_structures(small, number, total_charges):
    """Structures with total charges, and charges and dipoles that fit to them."""
    frames = small.structures(number)
    for frame, total in zip(frames, total_charges, strict=True):
        q = np.where(frame.numbers == 8, -0.4, 0.2)
        q += (np.nan_to_num(total) - q.sum()) / len(frame)
        frame.arrays["atomic_charge"] = q
        frame.info["dipole_moment"] = q @ (frame.positions - frame.get_center_of_mass())
        frame.info["charge"] = total
    return frames


def read(small, path, names=(), energy=True, **changes):
    """The data set in a file, with some of SECTIONS, and its description."""
    options = OmegaConf.to_container(small.dataset_options(path))
    source = {"read_from": str(path), "reader": "ase"}
    sections = {name: {**SCALAR, **source, **SECTIONS[name]} for name in names}
    extra_data = {name: sections.pop(name) | changes for name in names if name == "charge"}
    targets = {**(options["targets"] if energy else {}), **sections}
    dataset, targets, extra_data = get_dataset(
        OmegaConf.create({**options, "targets": targets, "extra_data": extra_data})
    )
    return dataset, DatasetInfo("angstrom", get_atomic_types(dataset), targets, extra_data)


def new_model(info, equilibrated=False) -> Lorem:
    hypers = copy.deepcopy(get_default_hypers("lorem")["model"])
    hypers["charge_equilibration"]["enable"] = equilibrated
    torch.manual_seed(3)
    return Lorem({**hypers, **MODEL_HYPERS}, info)


def trainer(small, info, **hypers) -> Trainer:
    loss = small.new_trainer().hypers["loss"]["energy"]
    loss = {name: copy.deepcopy(loss) for name in info.targets}
    return small.new_trainer(**{"num_epochs": 1, "loss": loss, **hypers})


def train(trainer, model, train_datasets, val_datasets, folder):
    cpu = torch.device("cpu")
    trainer.train(model, torch.float64, [cpu], train_datasets, val_datasets, str(folder))


def test_total_charges_reach_the_model(small, tmp_path, caplog, monkeypatch):
    """Two data sets: one with total charges, two of them missing, one without."""
    caplog.set_level(logging.INFO)
    totals = [-1.0, -2.0, math.nan, -0.5, -3.0, -1.0, math.nan, -1.0, 2.5, 0.0, 1.0, -1.0]
    path = tmp_path / "charged.xyz"
    ase.io.write(path, charged_structures(small, 12, totals))
    charged, info = read(small, path, ["charge"])
    neutral, _ = read(small, small.file)
    model = new_model(info)

    seen, forward = {}, model.forward

    def record(systems, *arguments):
        for system in systems:
            total = system.get_data("charge").block().values.item()
            seen.setdefault(system.positions[0, 0].item(), set()).add(total)
        return forward(systems, *arguments)

    monkeypatch.setattr(model, "forward", record)
    train_sets = [Subset(charged, range(8)), Subset(neutral, range(12, 20))]
    valid = Subset(charged, range(8, 12))
    train(trainer(small, info), model, train_sets, [valid], tmp_path)
    expected = {
        charged[i].system.positions[0, 0].item(): {0.0 if math.isnan(q) else q}
        for i, q in enumerate(totals)
    }
    for i in range(12, 20):
        expected[neutral[i].system.positions[0, 0].item()] = {0.0}
    assert seen == expected
    assert model.total_charge_range.tolist() == [-3.0, 0.0]
    lines = [m for m in caplog.messages if m.startswith("Total charge:")]
    assert len(lines) == 1 and "10 of 16 structures in the training set have none" in lines[0]


def test_trained_range_grows_on_restart(small, tmp_path):
    path = tmp_path / "charged.xyz"
    ase.io.write(path, charged_structures(small, 12, [-2.0] + 11 * [0.0]))
    dataset, info = read(small, path, ["charge"])
    model, first = new_model(info), trainer(small, info)
    train(first, model, [dataset], [dataset], tmp_path)
    checkpoint = torch.load(tmp_path / "model_0.ckpt", weights_only=False)
    ase.io.write(path, charged_structures(small, 12, [1.5] + 11 * [0.0]))
    dataset, info = read(small, path, ["charge"])
    model = model_from_checkpoint(checkpoint, context="restart").restart(info)
    second = Trainer.load_checkpoint(checkpoint, {**first.hypers, "num_epochs": 2}, "restart")
    train(second, model, [dataset], [dataset], tmp_path)
    assert model.total_charge_range.tolist() == [-2.0, 1.5]


def test_total_charge_that_is_not_one_number(small, tmp_path):
    path = tmp_path / "charged.xyz"
    ase.io.write(path, charged_structures(small, 8, 8 * [1.0]))
    dataset, info = read(small, path, ["charge"], sample_kind="atom", key="atomic_charge")
    with pytest.raises(ValueError, match="charge is the total charge, one number per structure"):
        train(trainer(small, info), new_model(info), [dataset], [dataset], tmp_path)


def test_infinite_total_charge(small, tmp_path):
    frames = charged_structures(small, 8, 8 * [1.0])
    frames[5].info["charge"] = math.inf
    ase.io.write(tmp_path / "charged.xyz", frames)
    dataset, info = read(small, tmp_path / "charged.xyz", ["charge"])
    with pytest.raises(ValueError, match="^Structure 5 of the validation set .* infinite total"):
        model = new_model(info)
        train(trainer(small, info), model, [Subset(dataset, range(4))], [dataset], tmp_path)


@pytest.mark.parametrize("equilibrated", [False, True])
def test_charges_without_total_charges_in_the_data(small, tmp_path, caplog, equilibrated):
    """Equilibrated charges then sum to zero; those of a head to anything."""
    path = tmp_path / "charged.xyz"
    ase.io.write(path, charged_structures(small, 8, 7 * [0.0] + [1.0]))
    dataset, info = read(small, path, [CHARGE], energy=False)
    model = new_model(info, equilibrated)
    train(trainer(small, info), model, [dataset], [Subset(dataset, range(7))], tmp_path)
    warnings = [message for message in caplog.messages if "do not sum to" in message]
    assert len(warnings) == equilibrated
    assert all("sum 1.0000 e, total charge 0 e" in message for message in warnings)
    expected = [0.0, 0.0] if equilibrated else [math.inf, -math.inf]
    assert model.total_charge_range.tolist() == expected


@pytest.mark.parametrize("equilibrated", [False, True])
def test_charges_and_dipoles_in_their_own_units(small, tmp_path, caplog, equilibrated):
    """The loss is that of plain charges and dipoles, each with its weight."""
    caplog.set_level(logging.INFO)
    totals = np.linspace(-1.0, 1.0, 12)
    frames = charged_structures(small, 12, totals)
    frames[3].arrays["atomic_charge"][1] = math.nan
    frames[9].info["dipole_moment"][:] = math.nan
    frames[10].arrays["atomic_charge"] += 0.1
    path = tmp_path / "charged.xyz"
    ase.io.write(path, frames)
    names = ["charge", CHARGE, DIPOLE] if equilibrated else ["charge", CHARGE]
    dataset, info = read(small, path, names, energy=False)
    run = trainer(small, info, best_model_metric="loss")
    weights = {CHARGE: 3.0, DIPOLE: 0.5}
    for name in info.targets:
        run.hypers["loss"][name]["weight"] = weights[name]
    model = new_model(info, equilibrated)
    train(run, model, [Subset(dataset, range(8))], [Subset(dataset, range(8, 12))], tmp_path)

    for name in info.targets:
        assert f"Target '{name}' has neither baseline nor scale" in caplog.text
    warnings = [message for message in caplog.messages if "do not sum to" in message]
    assert len(warnings) == 1 and "1 of 4 structures of the validation set" in warnings[0]
    assert "structure 10 " in warnings[0]

    checkpoint = torch.load(tmp_path / "model_0.ckpt", weights_only=False)
    loaded = model_from_checkpoint(checkpoint, context="restart").to(torch.float64).eval()
    baseline, scales = loaded.additive_models[0].model.weights, loaded.scaler.model.scales
    assert baseline[CHARGE].block().values.abs().max() == 0.0
    assert all((scales[name].block().values == 1.0).all() for name in info.targets)

    errors = {name: [] for name in info.targets}
    lists = get_requested_neighbor_lists(loaded)
    for i in range(8, 12):
        systems, _, extra = fill_missing([dataset[i].system], {}, {"charge": dataset[i].charge})
        system = get_system_with_neighbor_lists(systems[0], lists)
        if "charge" not in system.known_data():
            system.add_data("charge", extra["charge"])
        outputs = {name: loaded.outputs[name] for name in info.targets}
        outputs[CHARGE].sample_kind = "atom"
        if DIPOLE in outputs:
            outputs[DIPOLE].sample_kind = "system"
        for name, predicted in loaded([system], outputs).items():
            label = dataset[i]._asdict()[name].block().values
            errors[name].append((predicted.block().values - label).flatten())
    loss = sum(weights[name] * torch.cat(e).square().nanmean().item() for name, e in errors.items())
    assert run.best_metric == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("scale", ["energies", "forces"])
@pytest.mark.parametrize("forces", [0.0, 200.0])
def test_weight_of_charges_beside_forces(small, tmp_path, caplog, forces, scale):
    """A twentieth of the loss of forces over the variance, where energies do not cost more; a
    warning where the weight is less than a hundredth of it."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "charged.xyz"
    frames = charged_structures(small, 12, np.linspace(-1.0, 1.0, 12))
    ase.io.write(path, frames)
    dataset, info = read(small, path, ["charge", CHARGE])
    run = trainer(small, info)
    run.hypers["energy_scale"] = scale
    energy = run.hypers["loss"]["energy"]
    energy["gradients"] = {"positions": {**copy.deepcopy(energy), "weight": forces}}
    run.hypers["loss"][CHARGE]["weight"] = 1.0
    model = new_model(info, equilibrated=True)
    train(run, model, [Subset(dataset, range(8))], [Subset(dataset, range(8, 12))], tmp_path)

    variances = [
        np.concatenate([f.arrays["atomic_charge"][f.numbers == z] for f in frames[:8]])
        for z in (1, 6, 7, 8)
    ]
    atoms = sum(map(len, variances))
    assert atoms == sum(map(len, frames[:8]))
    variance = sum(len(x) * x.var() for x in variances if len(x)) / atoms
    squares = np.mean(np.concatenate([f.arrays["forces"].ravel() for f in frames[:8]]) ** 2)
    part = squares / model.scaler.model.scales["energy"].block().values.item() ** 2
    share = 0.05 * forces * part
    assert (part < 1.0) == (scale == "forces") and (share > 1.0 or forces == 0.0)
    share = max(1.0 - part if part < 1.0 else 1.0, share)
    (line,) = (x for x in caplog.messages if x.startswith(f"Target '{CHARGE}' has neither"))
    logged = float(line.split("with a weight of ")[1].split()[0])
    assert logged == pytest.approx(share / variance, rel=0.06)
    assert ("costs 5% of what the forces of 'energy'" in line) == (forces > 0.0)
    assert line.endswith("Its weight is 1")
    warnings = [x for x in caplog.messages if "will hardly be learnt" in x]
    assert bool(warnings) == (1.0 < 0.01 * logged) == (forces > 0.0)


@pytest.mark.parametrize(
    "hypers",
    [{"atomic_baseline": {CHARGE: {1: 0.0, 8: -0.4}}}, {"fixed_scaling_weights": {CHARGE: 0.2}}],
)
def test_other_baselines_and_scales_of_charges(small, tmp_path, hypers):
    path = tmp_path / "charged.xyz"
    ase.io.write(path, charged_structures(small, 8, 8 * [0.0]))
    dataset, info = read(small, path, [CHARGE], energy=False)
    with pytest.raises(ValueError, match=f"'{CHARGE}' .* Remove other values from `{[*hypers][0]}"):
        train(trainer(small, info, **hypers), new_model(info), [dataset], [dataset], tmp_path)
