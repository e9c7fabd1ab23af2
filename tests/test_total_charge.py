"""Total charges as an input of models, with and without charge equilibration."""

import warnings

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from metatomic.torch import ModelOutput, load_atomistic_model
from metatomic_ase import MetatomicCalculator
from metatrain.cli.eval import eval_model
from metatrain.cli.train import train_model
from metatrain.utils.data import DatasetInfo
from metatrain.utils.errors import ArchitectureError
from metatrain.utils.io import load_model
from omegaconf import OmegaConf

from metatrain_lorem.commands.set_charge import set_charge

pytestmark = pytest.mark.usefixtures("interpreted")

EQUILIBRATED = {"charge_equilibration": {"enable": True, "accuracy": 1e-4}}
MODELS = {
    "head": {"long_range": {"enable": False}},
    "equilibrated": {**EQUILIBRATED, "long_range": {"enable": False}},
}
SYSTEM = {"energy": ModelOutput(unit="eV", sample_kind="system")}


def molecule(lorem, charge=None):
    frame = lorem.frames["molecule"].copy()
    if charge is not None:
        frame.info["charge"] = charge
    return frame


@pytest.mark.parametrize("name", MODELS)
def test_energies_differ_with_the_total_charge(lorem, name):
    model = lorem.new_model(conditional=True, **MODELS[name])
    assert list(model.requested_inputs()) == ["charge"]
    assert model.requested_inputs()["charge"].sample_kind == "system"
    frames = [molecule(lorem, charge) for charge in (-1.0, 0.0, 1.0)]
    energies = lorem.values(model, frames).flatten()
    assert energies.diff().abs().min() > 0.01
    assert len(lorem.new_model(**MODELS[name]).requested_inputs()) == 0


@pytest.mark.parametrize(
    "charge, message", [(None, "0 .* has no total charge, which"), (np.nan, "0 .* charge nan")]
)
@pytest.mark.parametrize("name", MODELS)
def test_missing(lorem, name, charge, message):
    model = lorem.new_model(conditional=True, **MODELS[name])
    neutral = lorem.new_model(**MODELS[name])
    system = lorem.systems(neutral, [molecule(lorem)])[0]
    if charge is not None:
        lorem.with_charge(system, charge)
    with pytest.raises(ValueError, match=f"structure {message}"):
        model([system], SYSTEM)


def test_outside_of_the_trained_range(lorem):
    model = lorem.new_model(conditional=True, **MODELS["head"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lorem.values(model, [molecule(lorem, 5.0)])
        model.total_charge_range[:] = torch.tensor([-1.0, 1.0])
        lorem.values(model, [molecule(lorem, 1.0), molecule(lorem, -1.0)])
    with pytest.warns(UserWarning, match="between 0.0 and 2.0 is outside .*, -1.0 to 1.0"):
        lorem.values(model, [molecule(lorem, 2.0), molecule(lorem, 0.0)])


@pytest.mark.parametrize("name", MODELS)
def test_given_to_a_model_without(lorem, name):
    model = lorem.new_model(**MODELS[name])
    system = lorem.systems(model, [molecule(lorem)])[0]
    expected = model([system], SYSTEM)["energy"].block().values
    lorem.with_charge(system, 1.0)
    with pytest.warns(UserWarning, match="does not take any; they are ignored"):
        given = model([system], SYSTEM)["energy"].block().values
    assert torch.equal(given, expected)


@pytest.mark.parametrize("name", MODELS)
def test_set_charge_and_ase(lorem, tmp_path, name):
    """ASE gives ``info["charge"]`` to the one model, and the other has it built in."""
    model = lorem.new_model(conditional=True, **MODELS[name])
    checkpoint = model.get_checkpoint()
    torch.save({**checkpoint, "trainer_ckpt_version": 1}, tmp_path / "model.ckpt")
    set_charge(tmp_path / "model.ckpt", 1.0, tmp_path / "cation.ckpt")
    expected = lorem.values(model, [molecule(lorem, q) for q in (0.0, 1.0)]).flatten().tolist()
    charges = lorem.values(model, [molecule(lorem, 1.0)], "charge", "atom") if name != "head" else 0

    for file in ("model", "cation"):
        loaded = load_model(tmp_path / f"{file}.ckpt").to(torch.float64)
        loaded.export().save(str(tmp_path / f"{file}.pt"))
    conditional = MetatomicCalculator(tmp_path / "model.pt", check_consistency=True)
    for charge, energy in zip((0.0, 1.0), expected, strict=True):
        frame = molecule(lorem, charge)
        frame.calc = conditional
        assert frame.get_potential_energy() == pytest.approx(energy, rel=1e-12)
    frame = molecule(lorem)
    assert MetatomicCalculator(tmp_path / "cation.pt")._model.requested_inputs(True) == {}
    frame.calc = MetatomicCalculator(tmp_path / "cation.pt", check_consistency=True)
    assert frame.get_potential_energy() == pytest.approx(expected[1], rel=1e-12)
    forces = frame.get_forces()
    frame = molecule(lorem, 1.0)
    frame.calc = conditional
    np.testing.assert_allclose(forces, frame.get_forces(), rtol=1e-10, atol=1e-12)
    if name == "equilibrated":
        result = frame.calc.run_model(frame, {"charge": ModelOutput(sample_kind="atom")})
        torch.testing.assert_close(result["charge"].block().values, charges)


def restarted(model, conditional=False, lorem=None, **blocks):
    """The model for further training, with new blocks or the total charge as a new input."""
    hypers = {**model.hypers, **{k: {**model.hypers[k], **v} for k, v in blocks.items()}}
    info = model.dataset_info
    extra_data = {"charge": lorem.total_charge_info()} if conditional else info.extra_data
    new_info = DatasetInfo(info.length_unit, info.atomic_types, info.targets, extra_data)
    return model.restart(new_info, hypers).eval()


@pytest.mark.parametrize("blocks", [{}, {"long_range": {"enable": True}}])
def test_new_input_changes_nothing_at_first(lorem, blocks):
    old = lorem.new_model(num_message_passing=1, long_range={"enable": False})
    new = restarted(old, True, lorem, **blocks)
    assert new.conditional and not old.conditional
    assert new.has_new_parameters
    for charge in (0.0, 1.0):
        frames = [molecule(lorem, charge), lorem.frames["bulk"]]
        torch.testing.assert_close(lorem.values(new, frames), lorem.values(old, frames))
    # the total charge can be learned
    energies = new(lorem.systems(new, [molecule(lorem, 1.0)]), SYSTEM)["energy"].block().values
    energies.sum().backward()
    assert new.charge_embedding[2].weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", ["dense", "iterative"])
def test_new_charge_equilibration_adds_its_energy(lorem, name, conditional):
    old = lorem.new_model(num_message_passing=1, long_range={"enable": False})
    hypers = {"enable": True, "solver": name, "accuracy": 1e-4}
    new = restarted(old, conditional, lorem, charge_equilibration=hypers)
    assert new.conditional == conditional
    frames = [molecule(lorem, 1.0), lorem.frames["bulk"]]
    after, before = lorem.values(new, frames), lorem.values(old, frames)
    torch.nn.init.zeros_(new.readout.heads["energy"].invariants.last_layer.weight)
    charge_energies = lorem.values(new, frames)
    assert charge_energies.abs().max() > 1e-3
    torch.testing.assert_close(after - charge_energies, before)


def test_charges_after_a_trained_long_range_add_their_energy_alone(lorem):
    """Its features stay as they are, and so does what heads make of them."""
    old = lorem.new_model()
    block = {"enable": True, "after_long_range": True}
    new = restarted(old, charge_equilibration=block)
    frames = [lorem.frames["molecule"], lorem.frames["bulk"]]
    after, before = lorem.values(new, frames), lorem.values(old, frames)
    torch.nn.init.zeros_(new.readout.heads["energy"].invariants.last_layer.weight)
    charge_energies = lorem.values(new, frames)
    assert charge_energies.abs().max() > 1e-3
    torch.testing.assert_close(after - charge_energies, before)


@pytest.mark.parametrize("entry", [{"hardness": "features"}, {"after_long_range": True}])
def test_what_charges_are_read_from_stays(lorem, entry):
    """Other weights would be needed."""
    old = lorem.new_model(charge_equilibration={"enable": True})
    with pytest.raises(ValueError, match=next(iter(entry))):
        restarted(old, charge_equilibration=entry)


def test_equilibrated_model_takes_total_charges_later(lorem):
    """Then no block is new, and neutral structures stay as they are."""
    old = lorem.new_model(**MODELS["equilibrated"])
    new = restarted(old, True, lorem)
    assert new.conditional and new.charge_embedding is None
    neutral, cation = (molecule(lorem, charge) for charge in (0.0, 1.0))
    torch.testing.assert_close(lorem.values(new, [neutral]), lorem.values(old, [neutral]))
    assert lorem.values(new, [cation], "charge", "atom").sum().item() == pytest.approx(1.0)


def test_long_range_after_charges_changes_nothing_at_first(lorem):
    old = lorem.new_model(conditional=True, **MODELS["equilibrated"])
    new = restarted(old, long_range={"enable": True})
    frames = [molecule(lorem, 1.0), lorem.frames["bulk"]]
    for output, kind in (("energy", "system"), ("charge", "atom")):
        before, after = (lorem.values(m, frames, output, kind) for m in (old, new))
        torch.testing.assert_close(after, before)


def write_options(folder):
    rng = np.random.default_rng(0)
    frames = []
    for i in range(16):
        noise = 0.1 * rng.normal(size=(3, 3))
        frame = Atoms("OHH", np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]) + noise)
        frame.info["charge"] = float(i % 3 - 1)
        frame.info["U0"] = frame.info["charge"] ** 2 + noise.sum()
        frames.append(frame)
    ase.io.write(folder / "data.xyz", frames)
    data = {
        "systems": {"read_from": "data.xyz", "length_unit": "angstrom"},
        "targets": {"energy": {"key": "U0", "unit": "eV"}},
        "extra_data": {
            "charge": {"key": "charge", "unit": "e", "type": "scalar", "sample_kind": "system"}
        },
    }
    model = {"num_radial": 4, "num_features": 8, "num_spherical_features": 2, "max_degree": 2}
    model["charge_equilibration"] = {"enable": True}
    training = {"num_epochs": 1, "batch_size": 2, "num_workers": 0}
    options = {
        "seed": 0,
        "device": "cpu",
        "base_precision": 64,
        "architecture": {"name": "lorem", "model": model, "training": training},
        "training_set": data,
        "validation_set": 0.25,
        "test_set": 0.0,
    }
    return options, frames


def test_metatrain(tmp_path, monkeypatch):
    """``mtt train``, ``mtt eval`` of the exported model, and ``llpr``."""
    monkeypatch.chdir(tmp_path)
    options, frames = write_options(tmp_path)
    train_model(OmegaConf.create(options), checkpoint_dir=".", output="model.pt")
    evaluation = OmegaConf.create(options["training_set"])
    eval_model(load_atomistic_model("model.pt"), evaluation, output="predicted.xyz")
    predicted = ase.io.read("predicted.xyz", ":")
    energies = [frame.get_potential_energy() for frame in predicted]
    calculator = MetatomicCalculator("model.pt", do_gradients_with_energy=False)
    for frame, energy in zip(frames, energies, strict=True):
        frame.calc = calculator
        assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    frames[0].info["charge"] += 1.0
    assert abs(frames[0].get_potential_energy() - energies[0]) > 1e-4

    llpr = {**options, "architecture": {"name": "llpr"}}
    llpr["architecture"]["model"] = {"num_ensemble_members": {"energy": 4}}
    set_charge("model.ckpt", 0.0, "neutral.ckpt")
    training = {"model_checkpoint": "neutral.ckpt", "batch_size": 4, "num_workers": 0}
    llpr["architecture"]["training"] = training
    for name in ("refused", "trained"):
        (tmp_path / name).mkdir()
    with pytest.raises(ArchitectureError, match="another total charge than .0 e.* LLPR would"):
        train_model(OmegaConf.create(llpr), checkpoint_dir="refused", output="llpr.pt")
    training["model_checkpoint"] = "model.ckpt"
    train_model(OmegaConf.create(llpr), checkpoint_dir="trained", output="llpr.pt")
    # the charge in the result, for engines that give none
    set_charge("llpr.ckpt", 0.0, "neutral-llpr.ckpt")
    load_model("neutral-llpr.ckpt").export().save("neutral-llpr.pt")
    neutral = Atoms(frames[1])
    neutral.calc = MetatomicCalculator("neutral-llpr.pt", do_gradients_with_energy=False)
    frames[1].info["charge"] = 0.0
    for name in ("model.pt", "llpr.pt"):
        frames[1].calc = MetatomicCalculator(name, do_gradients_with_energy=False)
        energy = frames[1].get_potential_energy()
        assert neutral.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    outputs = {"energy_uncertainty": ModelOutput(unit="eV", sample_kind="system")}
    uncertainties = [
        frame.calc.run_model(frame, outputs)["energy_uncertainty"].block().values.item()
        for frame in (neutral, frames[1])
    ]
    assert uncertainties[0] == pytest.approx(uncertainties[1], rel=1e-4)
