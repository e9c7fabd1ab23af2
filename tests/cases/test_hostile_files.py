"""Files that are damaged, or made to harm."""

import os
import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from helpers import models, training

from metatrain_lorem.__main__ import main
from metatrain_lorem.commands.convert_lorem_jax.conversion import convert
from metatrain_lorem.commands.set_charge import set_charge
from metatrain_lorem.training import checkpoint_files
from metatrain_lorem.training.checkpoint_files import write_checkpoint

LOREM_JAX = Path(__file__).parents[1] / "golden" / "lorem_jax" / "plain"
KERNEL = ["params", "Dense_0", "kernel"]


@pytest.fixture
def lorem_jax(tmp_path):
    """A copy of a checkpoint of lorem-jax, to be spoiled."""
    return Path(shutil.copytree(LOREM_JAX, tmp_path / "lorem-jax"))


def edit_kernel(folder: Path, change) -> None:
    """Replace shape, type and buffer of one array."""
    path = folder / "model" / "model.msgpack"
    tree = msgpack.unpackb(path.read_bytes(), ext_hook=msgpack.ExtType)
    branch = tree
    for name in KERNEL[:-1]:
        branch = branch[name]
    content = change(*msgpack.unpackb(branch[KERNEL[-1]].data))
    branch[KERNEL[-1]] = msgpack.ExtType(1, msgpack.packb(content))
    path.write_bytes(msgpack.packb(tree))


def with_value(value: float):
    def change(shape, dtype, buffer):
        array = np.frombuffer(buffer, dtype).copy()
        array[3] = value
        return [shape, dtype, array.tobytes()]

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (with_value(np.nan), "params/Dense_0/kernel holds infinite values or NaN"),
        (with_value(np.inf), "params/Dense_0/kernel holds infinite values or NaN"),
        (lambda shape, dtype, buffer: [shape, "bfloat17", buffer], "bfloat17"),
        (lambda shape, dtype, buffer: [shape, "int32", buffer], "type int32, not float"),
        (lambda shape, dtype, buffer: [[3], dtype, buffer], "can't be read as msgpack"),
    ],
)
def test_weights_of_lorem_jax(lorem_jax, tmp_path, change, message):
    edit_kernel(lorem_jax, change)
    with pytest.raises(ValueError, match=f"model.msgpack.*{message}"):
        convert(lorem_jax, tmp_path / "model.ckpt")
    assert not (tmp_path / "model.ckpt").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ("elemental: {1: .nan, 6: 0.0, 8: 0.0}", "the energy of element 1 is nan"),
        ("elemental: {1: -.inf, 6: 0.0, 8: 0.0}", "the energy of element 1 is -inf"),
        ("elemental: !!python/object/apply:os.getcwd []", "can't be read as YAML"),
        ("elemental: {1: !mine 0.0}", "can't be read as YAML"),
        ("elemental: [", "can't be read as YAML"),
        ("elemental: {O: 0.0}", "one energy per atomic number"),
        ("elemental: {1: }", "one energy per atomic number"),
        ("elemental: [1.0]", "one energy per atomic number"),
        ("elemental: {}", "energies per element"),
    ],
)
def test_baseline_of_lorem_jax(lorem_jax, tmp_path, content, message):
    (lorem_jax / "model" / "baseline.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"baseline.yaml.*{message}"):
        convert(lorem_jax, tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "content, message",
    [
        ("lorem.models.mlip.Lorem: !!python/name:os.system", "can't be read as YAML"),
        ("lorem.models.mlip.Lorem: [1, 2]", "should be settings"),
        ("lorem.models.mlip.Lorem: {cutoff: .nan}", "cutoff: nan is not a positive"),
        ("lorem.models.mlip.Lorem: {cutoff: five}", "cutoff"),
        ("lorem.models.mlip.Lorem: {max_degree: 2.5}", "max_degree"),
        ("lorem.models.mlip.Lorem: {num_features: -1}", "num_features: -1 is not a positive"),
    ],
)
def test_settings_of_lorem_jax(lorem_jax, tmp_path, content, message):
    (lorem_jax / "model" / "model.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"(?s)model.yaml.*{message}"):
        convert(lorem_jax, tmp_path / "model.ckpt")


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a model that takes total charges, with everything that training adds."""
    model = models.new_model(conditional=True, charge_equilibration={"enable": True})
    training.new_trainer().save_checkpoint(model, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    content["metadata"] = Harmful(tmp_path / "victim")
    torch.save(content, tmp_path / "harmful.ckpt")
    with pytest.raises(ValueError, match="harmful.ckpt.*run any code.*system"):
        set_charge(tmp_path / "harmful.ckpt", 1.0, tmp_path / "fixed.ckpt")
    assert not (tmp_path / "victim").exists()
    set_charge(checkpoint, 1.0, tmp_path / "fixed.ckpt")


def test_help_tells_whom_to_trust(capsys):
    for command in ("set-charge", "report"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "you trust" in " ".join(capsys.readouterr().out.split())


def test_links_at_the_temporary_name_are_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    # a name that the process number tells
    (tmp_path / f".model.ckpt.{os.getpid()}.tmp").symlink_to(victim)
    path = write_checkpoint({"number": 1}, tmp_path / "model.ckpt")
    assert victim.read_text() == "precious"
    assert torch.load(path) == {"number": 1}
    assert path.stat().st_mode & 0o777 == victim.stat().st_mode & 0o777

    # and one that was guessed
    monkeypatch.setattr(checkpoint_files.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / ".model.ckpt.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_checkpoint({"number": 2}, path)
    assert victim.read_text() == "precious"
    assert torch.load(path) == {"number": 1}
