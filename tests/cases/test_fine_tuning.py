"""Fine-tuning and restarting with data, targets, elements or options other than before."""

import copy
import io
import logging
import os
import sys
from pathlib import Path

import ase.io
import pytest
import torch
import yaml
from helpers import training
from metatrain.__main__ import main
from metatrain.utils.io import load_model

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
