"""Data that once went into training, or out of it, in silence: all named before the first step."""

import copy
import logging

import ase.io
import numpy as np
import pytest
import torch
from helpers.training import MODEL_HYPERS, structures
from metatrain.cli.train import train_model
from metatrain.utils.errors import ArchitectureError
from omegaconf import OmegaConf

from metatrain_lorem.commands.prepare import prepare_file
from metatrain_lorem.training import files

pytestmark = pytest.mark.usefixtures("interpreted")

ENERGY = {"energy": {"unit": "eV"}}
CHARGE = {"charge": {"key": "charge", "unit": "e"}}


def section(name, targets=None, **more):
    systems = {"read_from": f"{name}.xyz", "length_unit": "angstrom"}
    return {"systems": systems, "targets": copy.deepcopy(targets or ENERGY), **more}


@pytest.fixture
def run(tmp_path, monkeypatch, caplog):
    """Run ``mtt train`` on files in a folder of its own; returns what it logged."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    ase.io.write("training.xyz", structures(12))
    ase.io.write("validation.xyz", structures(16)[12:])

    def run(training=None, validation=None, model=None, num_workers=0, **more):
        options = {
            "seed": 0,
            "device": "cpu",
            "base_precision": 64,
            "final_eval": False,
            "architecture": {
                "name": "lorem",
                "model": {**MODEL_HYPERS, **(model or {})},
                "training": {"num_epochs": 1, "batch_size": 2, "num_workers": num_workers},
            },
            "training_set": training or section("training"),
            "validation_set": section("validation") if validation is None else validation,
            **more,
        }
        folder = tmp_path / f"run {len(list(tmp_path.glob('run *')))}"
        folder.mkdir()
        caplog.clear()
        train_model(OmegaConf.create(options), checkpoint_dir=folder, output="model.pt")
        return caplog.text

    return run


@pytest.fixture
def refused(run, monkeypatch):
    """Run that must end before the first step, with a message."""

    def fail(*args):
        raise AssertionError("training has begun")

    def refused(message, *args, **more):
        with monkeypatch.context() as context:
            context.setattr("metatrain_lorem.trainer.train_epoch", fail)
            with pytest.raises((ValueError, ArchitectureError), match=message):
                run(*args, **more)

    return refused


def with_sulphur(frames, index):
    frames[index].symbols[0] = "S"
    return frames


# an element that training does not see (D1)


def test_element_in_the_validation_set_only(refused):
    ase.io.write("validation.xyz", with_sulphur(structures(4), 2))
    refused(r"Structure 2 of the validation set \(validation.xyz\) has S, which no training")


def test_element_in_the_validation_part_of_a_file_only(refused):
    try_all(lambda i: refused(rf"Structure {i} of the validation set .* has S", validation=0.5))


def try_all(refused):
    """Sulphur in one structure after the other, until one is drawn for the part in question."""
    for index in range(4):
        ase.io.write("training.xyz", with_sulphur(structures(4), index))
        try:
            return refused(index)
        except AssertionError:
            continue
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("kind", ["file", "indices", "fraction"])
def test_element_in_the_test_set_only(refused, kind):
    if kind == "file":
        ase.io.write("testing.xyz", with_sulphur(structures(4), 3))
        refused(r"Structure 3 of the test set \(testing.xyz\) has S", test_set=section("testing"))
    elif kind == "indices":
        ase.io.write("training.xyz", with_sulphur(structures(12), 11))
        refused(
            r"Structure 11 of the test set \(training.xyz\) has S",
            training=section("training", indices=list(range(8))),
            test_set={"indices": [9, 11]},
        )
    else:
        try_all(lambda i: refused(rf"Structure {i} of the test set .* has S", test_set=0.5))


def test_element_whose_labels_are_all_missing(refused):
    frames = with_sulphur(structures(12), 5)
    frames[5].info["energy"] = np.nan
    frames[5].arrays["forces"][:] = np.nan
    ase.io.write("training.xyz", frames)
    ase.io.write("validation.xyz", with_sulphur(structures(2), 0))
    refused("Structure 0 of the validation set .* has S, which no training structure with labels")


def test_element_that_only_the_options_name(run):
    options = {"atomic_types": [1, 8, 16]}
    log = run(model=None, **{"architecture": _architecture(options)})
    assert "No training structure with labels has S, which the model is made for" in log


def _architecture(more):
    training = {"num_epochs": 1, "batch_size": 2, "num_workers": 0}
    return {"name": "lorem", "model": MODEL_HYPERS, "training": training, **more}


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize("symbol, number", [("X", 0), ("Bk", 97)])
def test_element_that_cannot_have_charges(refused, split, symbol, number):
    frames = structures(12)
    frames[5].symbols[0] = symbol
    ase.io.write(f"{split}.xyz", frames)
    refused(
        rf"Structure 5 of the {split} set \({split}.xyz\): .* atomic type {number} has none .*"
        "Remove such atoms",
        model={"charge_equilibration": {"enable": True}},
    )


def test_ghost_atoms(run):
    frames = structures(12)
    for index in (5, 6):
        frames[index].symbols[0] = "X"
    ase.io.write("training.xyz", frames)
    log = run()
    assert "2 structures of the training set (training.xyz) have ghost atoms X (first: str" in log
    assert "structure 5), which count as an element" in log


# gradients that some structures lack (D8, D9)


@pytest.mark.parametrize("order", [["training", "more"], ["more", "training"]])
@pytest.mark.parametrize("how", ["no forces", "switched off"])
def test_forces_in_one_of_two_training_sets(run, order, how):
    """Those of the other count as missing: the same model as with NaN in the file."""
    frames = structures(8)
    targets = {name: copy.deepcopy(ENERGY) for name in order}
    if how == "switched off":
        targets["more"]["energy"]["forces"] = False
    else:
        for frame in frames:
            del frame.arrays["forces"]
    ase.io.write("more.xyz", frames)
    validation = [section("validation"), section("validation")]
    run([section(name, targets[name]) for name in order], validation, final_eval=True)
    result = torch.load("model.ckpt", weights_only=False)["best_model_state_dict"]
    for frame in frames:
        frame.arrays["forces"] = np.full((len(frame), 3), np.nan)
    ase.io.write("more.xyz", frames)
    run([section(name) for name in order], validation)
    expected = torch.load("model.ckpt", weights_only=False)["best_model_state_dict"]
    assert result.keys() == expected.keys()
    for name, tensor in result.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name])


def test_forces_in_one_set_and_stress_in_another(run):
    frames = periodic(structures(8), FULL)
    for frame in frames:
        del frame.arrays["forces"]
    ase.io.write("more.xyz", frames)
    both = [section("training"), section("more")]
    log = run(both, copy.deepcopy(both), final_eval=True)
    assert "forces" in log and "virial" in log


@pytest.mark.parametrize("split", ["training", "validation"])
def test_forces_in_training_or_validation_only(run, split):
    frames = ase.io.read(f"{split}.xyz", ":")
    for frame in frames:
        frame.calc = None
        frame.info["energy"] = 0.1 * len(frame)
    ase.io.write(f"{split}.xyz", frames)
    log = run(final_eval=True)
    assert ("Target 'energy' is trained without forces" in log) == (split == "training")


def test_forces_of_one_structure_are_missing(run):
    frames = structures(12)
    del frames[7].arrays["forces"]
    _write_separately("training.xyz", frames)
    log = run()
    assert "1 of 12 structures of the training set (training.xyz) have no forces" in log
    assert "first: structure 7, no 'forces'" in log
    assert "Target 'energy' is trained without forces" not in log


def _write_separately(path, frames):
    """Structures with different keys."""
    for i, frame in enumerate(frames):
        ase.io.write(path, frame, append=i > 0)


def periodic(frames, stress, key="stress"):
    for frame in frames:
        frame.set_cell([9.0, 9.0, 9.0])
        frame.pbc = True
        frame.info[key] = np.array(stress, dtype=float)
    return frames


STRESS = {"energy": {"unit": "eV", "stress": True}}
FULL = [[0.1, 0.6, 0.5], [0.6, 0.2, 0.4], [0.5, 0.4, 0.3]]
VOIGT = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_stress_asked_for_that_a_structure_lacks(refused):
    frames = periodic(structures(12), FULL)
    del frames[4].info["stress"]
    _write_separately("training.xyz", frames)
    refused(
        r"ask for stress \(energy\), but structure 4 of the training set \(training.xyz\) .* no "
        "'stress'",
        section("training", STRESS),
    )


def test_stress_asked_for_that_all_structures_lack(refused):
    refused("ask for stress .energy., but structure 0 .* 11 other", section("training", STRESS))


def test_stress_that_a_structure_lacks(run):
    """Not asked for, but there: the default."""
    frames = periodic(structures(12), FULL)
    del frames[4].info["stress"]
    _write_separately("training.xyz", frames)
    ase.io.write("validation.xyz", periodic(structures(2), FULL))
    log = run()
    assert "1 of 12 structures of the training set (training.xyz) have no stress" in log
    assert "first: structure 4" in log
    assert "we will use this gradient" in log
    assert "9 of 108 of energy strain gradients" in log


def gradient_of(name, index):
    """Strain gradient that the trainer gets, eV."""
    section = next(s for s in files._run.sections if s.split == name)
    return section.dataset[index].energy.block().gradient("strain").values.flatten()


@pytest.mark.parametrize("key", ["stress", "my_stress"])
def test_stress_of_six_numbers(run, monkeypatch, key):
    frames = periodic(structures(12), FULL if key == "my_stress" else VOIGT, key)
    frames[2].info[key] = np.array(VOIGT)
    _write_separately("training.xyz", frames)
    _write_separately("validation.xyz", frames[:2])
    seen = []
    monkeypatch.setattr(
        "metatrain_lorem.trainer.Trainer.train",
        lambda *a, **more: seen.append(gradient_of("training", 2)) or 1 / 0,
    )
    targets = {"energy": {"unit": "eV", "stress": {"key": key}}}
    with pytest.raises(ArchitectureError, match="division by zero"):
        run(section("training", targets), section("validation", targets))
    expected = 9.0**3 * torch.tensor(FULL, dtype=torch.float64).flatten()
    torch.testing.assert_close(seen[0], expected, rtol=1e-6, atol=0)


def test_stress_of_molecules(run, refused):
    """Zeros, where there is no cell, are no labels; other numbers are a mistake."""
    frames = periodic(structures(12), FULL)
    for frame in frames[9:]:
        frame.set_cell(np.zeros((3, 3)))
        frame.pbc = False
        frame.info["stress"] = np.zeros((3, 3))
    ase.io.write("training.xyz", frames)
    ase.io.write("validation.xyz", periodic(structures(2), FULL))
    log = run()
    assert "3 of 12 structures of the training set (training.xyz) have no stress" in log
    refused("structure 9 of the training set .* have no 'stress'", section("training", STRESS))
    frames[10].info["stress"] = np.array(FULL)
    ase.io.write("training.xyz", frames)
    refused("'stress' of structure 10 of the training set .* cell spans no volume")


def test_molecules_whose_stress_is_zero(run):
    frames = structures(12)
    for frame in frames:
        frame.info["stress"] = np.zeros((3, 3))
    ase.io.write("training.xyz", frames)
    run()


# total charges (D10, D12, D13)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("missing", ["one structure", "one set"])
def test_missing_total_charges(run, num_workers, missing):
    frames = structures(12)
    for frame in frames:
        frame.info["charge"] = 1.0
    if missing == "one structure":
        frames[3].info["charge"] = np.nan
    ase.io.write("training.xyz", frames)
    ase.io.write("more.xyz", structures(8))
    charged = section("training", extra_data=CHARGE)
    if missing == "one structure":
        run(charged, copy.deepcopy(charged), num_workers=num_workers, final_eval=True)
    else:
        both = [charged, section("more")]
        test = copy.deepcopy(both)
        run(both, copy.deepcopy(both), num_workers=num_workers, test_set=test, final_eval=True)


def test_total_charge_far_from_all_others(run):
    frames = structures(12)
    for i, frame in enumerate(frames):
        frame.info["charge"] = float(i % 2)
    frames[6].info["charge"] = 1000.0
    ase.io.write("training.xyz", frames)
    charged = section("training", extra_data=CHARGE)
    log = run(charged, copy.deepcopy(charged))
    assert "1 total charges in the training set are more than" in log
    assert "the furthest is 1000 e, of structure 6" in log
    frames[6].info["charge"] = -2.0
    ase.io.write("training.xyz", frames)
    assert "total charges in the training set are more than" not in run(
        charged, copy.deepcopy(charged)
    )


@pytest.mark.parametrize("equilibrated", [False, True])
def test_total_charges_in_the_file_that_nobody_asked_for(run, equilibrated):
    frames = structures(12)
    for frame in frames[:5]:
        frame.info["charge"] = -1
    ase.io.write("training.xyz", frames)
    log = run(model={"charge_equilibration": {"enable": equilibrated}})
    effect = "the model takes 0 e for all" if equilibrated else "the model does not know of it"
    assert (
        "5 of 12 structures of the training set (training.xyz) have a total charge (structure 0: "
        f"-1 e) that the options do not ask for: {effect}"
    ) in log
    assert "of the validation set (validation.xyz) have a total charge" not in log


def test_total_charge_that_is_a_word(refused):
    frames = structures(12)
    for frame in frames:
        frame.info["charge"] = 1.0
    frames[8].info["charge"] = "one"
    _write_separately("training.xyz", frames)
    refused(
        r"'charge' of structure 8 of the training set \(training.xyz\) is 'one', which is no num",
        section("training", extra_data=CHARGE),
    )


def test_total_charge_of_three_numbers(refused):
    frames = structures(12)
    for frame in frames:
        frame.info["charge"] = 1.0
    frames[8].info["charge"] = np.ones(3)
    _write_separately("training.xyz", frames)
    refused(
        "'charge' of structure 8 of the training set .* has 3 numbers where 'charge' has 1",
        section("training", extra_data=CHARGE),
    )


def test_born_charges_of_six_columns(refused):
    """Of three atoms, they would be read as those of two."""
    frames = structures(12)
    for frame in frames:
        frame.arrays["bec"] = np.zeros((len(frame), 6))
    ase.io.write("training.xyz", frames)
    born = {"key": "bec", "unit": "e", "sample_kind": "atom", "type": {"cartesian": {"rank": 2}}}
    count = len(frames[0])
    refused(
        rf"'bec' of structure 0 of the training set \(training.xyz\) has {6 * count} numbers where "
        f"'mtt::born_effective_charge' has {9 * count}",
        section("training", targets={"mtt::born_effective_charge": born}),
    )


# numbers that are too large (N8)


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize("label", ["energy", "forces"])
def test_label_too_large_for_single_precision(refused, split, label):
    """It once ended in an OverflowError, or in a loss that is infinite, of a batch."""
    frames = structures(12)
    if label == "energy":
        frames[3].info["energy"] = 1e30
    else:
        frames[3].arrays["forces"][1, 2] = -1e30
    ase.io.write(f"{split}.xyz", frames)
    name = {"energy": "energy", "forces": "energy positions gradients"}[label]
    refused(
        rf"Target 'energy' has a label of size 1e\+30 \({name}\) in structure 3 of the {split} "
        rf"set \({split}.xyz\)",
        base_precision=32,
    )


def write_total_energies(shift):
    """Energies with those of all electrons, ``shift`` eV for each atom; one structure is off."""
    for split in ("training", "validation"):
        frames = ase.io.read(f"{split}.xyz", ":")
        for frame in frames:
            forces = frame.get_forces()
            frame.info["energy"] = frame.get_potential_energy() + shift * len(frame)
            frame.calc = None
            frame.arrays["forces"] = forces
        if split == "validation":
            frames[2].info["energy"] -= 1e4
        ase.io.write(f"{split}.xyz", frames)


def test_labels_whose_digits_single_precision_takes(run):
    write_total_energies(-2e4)
    log = run(base_precision=32)
    assert "labels 'energy' of the training set" not in log  # the baseline takes it all
    assert "Single precision rounds 1 labels 'energy' of the validation set" in log
    energy = ase.io.read("validation.xyz", 2).get_potential_energy()
    assert f"the largest, {energy:.10g} eV of structure 2 of the validation set (valid" in log
    assert "without its baseline, known to 0.00098 eV. Let the baseline be fitted" in log
    assert "Single precision" not in run(base_precision=64)
    given = {"num_epochs": 1, "num_workers": 0, "atomic_baseline": {"energy": {1: 0.0, 8: 0.0}}}
    architecture = {"name": "lorem", "model": MODEL_HYPERS, "training": {"batch_size": 2, **given}}
    log = run(base_precision=32, architecture=architecture)
    assert "Single precision rounds 12 labels 'energy' of the training set" in log
    energies = [frame.get_potential_energy() for frame in ase.io.read("training.xyz", ":")]
    assert f"is {min(energies):.10g} eV without its baseline" in log


def test_baselines_are_subtracted_in_double_precision(run, monkeypatch):
    """Labels of -1e5 eV keep the digits that the loss needs."""
    write_total_energies(-2e4)
    seen = {}

    def collect(evaluator, batches):
        for indices, batch in batches:
            predicted = evaluator.predict(batch, is_training=False)
            values = predicted.targets["energy"].block().values
            assert values.dtype == torch.float32
            seen.update(zip(indices, values.flatten().tolist(), strict=True))
        return {"loss": 1.0}

    monkeypatch.setattr("metatrain_lorem.trainer.validation_epoch", collect)
    model = {"scale_targets": False, "num_epochs": 1, "num_workers": 0, "batch_size": 2}
    model["atomic_baseline"] = {"energy": {1: -2e4, 8: -2e4}}
    run(
        base_precision=32,
        architecture={"name": "lorem", "model": MODEL_HYPERS, "training": model},
    )
    frames = structures(16)[12:]
    for index in (0, 1, 3):
        expected = frames[index].info["energy"] / len(frames[index])
        assert seen[index] == pytest.approx(expected, abs=1e-6)


def test_atoms_far_from_the_origin(run):
    frames = structures(12)
    frames[5].positions += [0.0, 0.0, 3e4]
    ase.io.write("training.xyz", frames)
    log = run(base_precision=32)
    assert "Single precision rounds the positions of 1 structures of the training set" in log
    assert "structure 5 of the training set (training.xyz) has a coordinate of 3000" in log
    assert "known to 0.002 angstrom. Move them to the origin" in log
    assert "Single precision" not in run(base_precision=64)


# files (D12)


@pytest.mark.parametrize("which", [0, 3])
def test_momenta_of_some_structures(run, which):
    frames = structures(12)
    frames[which].set_momenta(np.ones((len(frames[which]), 3)))
    _write_separately("training.xyz", frames)
    run()


def test_forces_of_another_file(refused):
    targets = {"energy": {"unit": "eV", "forces": {"read_from": "other.xyz", "key": "forces"}}}
    ase.io.write("other.xyz", structures(11))
    refused(
        r"other.xyz has 11 structures, the training set \(training.xyz\) has 12",
        section("training", targets),
    )
    ase.io.write("other.xyz", structures(13)[1:])
    refused(
        r"structure 0 of the training set \(training.xyz\) in other.xyz has the atoms H3O",
        section("training", targets),
    )


def write_heavy_water(path):
    frames = structures(12)
    ase.io.write(path, frames)
    text = path.read_text().split("\n")
    start = sum(len(frame) + 2 for frame in frames[:4])
    assert text[start + 2].startswith("H ")
    text[start + 2] = text[start + 2].replace("H ", "D ", 1)
    path.write_text("\n".join(text))
    return frames


def test_deuterium(refused, run, tmp_path):
    frames = write_heavy_water(tmp_path / "training.xyz")
    refused("ASE cannot read structure 4 of training.xyz: it has atoms called D. .*prepare")
    summary = prepare_file("training.xyz", "prepared.xyz")
    assert "atoms of D or T, written as H 1" in " ".join(str(summary).split())
    prepared = ase.io.read("prepared.xyz", ":")
    for i, (frame, old) in enumerate(zip(prepared, frames, strict=True)):
        assert (frame.numbers == old.numbers).all()
        masses = old.get_masses()
        if i == 4:
            masses[0] = 2.014
        np.testing.assert_allclose(frame.get_masses(), masses, atol=1e-3)
        np.testing.assert_allclose(frame.get_forces(), old.arrays["forces"], atol=1e-7)
    run(section("prepared"))


def test_a_file_that_ends_in_a_structure(refused):
    text = open("training.xyz").read().split("\n")
    with open("training.xyz", "w") as file:
        file.write("\n".join(text[:-3]))
    refused("ASE cannot read structure 11 of training.xyz")


def test_good_data_trains(run):
    log = run()
    assert "have no" not in log and "untrained" not in log


# units of targets


def test_energy_without_a_unit(run):
    bare = {"energy": {"forces": True}}
    log = run(section("training", bare), section("validation", bare))
    (line,) = [x for x in log.splitlines() if "No `unit`" in x]
    assert line.startswith("WARNING") and "target 'energy' of the training set (training" in line
    assert "ASE takes them for eV. Write `unit: eV`" in line
    assert "No `unit`" not in run()


def test_pure_number_as_a_target(run):
    frames = structures(12)
    for frame in frames:
        frame.info["number"] = float(len(frame))
    ase.io.write("training.xyz", frames)
    ase.io.write("validation.xyz", frames[:4])
    targets = {"mtt::number": {"key": "number"}}
    log = run(section("training", targets), section("validation", targets))
    (line,) = [x for x in log.splitlines() if "No `unit`" in x]
    assert line.startswith("INFO") and "'mtt::number' of the training set (training.xyz)" in line


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "pett"}, r"backbone.name: Architecture 'pett' .* Did you mean 'pet'"),
        (
            {"name": "pet", "hypers": {"cutof": 3.0}},
            r"backbone.hypers, as of 'pet': (.|\n)*'cutof'",
        ),
        ({"name": "pet", "hypers": {"system_conditioning": True}}, "inputs charge, spin_mult"),
        ({"name": "composition"}, "'composition' has no features"),
    ],
)
def test_backbones(refused, section, message):
    refused(message, model={"backbone": section})
