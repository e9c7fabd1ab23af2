"""Fine-tuning and restarting with data, targets, elements or options other than before."""

import copy
import io
import logging
import os
import sys
from pathlib import Path

import ase.io
import metatensor.torch as mts
import numpy as np
import pytest
import torch
import yaml
from helpers import models, training
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator
from metatrain.__main__ import main
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.io import load_model

pytestmark = pytest.mark.usefixtures("interpreted")

SHIFTS = {1: -500.0, 8: -700.0}
"""Another zero of energy, eV per atom."""
CONTENT = {"energy": {"key": "energy", "unit": "eV", "forces": {"key": "forces"}}}
ON, OFF = {"enable": True}, {"enable": False}


class Runs:
    """Runs of ``mtt train`` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, frames: list[ase.Atoms]) -> str:
        ase.io.write(self.folder / name, frames)
        return name

    def train(self, name: str, data: str, *arguments: str, fails=False, **options) -> str:
        """Train for two epochs unless ``training`` in ``options`` says otherwise.

        :return: the log
        """
        options = copy.deepcopy(options)
        training_hypers = {"num_epochs": 2, "batch_size": 4, "num_workers": 0}
        training_hypers.update(options.pop("training", {}))
        architecture = {
            "name": "lorem",
            "model": options.pop("model", training.MODEL_HYPERS),
            "training": training_hypers,
        }
        content = {
            "seed": 1,
            "base_precision": 64,
            "device": "cpu",
            "architecture": options.pop("architecture", architecture),
            "training_set": {
                "systems": {"read_from": data, "length_unit": "angstrom"},
                "targets": options.pop("targets", CONTENT),
            },
            "validation_set": 0.25,
            "final_eval": False,
            **options,
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        # metatrain's own handlers come into place only where there are no others, like pytest's
        stream, root = io.StringIO(), logging.getLogger()
        handler, level = logging.StreamHandler(stream), root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            arguments = ("train", f"{name}.yaml", "-o", f"{name}.pt", *arguments)
            patch.setattr(sys, "argv", ["mtt", *arguments])
            try:
                main()
                assert not fails
            except SystemExit:
                assert fails, stream.getvalue()
            finally:
                root.removeHandler(handler)
                root.setLevel(level)
        return stream.getvalue()

    def load(self, name: str):
        return load_model(self.folder / f"{name}.ckpt").to(torch.float64).eval()

    def checkpoint(self, name: str) -> dict:
        return torch.load(self.folder / f"{name}.ckpt", weights_only=False)


def finetune(**training_hypers) -> dict:
    """Fine-tuning of ``first.ckpt`` that leaves the weights as they are."""
    return {"learning_rate": 1e-30, "finetune": {"read_from": "first.ckpt"}, **training_hypers}


def baseline(model, target="energy") -> dict[int, float]:
    values = model.additive_models[0].model.weights[target].block().values.flatten().tolist()
    return dict(zip(model.atomic_types, values, strict=True))


def relabelled(model, frames, shifts=SHIFTS) -> list[ase.Atoms]:
    """The model's own energies and forces, with another zero of energy."""
    energies = models.values(model, frames).flatten().tolist()
    frames = [frame.copy() for frame in frames]
    for frame, energy in zip(frames, energies, strict=True):
        frame.info["energy"] = energy + sum(shifts[int(z)] for z in frame.numbers)
        frame.arrays["forces"] = np.zeros((len(frame), 3))
    return frames


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Clusters of H and O, and a model of their energies."""
    runs = Runs(tmp_path_factory.mktemp("trained"))
    runs.frames = training.structures(24)
    runs.write("first.xyz", runs.frames)
    runs.train("first", "first.xyz")
    return runs


# --- another zero of energy


def test_another_zero_of_energy_is_found(trained):
    """Data that the model describes but for the zero: the shift of each element, to the digits."""
    old = trained.load("first")
    data = trained.write("shifted.xyz", relabelled(old, trained.frames))
    log = trained.train("shifted", data, training=finetune())
    before, after = baseline(old), baseline(trained.load("shifted"))
    for z, shift in SHIFTS.items():
        assert after[z] - before[z] == pytest.approx(shift, abs=1e-5)
    assert "Baseline of 'energy' moved by" in log and "H -500, O -700" in log


def test_compositions_that_leave_a_choice(trained):
    """Of water alone no more can be said than the sum, which both elements share."""
    old = trained.load("first")
    water = []
    for i in range(12):
        water.append(ase.Atoms("OH2", [[0, 0, 0], [0.96, 0, 0.02 * i], [-0.24, 0.93, 0]]))
    data = trained.write("water.xyz", relabelled(old, water))
    trained.train("water", data, training=finetune())
    before, after = baseline(old), baseline(trained.load("water"))
    hydrogen, oxygen = after[1] - before[1], after[8] - before[8]
    assert 2 * hydrogen + oxygen == pytest.approx(-1700.0, abs=1e-5)
    # the smallest change
    assert hydrogen == pytest.approx(2 * oxygen, rel=1e-5)


def test_elements_without_data_keep_their_baseline(trained):
    old = trained.load("first")
    hydrogen = [ase.Atoms("H2", [[0, 0, 0], [0.7 + 0.02 * i, 0, 0]]) for i in range(12)]
    data = trained.write("hydrogen.xyz", relabelled(old, hydrogen))
    log = trained.train("hydrogen", data, training=finetune())
    before, after = baseline(old), baseline(trained.load("hydrogen"))
    assert after[1] - before[1] == pytest.approx(-500.0, abs=1e-5)
    assert after[8] == before[8]
    assert "the training set has no O" in log


def test_given_baseline_is_used(trained):
    given = {1: -500.0, 8: -700.0}
    log = trained.train("given", "first.xyz", training=finetune(atomic_baseline={"energy": given}))
    assert baseline(trained.load("given")) == given
    assert "Baselines of ['energy'] are those of `atomic_baseline`" in log and "moved" not in log


def test_given_baseline_of_some_elements(trained):
    """Those that the new data lack need none."""
    hydrogen = [ase.Atoms("H2", [[0, 0, 0], [0.7 + 0.02 * i, 0, 0]]) for i in range(12)]
    data = trained.write("some.xyz", relabelled(trained.load("first"), hydrogen))
    hypers = finetune(atomic_baseline={"energy": {1: -500.0}})
    log = trained.train("some", data, training=hypers)
    assert baseline(trained.load("some")) == {**baseline(trained.load("first")), 1: -500.0}
    assert "leaves out the atomic types [8]" in log


def test_restart_refuses_another_baseline(trained):
    hypers = {"num_epochs": 3, "atomic_baseline": {"energy": SHIFTS}}
    arguments = ("--restart", "first.ckpt")
    log = trained.train("other", "first.xyz", *arguments, fails=True, training=hypers)
    assert "`atomic_baseline` of 'energy' is [-500.0, -700.0]" in log
    assert "fine-tune" in log


@pytest.mark.parametrize("arguments", [(), ("--restart", "first.ckpt")])
def test_other_scales_are_refused(trained, arguments):
    hypers = {"num_epochs": 3, "fixed_scaling_weights": {"energy": 123.0}}
    if not arguments:
        hypers = finetune(**hypers)
    log = trained.train("scales", "first.xyz", *arguments, fails=True, training=hypers)
    assert "`fixed_scaling_weights` of 'energy' is [123.0]" in log


def test_same_baseline_and_scale_are_no_contradiction(trained):
    """Options with both, used for the first training and for its continuation."""
    hypers = {"atomic_baseline": {"energy": SHIFTS}, "fixed_scaling_weights": {"energy": 2.0}}
    trained.train("fixed", "first.xyz", training=hypers)
    hypers["num_epochs"] = 3
    log = trained.train("fixed-on", "first.xyz", "--restart", "fixed.ckpt", training=hypers)
    assert "moved" not in log and "anew" not in log
    hypers["finetune"] = {"read_from": "fixed.ckpt"}
    trained.train("fixed-tuned", "first.xyz", training=hypers)
    assert baseline(trained.load("fixed-tuned")) == SHIFTS


def test_targets_of_atoms_and_missing_labels(trained):
    """The mean error of each element, of the atoms that have labels."""
    rng = np.random.default_rng(0)
    for frame in trained.frames:
        frame.arrays["shielding"] = rng.normal(scale=0.1, size=len(frame)) + frame.numbers
    targets = {
        "mtt::shielding": {"key": "shielding", "sample_kind": "atom", "type": "scalar"},
    }
    trained.train("atoms", trained.write("atoms.xyz", trained.frames), targets=targets)
    model = trained.load("atoms")
    before = baseline(model, "mtt::shielding")
    frames = [frame.copy() for frame in trained.frames]
    for frame in frames:
        values = models.values(model, [frame], "mtt::shielding", "atom").flatten().numpy().copy()
        values += np.where(frame.numbers == 1, 5.0, -7.0)
        values[0] = np.nan
        frame.arrays["shielding"] = values
    hypers = {"learning_rate": 1e-30, "finetune": {"read_from": "atoms.ckpt"}}
    data = trained.write("atoms-shifted.xyz", frames)
    trained.train("atoms-shifted", data, targets=targets, training=hypers)
    after = baseline(trained.load("atoms-shifted"), "mtt::shielding")
    assert after[1] - before[1] == pytest.approx(5.0, abs=1e-5)
    assert after[8] - before[8] == pytest.approx(-7.0, abs=1e-5)


# --- new elements

EVERYTHING = {
    "long_range": ON,
    "charge_equilibration": {**ON, "learn_widths": True, "atomic_dipoles": True},
    "num_message_passing": 1,
    "conditional": True,
}


def several_targets() -> dict:
    section = {"quantity": "", "unit": "", "num_subtargets": 2, "description": ""}
    per_atom = {**section, "type": "scalar", "sample_kind": "atom"}
    vector = {"spherical": {"irreps": [{"o3_lambda": 1, "o3_sigma": 1}]}}
    dipole = {**section, "type": {"cartesian": {"rank": 1}}, "sample_kind": "system"}
    dipole.update(num_subtargets=1, unit="e*A")
    return {
        "energy": get_energy_target_info("energy", {"unit": "eV"}),
        "mtt::scalars": get_generic_target_info("mtt::scalars", per_atom),
        "mtt::vectors": get_generic_target_info("mtt::vectors", {**per_atom, "type": vector}),
        "mtt::dipole_moment": get_generic_target_info("mtt::dipole_moment", dipole),
    }


def with_random_baselines(model):
    """Baselines and scales that differ between elements."""
    torch.manual_seed(4)
    composition, scaler = model.additive_models[0], model.scaler
    parts = [(composition.model.weights, composition, "composition")]
    parts += [(scaler.model.scales, scaler, "scaler")]
    parts += [(scaler.model.per_target_scales, scaler, "per_target_scaler")]
    for maps, owner, kind in parts:
        for name, values in maps.items():
            for block in values.blocks():
                block.values[:] = 1.0 + torch.rand_like(block.values)
            buffer = mts.save_buffer(mts.make_contiguous(values.to("cpu")))
            owner.register_buffer(f"{name}_{kind}_buffer", buffer)
    return model


@pytest.mark.parametrize("new", [9, 3, 80])
def test_known_elements_stay_as_they_are(new):
    """A model of everything gives the same for what it knew, wherever the new element sorts in."""
    old = with_random_baselines(models.new_model(several_targets(), **EVERYTHING))
    old_info = old.dataset_info
    info = DatasetInfo("angstrom", [1, new], old_info.targets, old_info.extra_data)
    extended = copy.deepcopy(old).restart(info).eval()
    assert extended.atomic_types == sorted([1, 6, 7, 8, new])
    frame = models.molecule()
    frame.info["charge"] = 1.0
    outputs = {
        name: ModelOutput(sample_kind=target.sample_kind)
        for name, target in old_info.targets.items()
    }
    outputs["charge"] = ModelOutput(sample_kind="atom")
    before = old(models.systems(old, [frame]), outputs)
    after = extended(models.systems(extended, [frame]), outputs)
    for name in outputs:
        assert mts.allclose(after[name], before[name], rtol=1e-10, atol=1e-12), name

    # the new element: in the middle of the others, but with a width of its own
    place = extended.atomic_types.index(new)
    for module, parameter in (
        ("short_range.embedding", "weight"),
        ("charge_equilibration", "species_electronegativity"),
        ("charge_equilibration", "raw_hardness"),
        ("charge_equilibration", "raw_widths"),
    ):
        rows = [getattr(m.get_submodule(module), parameter) for m in (old, extended)]
        torch.testing.assert_close(rows[1][place], rows[0].mean(dim=0))
    assert baseline(extended)[new] == pytest.approx(np.mean(list(baseline(old).values())))
    # it is evaluated
    frame.numbers[0] = new
    assert torch.isfinite(models.values(extended, [frame])).all()


@pytest.mark.parametrize("restarts", [False, True])
def test_new_element_is_trained(tmp_path, restarts):
    """Its baseline accounts for the errors, so that those of the others can stay."""
    runs = Runs(tmp_path)
    hypers = {**training.MODEL_HYPERS, "charge_equilibration": {**ON, "solver": "dense"}}
    frames = training.structures(24)
    runs.train("first", runs.write("first.xyz", frames), model=hypers)
    old = runs.load("first")
    for frame in frames:
        frame.numbers[np.flatnonzero(frame.numbers == 8)[0]] = 9
        frame.info["energy"] -= 2700.0
    data = runs.write("fluorine.xyz", frames)
    if restarts:
        log = runs.train("new", data, "--restart", "first.ckpt", training={"num_epochs": 4})
        assert "optimizer, best model and best value start anew" in log
    else:
        tuning = {"finetune": {"read_from": "first.ckpt"}}
        log = runs.train("new", data, model=hypers, training=tuning)
    assert "New atomic types [9] start as the mean of [1, 8]" in log
    before, after = baseline(old), baseline(runs.load("new"))
    assert after[9] == pytest.approx(-2700.0, abs=20.0)
    for z in (1, 8):
        assert after[z] == pytest.approx(before[z], abs=20.0)
    calculator = MetatomicCalculator(tmp_path / "new.pt")
    frames[0].calc = calculator
    error = frames[0].get_potential_energy() - frames[0].info["energy"]
    assert abs(error) < 5.0 * len(frames[0])


# --- other targets


def test_a_variant_takes_the_place_of_the_old_target(trained):
    """It starts from the old head, which is dropped, and engines find it without being told."""
    old = trained.load("first")
    data = trained.write("r2scan.xyz", relabelled(old, trained.frames))
    targets = {"energy/r2scan": CONTENT["energy"]}
    log = trained.train("r2scan", data, targets=targets, training=finetune())
    assert "Target 'energy/r2scan' starts from the head, baseline and scale of 'energy'" in log
    assert "Targets ['energy'] of the checkpoint are not among the new ones and are dropped" in log
    new = trained.load("r2scan")
    energies = [name for name in new.outputs if name.startswith("energy")]
    assert energies == ["energy/r2scan"] and list(new.readout.heads) == ["energy/r2scan"]
    after, before = baseline(new, "energy/r2scan"), baseline(old)
    for z, shift in SHIFTS.items():
        assert after[z] - before[z] == pytest.approx(shift, abs=1e-5)
    frames = ase.io.read(trained.folder / data, ":4")
    for variants in (None, {"energy": "r2scan"}):
        calculator = MetatomicCalculator(trained.folder / "r2scan.pt", variants=variants)
        for frame in frames:
            expected = frame.get_potential_energy()
            copied = frame.copy()
            copied.calc = calculator
            assert copied.get_potential_energy() == pytest.approx(expected, abs=1e-4)
            assert copied.get_forces().shape == (len(frame), 3)
    both = {name: ModelOutput(sample_kind="atom") for name in ("energy", "energy/r2scan")}
    results = calculator.run_model(frames[:2], both)
    assert torch.equal(*(results[name].block().values for name in both))


@pytest.mark.parametrize("restarts", [False, True])
def test_both_targets_are_kept_if_both_are_trained(trained, restarts):
    targets = {**CONTENT, "energy/r2scan": CONTENT["energy"]}
    if restarts:
        arguments, hypers = ("--restart", "first.ckpt"), {"num_epochs": 3}
    else:
        arguments, hypers = (), finetune()
    log = trained.train("both", "first.xyz", *arguments, targets=targets, training=hypers)
    assert "dropped" not in log
    model = trained.load("both")
    assert set(model.readout.heads) == {"energy", "energy/r2scan"}
    assert {"energy", "energy/r2scan"} <= set(model.outputs)


def test_a_target_of_another_kind_starts_anew(trained):
    """Beside one that goes on, whose labels the fit of the new one's scale must pass over."""
    for frame in trained.frames:
        frame.info["number"] = float(len(frame)) + frame.positions[0, 0]
    data = trained.write("number.xyz", trained.frames)
    targets = {**CONTENT, "mtt::number": {"key": "number", "type": "scalar"}}
    trained.train("number", data, targets=targets, training=finetune())
    before, after = trained.load("first"), trained.load("number")
    assert abs(baseline(after, "mtt::number")[1]) > 0.5
    scales = [m.scaler.model.scales["energy"].block().values for m in (before, after)]
    assert torch.equal(*scales)


def test_another_unit_is_refused(trained):
    targets = {"energy": {**CONTENT["energy"], "unit": "kcal/mol"}}
    hypers = finetune()
    log = trained.train("unit", "first.xyz", fails=True, targets=targets, training=hypers)
    assert "target 'energy' was trained as energy in 'eV'" in log and "'kcal/mol'" in log


# --- restarts with other data, other targets, another metric


@pytest.mark.parametrize("change", ["nothing", "labels", "validation", "forces", "metric"])
def test_best_value_of_a_restart(trained, change):
    """It counts only where it can be compared: here the old one is far below all others."""
    checkpoint = trained.checkpoint("first")
    checkpoint["best_metric"] = -1.0
    torch.save(checkpoint, trained.folder / "lucky.ckpt")
    data, hypers, targets, options = "first.xyz", {"num_epochs": 4}, CONTENT, {}
    if change == "labels":
        frames = [frame.copy() for frame in trained.frames]
        frames[5].info["energy"] += 1e-3
        frames[6].info["energy"] += 1e-3
        for i in range(24):
            frames[i].arrays["forces"] = trained.frames[i].arrays["forces"]
        data = trained.write("labels.xyz", frames)
        words = "training set"
    elif change == "validation":
        options, words = {"validation_set": 0.5}, "training set, validation set"
    elif change == "forces":
        targets, words = {"energy": {"key": "energy", "unit": "eV", "forces": False}}, "targets"
    elif change == "metric":
        hypers["best_model_metric"], words = "rmse_prod", "best_model_metric"
    log = trained.train(
        "again", data, "--restart", "lucky.ckpt", targets=targets, training=hypers, **options
    )
    after = trained.checkpoint("again")
    if change == "nothing":
        assert "anew" not in log and after["best_epoch"] == checkpoint["best_epoch"]
        assert after["best_metric"] == -1.0
    else:
        (line,) = [line for line in log.splitlines() if "Changed since the checkpoint" in line]
        assert words in line
        assert after["best_epoch"] in (2, 3) and after["best_metric"] > 0.0
        assert ("Baseline of 'energy' moved" in log) == ("training set" in line)


def test_checkpoint_that_does_not_know_its_data(trained):
    """Of earlier versions: what can be compared is compared."""
    checkpoint = trained.checkpoint("first")
    del checkpoint["basis"]
    checkpoint["trainer_ckpt_version"] = 1
    torch.save(checkpoint, trained.folder / "earlier.ckpt")
    hypers = {"num_epochs": 3}
    arguments = ("--restart", "earlier.ckpt")
    log = trained.train("later", "first.xyz", *arguments, training=hypers)
    assert "start anew" not in log and "does not say its training set, validation set" in log
    # Muon has other parameters since trainer version 3
    assert "is of an older version, whose optimizer starts anew" in log
    hypers["best_model_metric"] = "loss"
    log = trained.train("later", "first.xyz", *arguments, training=hypers)
    assert "Changed since the checkpoint: best_model_metric." in log


# --- checkpoints of other architectures


def test_restart_auto_beside_other_architectures(tmp_path):
    runs = Runs(tmp_path)
    data = runs.write("first.xyz", training.structures(24))
    energy = {"energy": {"key": "energy", "unit": "eV"}}
    runs.train("first", data, targets=energy, training={"checkpoint_interval": 1})
    llpr = {
        "name": "llpr",
        "model": {},
        "training": {"model_checkpoint": "first.ckpt", "batch_size": 4, "num_workers": 0},
    }
    runs.train("llpr", data, targets=energy, architecture=llpr)
    newest = max(tmp_path.glob("outputs/*/*/*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert newest.name == "llpr.ckpt"
    hypers = {"num_epochs": 3}
    log = runs.train("on", data, "--restart", "auto", targets=energy, training=hypers)
    assert "the newest checkpoint, is of 'llpr'" in log and "first.ckpt is taken" in log
    assert runs.checkpoint("on")["epoch"] == 2

    arguments = ("--restart", "llpr.ckpt")
    log = runs.train("on", data, *arguments, fails=True, targets=energy, training=hypers)
    assert "llpr.ckpt is a checkpoint of 'llpr', which 'lorem' can't continue" in log
    for source, words in (("llpr.ckpt", "is a checkpoint of 'llpr'"), ("first.pt", "exported")):
        tuning = {"finetune": {"read_from": source}}
        log = runs.train("on", data, fails=True, targets=energy, training=tuning)
        assert words in log
    for path in tmp_path.glob("outputs/*/*/*.ckpt"):
        if path != newest:
            path.unlink()
    os.utime(newest)
    arguments = ("--restart", "auto")
    log = runs.train("on", data, *arguments, fails=True, targets=energy, training=hypers)
    assert "there is none of 'lorem' in outputs/" in log


@pytest.mark.parametrize(
    "key",
    [
        "--restart",
        "finetune.read_from",
        "atomic_baseline",
        "fixed_scaling_weights",
        "backbone.checkpoint",
    ],
)
def test_checkpoint_that_does_not_exist(tmp_path, key):
    """Named before the data are read, which do not exist either."""
    arguments, hypers, path = (), {}, "nowhere.ckpt"
    model = training.MODEL_HYPERS
    if key == "--restart":
        arguments = (key, path)
    elif key == "backbone.checkpoint":
        model = {**model, "backbone": {"name": "pet", "checkpoint": path}}
        key = f"architecture.model.{key}"
    else:
        hypers = {"finetune": {"read_from": path}} if "." in key else {key: path}
        key = f"architecture.training.{key}"
    log = Runs(tmp_path).train(
        "run", "no.xyz", *arguments, fails=True, training=hypers, model=model
    )
    assert f"{key}: there is no file nowhere.ckpt (in {tmp_path})" in log


def test_no_epoch_left(trained):
    """A model of random weights is no silent result; that of a checkpoint is one."""
    log = trained.train("none", "first.xyz", training={"num_epochs": 0})
    assert "`num_epochs` is 0: the model is exported with random weights, untrained" in log
    log = trained.train("none", "first.xyz", training=finetune(num_epochs=0))
    assert "untrained" not in log
    assert "`num_epochs` is 0 and epoch 0 would be the next: nothing is trained" in log
    log = trained.train("none", "first.xyz", "--restart", "first.ckpt", training={"num_epochs": 2})
    assert "untrained" not in log
    assert "`num_epochs` is 2 and epoch 2 would be the next: nothing is trained" in log
    before, after = (
        models.values(trained.load(name), trained.frames[:3]) for name in ("first", "none")
    )
    torch.testing.assert_close(after, before)


# --- options that leave out what the checkpoint has


@pytest.fixture(scope="module")
def equilibrated(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("equilibrated"))
    runs.write("first.xyz", training.structures(16))
    block = {**ON, "solver": "iterative"}
    runs.train("first", "first.xyz", model={**training.MODEL_HYPERS, "charge_equilibration": block})
    return runs


@pytest.mark.parametrize("model", [training.MODEL_HYPERS, {}])
def test_what_options_leave_out_is_said(equilibrated, model):
    log = equilibrated.train("tuned", "first.xyz", model=model, training=finetune())
    (line,) = [
        line for line in log.splitlines() if "leaves out is kept as in the checkpoint" in line
    ]
    assert "'charge_equilibration': {'enable': True" in line
    assert ("'num_features': 8" in line) == (model == {})
    assert equilibrated.load("tuned").charge_equilibration is not None


@pytest.mark.parametrize("block", [OFF, {}, {"solver": "iterative"}, {**ON, "energy": "celli"}])
def test_contradictions_are_refused(equilibrated, block):
    """In a section that is given, what is left out has its default, here ``enable: false``."""
    model = {**training.MODEL_HYPERS, "charge_equilibration": block}
    log = equilibrated.train("tuned", "first.xyz", fails=True, model=model, training=finetune())
    assert "Mismatched hypers: ['charge_equilibration']" in log


def test_solver_that_is_left_out_is_the_default(equilibrated):
    model = {**training.MODEL_HYPERS, "charge_equilibration": ON}
    log = equilibrated.train("tuned", "first.xyz", model=model, training=finetune())
    assert "charge_equilibration.solver was iterative, now auto" in log


def test_total_charge_built_in_is_said(caplog):
    """A checkpoint of ``set-charge``, trained further on data without total charges."""
    model = models.new_model(charge_equilibration=ON, conditional=True)
    model.conditional, model.total_charge = False, 2.0
    caplog.set_level("INFO")
    info = DatasetInfo("angstrom", [1, 8], model.dataset_info.targets)
    assert model.restart(info).total_charge == 2.0
    assert "has a total charge of 2 e built in" in caplog.text
    # and with new elements
    info = DatasetInfo("angstrom", [1, 9], model.dataset_info.targets)
    extended = model.restart(info)
    assert extended.total_charge == 2.0 and not extended.conditional
    info = DatasetInfo("angstrom", [1, 8], info.targets, {"charge": models.total_charge_info()})
    assert model.restart(info).conditional
