"""A total charge built into a checkpoint."""

import math

import pytest
import torch
from ase import Atoms
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelEvaluationOptions, ModelOutput
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.io import load_model

from metatrain_lorem.__main__ import main
from metatrain_lorem.commands.set_charge import set_charge
from metatrain_lorem.model import Lorem
from metatrain_lorem.trainer import Trainer

SMALL = {
    "cutoff": 3.0,
    "num_radial": 4,
    "num_features": 8,
    "num_spherical_features": 2,
    "max_degree": 2,
}


def total_charge_info():
    section = {"quantity": "", "unit": "", "type": "scalar", "sample_kind": "system"}
    return get_generic_target_info("charge", {**section, "num_subtargets": 1, "description": ""})


def write(path, conditional=True, equilibrated=False, trained_range=(-1.0, 1.0)):
    """A checkpoint of a model that has seen total charges in some range."""
    hypers = get_default_hypers("lorem")
    hypers["model"].update(SMALL)
    hypers["model"]["charge_equilibration"]["enable"] = equilibrated
    targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    extra_data = {"charge": total_charge_info()} if conditional else {}
    model = Lorem(hypers["model"], DatasetInfo("angstrom", [1, 8], targets, extra_data))
    model.total_charge_range[:] = torch.tensor(trained_range)
    Trainer(hypers["training"]).save_checkpoint(model, path)
    return path


def load(path):
    return torch.load(path, weights_only=False, map_location="cpu")


@pytest.mark.parametrize("conditional, equilibrated", [(True, False), (False, True), (True, True)])
def test_total_charge_is_in_the_checkpoint(tmp_path, caplog, conditional, equilibrated):
    source = write(tmp_path / "model.ckpt", conditional, equilibrated)
    before = source.read_bytes()
    output = tmp_path / "model-q1.ckpt"
    main(["set-charge", str(source), "--total-charge", "-0.5", "-o", str(output)])
    assert source.read_bytes() == before
    assert not _warnings(caplog)
    assert load(source)["model_data"]["total_charge"] == (None if conditional else 0.0)
    fixed = load(output)
    assert fixed["model_data"]["total_charge"] == -0.5
    for name, value in load(source)["model_state_dict"].items():
        assert torch.equal(fixed["model_state_dict"][name], value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-q1.ckpt", "model.ckpt"]


@pytest.mark.parametrize("charge, warned", [(1.0, False), (1.0005, False), (1.5, True), (-2, True)])
def test_warning_outside_of_the_trained_range(tmp_path, caplog, charge, warned):
    set_charge(write(tmp_path / "model.ckpt"), charge, tmp_path / "fixed.ckpt")
    assert len(_warnings(caplog)) == warned
    assert all("-1 to 1: the model extrapolates" in message for message in _warnings(caplog))


def test_the_model_is_that_of_this_total_charge(tmp_path, lorem):
    """Exported, it asks for nothing, and has the energies of the other for this total charge."""
    set_charge(write(tmp_path / "model.ckpt", equilibrated=True), 1.0, tmp_path / "fixed.ckpt")
    energies = {}
    for name in ("model", "fixed"):
        exported = load_model(tmp_path / f"{name}.ckpt").to(torch.float64).export()
        assert list(exported.requested_inputs(use_new_names=True)) == ["charge"][name == "fixed" :]
        for charge in (1.0, 0.0):
            frame = Atoms("OHH", [[0, 0, 0], [0.9, 0.3, 0], [-0.3, 0.9, 0]])
            system = lorem.systems(exported, [frame])[0]
            if name == "model":
                block = TensorBlock(
                    torch.tensor([[charge]], dtype=torch.float64),
                    Labels.range("system", 1),
                    [],
                    Labels.range("charge", 1),
                )
                system.add_data("charge", TensorMap(Labels.single(), [block]))
            options = ModelEvaluationOptions(
                length_unit="angstrom", outputs={"energy": ModelOutput(sample_kind="system")}
            )
            result = exported([system], options, check_consistency=True)["energy"]
            energies[name, charge] = result.block().values.item()
    assert energies["fixed", 0.0] == pytest.approx(energies["model", 1.0], rel=1e-12)
    assert abs(energies["model", 1.0] - energies["model", 0.0]) > 0.01


def _warnings(caplog):
    return [m for m in caplog.messages if "is outside of the training data's" in m]


@pytest.mark.parametrize("charge", [math.nan, math.inf])
def test_not_a_number(tmp_path, charge):
    with pytest.raises(ValueError, match="finite"):
        set_charge(write(tmp_path / "model.ckpt"), charge, tmp_path / "fixed.ckpt")


def test_model_without_total_charge(tmp_path):
    source = write(tmp_path / "model.ckpt", conditional=False)
    message = "model.ckpt: .* trained without total charges, without charge equilibration and"
    with pytest.raises(ValueError, match=message):
        set_charge(source, 1.0, tmp_path / "fixed.ckpt")


def test_the_input_is_kept(tmp_path):
    source = write(tmp_path / "model.ckpt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="would overwrite"):
        set_charge(source, 1.0, tmp_path / "folder" / ".." / "model.ckpt")


def test_other_files(tmp_path, capsys):
    output = tmp_path / "fixed.ckpt"
    files = {"text": b"H 0 0 0\n", "empty": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint"):
            set_charge(tmp_path / name, 1.0, output)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="list.ckpt is not a checkpoint"):
        set_charge(tmp_path / "list.ckpt", 1.0, output)

    checkpoint = load(write(tmp_path / "model.ckpt"))
    torch.save({**checkpoint, "architecture_name": "pet"}, tmp_path / "pet.ckpt")
    with pytest.raises(ValueError, match="pet.ckpt is a checkpoint of pet, not of lorem"):
        set_charge(tmp_path / "pet.ckpt", 1.0, output)
    torch.save({**checkpoint, "model_ckpt_version": 99}, tmp_path / "later.ckpt")
    with pytest.raises(ValueError, match="later.ckpt: .* version 99"):
        set_charge(tmp_path / "later.ckpt", 1.0, output)
    with pytest.raises(SystemExit, match="error: .*absent.ckpt"):
        main(["set-charge", str(tmp_path / "absent.ckpt"), "--total-charge=1", "-o", str(output)])
    assert not output.exists()
