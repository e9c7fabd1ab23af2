"""A total charge built into a model, and structures that have another one."""

import logging
import sys
import warnings

import numpy as np
import pytest
from ase.io import write
from helpers import models, training
from metatomic_ase import MetatomicCalculator
from metatrain.__main__ import main as mtt
from metatrain.utils.io import load_model

from metatrain_lorem.__main__ import main
from metatrain_lorem.commands.set_charge import set_charge

pytestmark = pytest.mark.usefixtures("interpreted")

OPTIONS = """
systems: {read_from: test.xyz, length_unit: angstrom}
targets: {energy: {key: energy, unit: eV}}
extra_data: {charge: {key: charge, unit: e}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of total charge 1 and 0, and structures of charges 1, 3 and none."""
    folder = tmp_path_factory.mktemp("charges")
    model = models.new_model(conditional=True, long_range={"enable": False})
    training.new_trainer().save_checkpoint(model, folder / "model.ckpt")
    load_model(folder / "model.ckpt").export().save(folder / "model.pt")
    for charge in (0, 1):
        set_charge(folder / "model.ckpt", charge, folder / f"q{charge}.ckpt")
        load_model(folder / f"q{charge}.ckpt").export().save(folder / f"q{charge}.pt")
    frames = [models.molecule() for _ in range(3)]
    for frame, charge in zip(frames, (1, 3, 3), strict=True):
        frame.info.update(energy=0.0, charge=charge)
        frame.arrays["forces"] = np.zeros((len(frame), 3))
    write(folder / "test.xyz", frames)
    (folder / "eval.yaml").write_text(OPTIONS)
    return folder


def report(folder, model, *more):
    main(["report", str(folder / model), str(folder / "test.xyz"), "-o", str(folder), *more])


def test_report(folder, capsys):
    with pytest.raises(SystemExit) as refused:
        report(folder, "q1.pt")
    message = str(refused.value)
    assert "test.xyz: structure 1 has the total charge +3 e" in message
    assert "2 of 3 have another one than +1 e" in message and "--any-charge" in message
    report(folder, "q1.pt", "--any-charge")
    assert "charge +3" in capsys.readouterr().out
    report(folder, "model.pt")


def test_report_of_a_model_that_knows_neutral_structures_only(folder, tmp_path):
    """Charge equilibration without total charges in the data. Models without it have no use for
    total charges, so that those of the file are none of their business."""
    for name, enable in (("qeq", True), ("plain", False)):
        model = models.new_model(charge_equilibration={"enable": enable})
        model.export().save(tmp_path / f"{name}.pt")
    with pytest.raises(SystemExit, match="structure 0 has the total charge"):
        main(["report", str(tmp_path / "qeq.pt"), str(folder / "test.xyz"), "-o", str(tmp_path)])
    main(["report", str(tmp_path / "plain.pt"), str(folder / "test.xyz"), "-o", str(tmp_path)])


@pytest.mark.parametrize("model, told", [("q1", "+1 e"), ("q0", "+0 e"), ("model", None)])
def test_ase(folder, model, told):
    frame = models.molecule()
    frame.info["charge"] = 3
    frame.calc = MetatomicCalculator(folder / f"{model}.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame.get_potential_energy()
    messages = [str(w.message) for w in caught if "set-charge" in str(w.message)]
    assert len(messages) == (told is not None)
    assert all(f"total charge {told}, which was built in" in message for message in messages)


@pytest.mark.parametrize("model, count", [("q1", 2), ("q0", 3), ("model", 0)])
def test_eval(folder, model, count, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    words = ["mtt", "eval", f"{model}.pt", "eval.yaml", "-o", "predicted.xyz", "--no-warm-up"]
    monkeypatch.setattr(sys, "argv", words)
    with caplog.at_level(logging.WARNING):
        try:
            mtt()
        except SystemExit as end:
            assert not end.code
    told = [m for m in caplog.messages if "structures have another total charge" in m]
    assert len(told) == (count > 0)
    assert all(message.startswith(f"{count} of 3 structures") for message in told)
