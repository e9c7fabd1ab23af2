"""Import of lorem-jax checkpoints. That the imported models equal lorem-jax: test_parity.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import msgpack
import numpy as np
import pytest
import torch
import yaml
from metatomic.torch import (
    ModelEvaluationOptions,
    ModelOutput,
    load_atomistic_model,
    systems_to_torch,
)
from metatrain.utils.io import load_model
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists

from metatrain_lorem.commands.convert_lorem_jax.conversion import convert, read_parameters

pytestmark = pytest.mark.usefixtures("interpreted")

GOLDEN = Path(__file__).parents[1] / "golden" / "lorem_jax"
SETTINGS = ["plain", "message_passing", "scalar_message_passing", "short_range", "zero_start"]
SETTINGS.append("born_charges")


@pytest.fixture(scope="module")
def structures():
    return {atoms.info["name"]: atoms for atoms in ase.io.read(GOLDEN / "structures.xyz", ":")}


@pytest.fixture(scope="module")
def reference():
    return np.load(GOLDEN / "reference.npz")


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a checkpoint folder, to be spoiled."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "plain", folder)
    return folder


def baseline_energy(atoms):
    energies = yaml.safe_load((GOLDEN / "plain" / "model" / "baseline.yaml").read_text())
    return sum(energies["elemental"][int(z)] for z in atoms.numbers)


def energy(model, atoms, dtype=torch.float64):
    system = systems_to_torch(atoms, dtype=dtype)
    system = get_system_with_neighbor_lists(system, model.requested_neighbor_lists())
    return model([system], {"energy": ModelOutput(sample_kind="system")})["energy"].block().values


def edit_settings(folder, **changes):
    path = folder / "model" / "model.yaml"
    settings = yaml.safe_load(path.read_text())
    next(iter(settings.values())).update(changes)
    path.write_text(yaml.safe_dump(settings))


def pack_array(array):
    content = msgpack.packb([list(array.shape), array.dtype.name, array.tobytes()])
    return msgpack.ExtType(1, content)


def edit_weights(folder, edit):
    """``edit`` changes a dictionary of arrays by path, in place."""
    path = folder / "model" / "model.msgpack"
    weights = read_parameters(path)
    edit(weights)
    tree = {}
    for key, value in weights.items():
        *branches, leaf = key.split("/")
        branch = tree
        for name in branches:
            branch = branch.setdefault(name, {})
        branch[leaf] = pack_array(value)
    path.write_bytes(msgpack.packb(tree))


@pytest.mark.parametrize("setting", SETTINGS)
def test_checkpoint_gives_the_energies_with_the_baseline(setting, tmp_path, structures, reference):
    convert(GOLDEN / setting, tmp_path / "model.ckpt")
    model = load_model(tmp_path / "model.ckpt").to(torch.float64).eval()
    for name in ("cluster", "ethanol", "atom"):
        own = energy(model, structures[name]).item()
        expected = float(reference[f"{setting}/{name}/energy"]) + baseline_energy(structures[name])
        assert abs(own - expected) < 1e-9


def test_command_then_export(tmp_path, structures, reference):
    """As a user does it, each command in a process of its own."""
    command = [sys.executable, "-m", "metatrain_lorem", "convert-lorem-jax", str(GOLDEN / "plain")]
    subprocess.run([*command, "-o", "model.ckpt"], cwd=tmp_path, check=True)
    subprocess.run(["mtt", "export", "model.ckpt", "-o", "model.pt"], cwd=tmp_path, check=True)
    model = load_atomistic_model(str(tmp_path / "model.pt"))
    assert next(model.parameters()).dtype == torch.float32
    assert model.capabilities().interaction_range == float("inf")
    options = ModelEvaluationOptions("angstrom", {"energy": ModelOutput(unit="eV")})
    for name in ("triclinic", "ethanol"):
        system = systems_to_torch(structures[name], dtype=torch.float64)
        system = get_system_with_neighbor_lists(system, model.requested_neighbor_lists())
        own = model([system], options, check_consistency=True)["energy"].block().values.item()
        expected = float(reference[f"plain/{name}/energy"])
        baseline = baseline_energy(structures[name])
        # in single precision, all but the baseline
        assert abs(own - baseline - expected) < 1e-5


def test_born_charges_then_export(tmp_path, structures, reference):
    """In single precision, as it is used."""
    convert(GOLDEN / "born_charges", tmp_path / "model.ckpt")
    load_model(tmp_path / "model.ckpt").export().save(str(tmp_path / "model.pt"))
    model = load_atomistic_model(str(tmp_path / "model.pt"))
    name = "mtt::born_effective_charge"
    options = ModelEvaluationOptions("angstrom", {name: ModelOutput(sample_kind="atom")})
    system = systems_to_torch(structures["ethanol"], dtype=torch.float64)
    system = get_system_with_neighbor_lists(system, model.requested_neighbor_lists())
    own = model([system], options, check_consistency=True)[name].block().values[..., 0].numpy()
    expected = reference["born_charges/ethanol/apt"]
    assert np.abs(own - expected).max() < 1e-4 * np.sqrt(np.mean(expected**2))
    assert abs(own.sum(axis=0)).max() < 1e-4 * np.abs(expected).max()


def test_files_without_the_subfolder(checkpoint, tmp_path):
    for path in (checkpoint / "model").iterdir():
        path.rename(checkpoint / path.name)
    (checkpoint / "model").rmdir()
    convert(checkpoint, tmp_path / "flat.ckpt")
    convert(GOLDEN / "plain", tmp_path / "nested.ckpt")
    flat, nested = (load_model(tmp_path / f"{name}.ckpt") for name in ("flat", "nested"))
    for own, expected in zip(flat.parameters(), nested.parameters(), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("name", ["model.yaml", "baseline.yaml", "model.msgpack"])
def test_missing_file(name, checkpoint, tmp_path):
    (checkpoint / "model" / name).unlink()
    with pytest.raises(FileNotFoundError, match="is not a lorem-jax checkpoint"):
        convert(checkpoint, tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "setting",
    [pytest.param(x, marks=pytest.mark.slow) if x == "message_passing" else x for x in SETTINGS],
)
def test_every_weight_counts(setting, tmp_path):
    """A missing one is named, whichever it is, so every weight has one place."""
    for path in read_parameters(GOLDEN / setting / "model" / "model.msgpack"):
        folder = tmp_path / path.replace("/", "-")
        shutil.copytree(GOLDEN / setting, folder)
        edit_weights(folder, lambda weights, path=path: weights.pop(path))
        with pytest.raises(ValueError, match=f"lacks {path}".replace("+", r"\+")):
            convert(folder, tmp_path / "model.ckpt")


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_value_is_used(setting, tmp_path, monkeypatch):
    """All numbers of the checkpoint are in the model: none is dropped, none appears twice.

    But for species that the baseline lacks, entries of tensor products that break parity or the
    triangle rule, those of the odd parity that Born charges have no part in, and the constants of
    the energies, which are added up.
    """
    weights = read_parameters(GOLDEN / setting / "model" / "model.msgpack")
    numbers = iter(range(1, 10**6))
    for key, value in weights.items():
        # distinct, and exact in single precision
        weights[key] = np.array([next(numbers) for _ in range(value.size)], dtype=np.float32)
        weights[key] = weights[key].reshape(value.shape)
    elements = yaml.safe_load((GOLDEN / setting / "model" / "baseline.yaml").read_text())
    expected = []
    for key, value in weights.items():
        if key.endswith("embedding"):
            value = value[sorted(elements["elemental"])]
        elif value.ndim == 7:
            paths = np.array(
                [
                    (l1, l2, l3)
                    for l1 in range(value.shape[1])
                    for l2 in range(value.shape[3])
                    for l3 in range(value.shape[5])
                    if abs(l1 - l2) <= l3 <= l1 + l2
                    and (l1 + l2 + (0 if "PerParticle" in key else l3)) % 2 == 0
                ]
            )
            value = value[0, paths[:, 0], 0, paths[:, 1], 0, paths[:, 2]]
        elif key.endswith("Dense_2/bias"):
            continue
        expected.extend(value.ravel().tolist())

    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / setting, folder)
    edit_weights(folder, lambda old: old.update(weights))
    convert(folder, tmp_path / "model.ckpt")
    model = load_model(tmp_path / "model.ckpt")
    found = []
    for name, parameter in model.named_parameters():
        if name != "readout.heads.energy.invariants.last_layer.bias":
            found.extend(parameter.detach().ravel().tolist())
    assert sorted(found) == sorted(expected)
    constants = sum(value[0] for key, value in weights.items() if key.endswith("Dense_2/bias"))
    assert model.readout.heads["energy"].invariants.last_layer.bias.item() == constants


def test_weight_without_a_place(checkpoint, tmp_path):
    edit_weights(
        checkpoint, lambda weights: weights.update({"params/MLP_9/bias": np.zeros(3, "f4")})
    )
    with pytest.raises(ValueError, match=r"no place for: \{'params/MLP_9/bias': \[3\]\}"):
        convert(checkpoint, tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "path",
    [
        "params/Dense_0/kernel",
        "params/Update_1/LayerNorm_0/scale",
        "params/TensorDense_0/dense/1-/kernel",
        "params/TensorDense_1/tensor/kernel",
        "params/MLP_2/Dense_2/bias",
        "params/Initial_0/ChemicalEmbedding_0/Embed_0/embedding",
    ],
)
def test_weight_of_another_shape(path, checkpoint, tmp_path):
    edit_weights(
        checkpoint, lambda weights: weights.update({path: np.repeat(weights[path], 2, axis=-1)})
    )
    with pytest.raises(ValueError, match=rf"{path} has shape \[.*\]"):
        convert(checkpoint, tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"radial_basis": "basic_gaussian"}, "radial_basis: 'basic_gaussian' is not one of"),
        ({"cutoff_fn": "sinc"}, "cutoff_fn: 'sinc' is not one of"),
        ({"temperature": 300}, r"unknown settings \['temperature'\]"),
        ({"inputs": ["charge"]}, "models with inputs can't be imported"),
        ({"num_features": 9}, "has shape"),
        ({"num_message_passing": 1}, "lacks params/"),
        ({"lr": False}, "no place for"),
    ],
)
def test_settings_that_do_not_fit(changes, message, checkpoint, tmp_path):
    edit_settings(checkpoint, **changes)
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, tmp_path / "model.ckpt")


def test_other_models_are_refused_by_name(checkpoint, tmp_path):
    path = checkpoint / "model" / "model.yaml"
    (settings,) = yaml.safe_load(path.read_text()).values()
    path.write_text(yaml.safe_dump({"somewhere.Else": settings}))
    message = "somewhere.Else is neither of lorem.models.mlip.Lorem, lorem.models.bec.LoremBEC"
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, tmp_path / "model.ckpt")


def test_born_charges_of_an_energy_model(checkpoint, tmp_path):
    """Named as what predicts them, but without their weights."""
    path = checkpoint / "model" / "model.yaml"
    (settings,) = yaml.safe_load(path.read_text()).values()
    path.write_text(yaml.safe_dump({"lorem.models.bec.LoremBEC": settings}))
    with pytest.raises(ValueError, match="lacks params/PerParticleTensorPredictor_0"):
        convert(checkpoint, tmp_path / "model.ckpt")


def test_born_charges_with_equivariant_message_passing(tmp_path):
    """Their predictors read spherical features of each step, which is not kept here."""
    shutil.copytree(GOLDEN / "born_charges", tmp_path / "checkpoint")
    edit_settings(tmp_path / "checkpoint", equivariant_message_passing=True)
    with pytest.raises(ValueError, match="not available with message passing of spherical feat"):
        convert(tmp_path / "checkpoint", tmp_path / "model.ckpt")


def test_command_ends_with_the_message(checkpoint, tmp_path):
    edit_settings(checkpoint, temperature=300)
    command = [sys.executable, "-m", "metatrain_lorem", "convert-lorem-jax", str(checkpoint)]
    process = subprocess.run(
        [*command, "-o", str(tmp_path / "model.ckpt")], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].endswith("unknown settings ['temperature']")
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "model.ckpt").exists()


@pytest.mark.parametrize("content", [b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb({"a": 1})])
def test_damaged_weights(content, checkpoint, tmp_path):
    path = checkpoint / "model" / "model.msgpack"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="model.msgpack"):
        convert(checkpoint, tmp_path / "model.ckpt")


def test_truncated_weights(checkpoint, tmp_path):
    path = checkpoint / "model" / "model.msgpack"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.msgpack"):
        convert(checkpoint, tmp_path / "model.ckpt")


@pytest.mark.parametrize("setting", ["plain", "message_passing", "zero_start"])
def test_full_isolated_potentials(setting, tmp_path, structures):
    """As if the Coulomb sum had no factor ½."""
    convert(GOLDEN / setting, tmp_path / "half.ckpt")
    convert(GOLDEN / setting, tmp_path / "full.ckpt", full_isolated_potentials=True)
    half, full = (
        load_model(tmp_path / f"{name}.ckpt").to(torch.float64).eval() for name in ("half", "full")
    )
    for name in ("cluster", "pair", "ethanol"):
        before = energy(half, structures[name])
        hook = half.long_range.coulomb.register_forward_hook(lambda _, __, output: 2 * output)
        doubled = energy(half, structures[name])
        hook.remove()
        assert abs(doubled - before).item() > 1e-6
        assert abs(energy(full, structures[name]) - doubled).item() < 1e-9


def test_full_isolated_potentials_need_a_long_range_block(tmp_path):
    with pytest.raises(ValueError, match="no long-range block"):
        convert(GOLDEN / "short_range", tmp_path / "model.ckpt", full_isolated_potentials=True)


@pytest.mark.parametrize("setting", ["small", "small_mp1", "small_sr", "small_bec", "default"])
def test_shared_checkpoints(setting, shared, tmp_path):
    """Their energies: test_parity.py."""
    folder = shared / "golden" / "lorem_jax_checkpoints" / setting
    convert(folder, tmp_path / "model.ckpt")
    model = load_model(tmp_path / "model.ckpt").to(torch.float64).eval()
    atoms = ase.io.read(shared / "golden" / "structures.xyz", "0")
    expected = np.load(shared / "golden" / f"{setting}_reference.npz")
    # the reference's own imprecision, see test_parity.py
    assert abs(energy(model, atoms).item() - expected[f"{atoms.info['name']}/energy"]) < 1e-5
