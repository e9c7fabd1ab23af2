"""Another architecture of metatrain inside the model."""

import copy
import logging

import numpy as np
import pytest
import torch
from helpers import backbones, models
from metatensor.torch import Labels
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.io import model_from_checkpoint
from scipy.spatial.transform import Rotation

from metatrain_lorem.backbones import check_exportable, exportable
from metatrain_lorem.commands.set_charge import set_charge
from metatrain_lorem.model import Lorem
from metatrain_lorem.training.optimizers import (
    build_optimizers,
    check_backbone_factor,
    set_learning_rate,
)

PER_SYSTEM = {"energy": ModelOutput(unit="eV", sample_kind="system")}
QEQ = {"enable": True}
SHORT = {"enable": False}


@pytest.fixture
def frames(lorem):
    return [frame.copy() for frame in lorem.frames.values()]


@pytest.fixture(scope="module")
def pet(tmp_path_factory):
    """A PET potential, and its checkpoint."""
    path = tmp_path_factory.mktemp("pet") / "pet.ckpt"
    return backbones.write_trained(path), path


def energies_and_forces(model, frames, dtype=torch.float64):
    systems = [system.to(dtype) for system in models.systems(model, frames)]
    for system in systems:
        system.positions.requires_grad_()
    energies = model(systems, PER_SYSTEM)["energy"].block().values
    forces = torch.autograd.grad(energies.sum(), [system.positions for system in systems])
    return energies.detach(), -torch.cat(forces)


# --- a new model ---------------------------------------------------------------------------------


def test_batch_is_one_by_one(frames):
    model = models.new_model(backbone=backbones.section(), charge_equilibration=QEQ)
    batch = models.values(model, frames, sample_kind="atom")
    alone = torch.cat([models.values(model, [frame], sample_kind="atom") for frame in frames])
    torch.testing.assert_close(batch, alone, rtol=1e-12, atol=1e-12)


def test_the_features_matter(frames):
    """Through scalar and spherical features: each alone changes a target of both."""
    section = {"quantity": "", "unit": "", "sample_kind": "atom", "num_subtargets": 1}
    target = get_generic_target_info("mtt::v", {**section, "type": {"cartesian": {"rank": 1}}})
    model = models.new_model({"mtt::v": target}, backbone=backbones.section(), long_range=SHORT)
    before = models.values(model, frames[:1], "mtt::v", "atom")
    for name in ("gate", "linear"):
        changed = copy.deepcopy(model)
        torch.nn.init.zeros_(getattr(changed.backbone, name).weight)
        assert (models.values(changed, frames[:1], "mtt::v", "atom") - before).abs().max() > 1e-4


def test_charges_sum_to_the_total_charge(frames):
    model = models.new_model(
        backbone=backbones.section(), charge_equilibration=QEQ, conditional=True
    )
    for frame, charge in zip(frames, (0.7, -1.0, 2.0), strict=True):
        frame.info["charge"] = charge
        charges = models.values(model, [frame], "charge", "atom")
        assert charges.std() > 0.01
        assert abs(charges.sum() - charge) < 1e-12


def test_invariances(frames):
    """Translation and order change nothing. PET is only nearly invariant to rotations, and random
    weights are nowhere near training: the test shows that the spread is PET's own."""
    model = models.new_model(backbone=backbones.section(), charge_equilibration=QEQ)
    frame = frames[2]
    energy = models.values(model, [frame])
    moved, shuffled, turned = frame.copy(), frame[::-1], frame.copy()
    moved.positions += [3.0, -20.0, 7.0]
    turned.positions = Rotation.random(random_state=0).apply(frame.positions)
    for other in (moved, shuffled):
        torch.testing.assert_close(models.values(model, [other]), energy, rtol=0, atol=1e-10)
    spread = (models.values(model, [turned]) - energy).abs()
    print(f"a rotation changes the energy by {spread.item():.2e} eV")
    assert 1e-6 < spread < 0.3
    for name in ("linear", "gate"):
        torch.nn.init.zeros_(getattr(model.backbone, name).weight)
    energy = models.values(model, [frame])
    torch.testing.assert_close(models.values(model, [turned]), energy, rtol=0, atol=1e-10)


def test_interaction_range_is_the_larger_one():
    """Two layers of 4.5 Å each; 4 Å without the backbone, and infinite with our blocks."""
    short = models.new_model(backbone=backbones.section(), long_range=SHORT)
    assert short.interaction_range() == 9.0
    assert models.new_model(backbone=backbones.section()).interaction_range() == np.inf


def test_neighbor_lists_of_both():
    model = models.new_model(backbone=backbones.section())
    lists = {(options.cutoff, options.strict) for options in model.requested_neighbor_lists()}
    assert lists == {(4.0, True), (4.5, False)}


def test_inputs_are_passed_on(frames):
    """PET conditioned on total charge and spin multiplicity."""
    hypers = {**backbones.SMALL["pet"], "system_conditioning": True}
    section = backbones.section(hypers=hypers)
    with pytest.raises(ValueError, match="inputs charge, spin_multiplicity, which the data lack"):
        models.new_model(backbone=section)
    info = {name: models.total_charge_info() for name in ("charge", "spin_multiplicity")}
    model = models.new_model(backbone=section, extra_data=info)
    assert set(model.requested_inputs()) == {"charge", "spin_multiplicity"}
    torch.nn.init.zeros_(model.charge_embedding[2].weight)
    for parameter in model.backbone.model.system_conditioning.parameters():
        torch.nn.init.normal_(parameter)  # its last layer starts at zero

    def energy(charge, spin):
        systems = models.systems(model, frames[2:])
        given = {"charge": charge, "spin_multiplicity": spin}
        for name, value in given.items():
            models.with_input(systems[0], name, value)
        return model(systems, PER_SYSTEM)["energy"].block().values.item()

    assert abs(energy(1.0, 2.0) - energy(1.0, 1.0)) > 1e-5
    assert abs(energy(1.0, 2.0) - energy(0.0, 2.0)) > 1e-5
    model.export()


# --- exported ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
def test_exported(frames, interpreted, tmp_path, dtype):
    """The file gives what the model gives; in single precision far from the origin, too."""
    frames = frames[:1] if dtype == torch.float32 else frames
    model = models.new_model(backbone=backbones.section(), charge_equilibration=QEQ)
    energies, forces = energies_and_forces(model, frames)
    model.to(dtype).export().save(str(tmp_path / "model.pt"))
    for frame in frames:
        frame.positions += 1e5
        frame.calc = MetatomicCalculator(tmp_path / "model.pt", check_consistency=True)
    found = torch.tensor([frame.get_potential_energy() for frame in frames]).unsqueeze(1)
    found_forces = torch.tensor(np.concatenate([frame.get_forces() for frame in frames]))
    tolerance = 1e-9 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(found, energies, rtol=tolerance, atol=0.0)
    largest = forces.abs().max()
    assert (found_forces - forces).abs().max() < 5 * tolerance * largest


def test_derivatives_in_python_are_refused():
    """As those of sphericart's operators, of which metatrain's SOAP-BPNN is made."""
    sphericart = pytest.importorskip("sphericart.torch")
    model = models.new_model(backbone=backbones.section())
    pet = model.backbone.model
    check_exportable(pet)
    harmonics = sphericart.SphericalHarmonics(2)

    def evaluate_harmonics(*_):
        harmonics(torch.ones(1, 3))

    pet.register_forward_pre_hook(evaluate_harmonics)
    with pytest.raises(ValueError, match="derivatives of its operators sphericart_torch::"):
        exportable(pet)


# --- from a checkpoint ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocks",
    [
        {"long_range": SHORT},
        {},
        {"long_range": SHORT, "charge_equilibration": QEQ},
        {"charge_equilibration": QEQ},
    ],
    ids=["none", "long range", "charges", "both"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_starts_as_the_checkpoint(pet, frames, blocks, dtype):
    reference, path = pet
    expected = energies_and_forces(copy.deepcopy(reference).to(dtype), frames, dtype)
    model = new_from(path, **blocks).to(dtype)
    found = energies_and_forces(model, frames, dtype)
    for own, its in zip(found, expected, strict=True):
        error = (own - its).abs().max() / its.abs().max()
        print(f"largest difference {error:.1e} of the largest value")
        assert error < (1e-12 if dtype == torch.float64 else 1e-6)


def new_from(path, atomic_types=(1, 6, 7, 8), targets=None, **hypers):
    """A new model with that of a checkpoint inside, as before the first step."""
    section = hypers.pop("backbone", {})
    model = models.new_model(
        targets,
        backbone=backbones.section(checkpoint=str(path), **section),
        atomic_types=atomic_types,
        scale=False,
        **hypers,
    )
    if model.charge_equilibration is not None:
        # undo what new_model does
        torch.nn.init.zeros_(model.charge_equilibration.species_electronegativity)
    return model


def test_in_training(pet, frames):
    """Energies lack baselines and scales; the backbone learns as in its own training."""
    reference, path = pet
    model = new_from(path).train()
    energies = model(models.systems(model, frames), PER_SYSTEM)["energy"].block().values
    baselines = torch.tensor([[-100.0 * frame.numbers.sum()] for frame in frames])
    expected = models.values(reference, frames)
    torch.testing.assert_close(3.7 * energies + baselines, expected, rtol=1e-12, atol=0.0)
    assert model.backbone.model.backend.training  # PET then can be derived twice


def test_energies_of_selected_atoms(pet, frames):
    reference, path = pet
    model = new_from(path)
    selected = Labels(["system", "atom"], torch.tensor([[0, 1], [1, 0], [1, 3]]))
    for kind in ("atom", "system"):
        own, its = (
            models.values(m, frames, sample_kind=kind, selected_atoms=selected)
            for m in (model, reference)
        )
        torch.testing.assert_close(own, its, rtol=1e-12, atol=0.0)


def test_without_its_energy(pet, frames):
    model = new_from(pet[1], backbone={"energy": False})
    assert model.backbone.energies == {}
    assert (models.values(model, frames) > -200.0).all()


def test_variants_of_the_energy(pet, caplog):
    """The energy goes to the target of that name, or to the only variant of it."""
    energy = get_energy_target_info("energy", {"unit": "eV"})
    model = new_from(pet[1], targets={"energy/other": energy})
    assert model.backbone.energies == {"energy/other": "energy"}
    charge = get_generic_target_info(
        "mtt::q",
        {"quantity": "", "unit": "", "type": "scalar", "sample_kind": "atom", "num_subtargets": 1},
    )
    model = new_from(pet[1], targets={"mtt::q": charge})
    assert model.backbone.energies == {}
    (record,) = (r for r in caplog.records if "no target is the energy of the" in r.message)
    assert record.levelno == logging.WARNING
    caplog.clear()
    model_from_checkpoint(model.get_checkpoint(), "export")
    assert "no target is the energy" not in caplog.text  # once, when it is new
    with pytest.raises(ValueError, match="backbone.energy: no target is the energy"):
        new_from(pet[1], targets={"mtt::q": charge}, backbone={"energy": True})


def test_checkpoints_hold_the_backbone(pet, frames, tmp_path):
    """With its weights, whatever became of the file that they came from."""
    path = tmp_path / "gone.ckpt"
    path.write_bytes(pet[1].read_bytes())
    model = new_from(path, charge_equilibration=QEQ)
    path.unlink()
    for parameter in model.backbone.parameters():
        parameter.data.mul_(1.01)
    torch.save(model.get_checkpoint(), tmp_path / "model.ckpt")
    for context in ("restart", "export", "finetune"):
        checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
        loaded = model_from_checkpoint(checkpoint, context).eval()
        assert torch.equal(models.values(loaded, frames), models.values(model, frames))
    loaded.export()


def test_lorem_as_a_backbone(frames, tmp_path):
    reference = backbones.write_trained(tmp_path / "lorem.ckpt", "lorem")
    model = new_from(tmp_path / "lorem.ckpt", backbone={"name": "lorem"}, charge_equilibration=QEQ)
    for own, its in zip(*(energies_and_forces(m, frames) for m in (model, reference)), strict=True):
        torch.testing.assert_close(own, its, rtol=1e-12, atol=1e-9)


def test_older_backbones_are_upgraded(pet, frames, tmp_path, monkeypatch):
    """By the function of their architecture, in all weights of a checkpoint."""
    from metatrain.pet import checkpoints
    from metatrain.pet.model import PET

    model = new_from(pet[1])
    checkpoint = model.get_checkpoint()
    checkpoint["best_model_state_dict"] = copy.deepcopy(checkpoint["model_state_dict"])
    torch.save({**checkpoint, "optimizer_states": [{}]}, tmp_path / "model.ckpt")
    version = PET.__checkpoint_version__
    key = next(k for k in pet[0].state_dict() if k.endswith("node_embedders.0.weight"))

    def update(checkpoint):
        for state in ("model_state_dict", "best_model_state_dict"):
            checkpoint[state][key] = 2.0 * checkpoint[state][key]

    monkeypatch.setattr(PET, "__checkpoint_version__", version + 1)
    monkeypatch.setattr(checkpoints, f"model_update_v{version}_v{version + 1}", update, False)
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
    loaded = model_from_checkpoint(checkpoint, "restart")
    before = model.state_dict()[f"backbone.model.{key}"]
    assert torch.equal(loaded.state_dict()[f"backbone.model.{key}"], 2.0 * before)
    for state in ("model_state_dict", "best_model_state_dict"):
        assert torch.equal(checkpoint[state][f"backbone.model.{key}"], 2.0 * before)
    assert checkpoint["optimizer_states"] is None
    assert loaded.get_checkpoint()["model_data"]["backbone"]["model_ckpt_version"] == version + 1


# --- training ------------------------------------------------------------------------------------


def trained(small, folder, path, training=(), **section):
    data, info = small.read(small.file)
    model = small.new_model(info, backbone=backbones.section(checkpoint=str(path), **section))
    start = {name: x.clone() for name, x in model.state_dict().items()}
    trainer = small.new_trainer(**dict(training))
    small.fit(trainer, model, data, data, folder)
    return model, trainer, start


def backend(state):
    return {name: x for name, x in state.items() if name.startswith("backbone.model.backend.")}


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_weights_stay(small, pet, tmp_path, freeze):
    model, _, start = trained(small, tmp_path, pet[1], freeze=freeze)
    after = model.state_dict()
    same = [torch.equal(after[name], x) for name, x in backend(start).items()]
    assert all(same) if freeze else not all(same)
    assert not torch.equal(after["backbone.linear.weight"], start["backbone.linear.weight"])


def test_baselines_move_and_the_scale_stays(small, pet, tmp_path):
    """Without a step, forces are those of the checkpoint, and energies but for what errors have in
    common."""
    model, _, _ = trained(small, tmp_path, pet[1], {"num_epochs": 0}, freeze=True)
    model.to(torch.float64).eval()
    frames = small.structures(24)
    own, its = (energies_and_forces(m, frames) for m in (model, pet[0]))
    torch.testing.assert_close(own[1], its[1], rtol=1e-9, atol=1e-12)
    labels = torch.tensor([frame.info["energy"] for frame in frames]).unsqueeze(1)
    assert (own[0] - labels).square().mean() < 1e-4 * (its[0] - labels).square().mean()
    counts = torch.tensor([[(f.numbers == z).sum() for z in (1, 8)] for f in frames]).double()
    shift = torch.linalg.lstsq(counts, own[0] - its[0]).solution
    torch.testing.assert_close(counts @ shift, own[0] - its[0])


def test_goes_on_after_a_restart(small, pet, tmp_path):
    """As it was when it was stopped; a frozen backbone may be set free."""
    model, trainer, _ = trained(small, tmp_path, pet[1], freeze=True)
    trainer.save_checkpoint(model, tmp_path / "model.ckpt")
    data, info = small.read(small.file)
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
    loaded = model_from_checkpoint(checkpoint, "restart")
    for (name, own), other in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(own, other), name
        assert own.requires_grad == other.requires_grad, name
    hypers = {"backbone": {**model.hypers["backbone"], "freeze": False}}
    loaded = loaded.restart(info, hypers)
    more = small.new_trainer(num_epochs=3).hypers
    again = type(trainer).load_checkpoint(checkpoint, more, "restart")
    small.fit(again, loaded, data, data, tmp_path)
    before, after = (backend(m.state_dict()) for m in (model, loaded))
    assert not all(torch.equal(after[name], x) for name, x in before.items())
    assert again.epoch == 2
    assert not loaded.get_checkpoint()["model_data"]["model_hypers"]["backbone"]["freeze"]


def test_more_elements_in_fine_tuning(small, pet, tmp_path):
    """As many as the backbone knows."""
    model, _, _ = trained(small, tmp_path, pet[1], {"num_epochs": 0})
    checkpoint = model.get_checkpoint()
    data, info = small.read(small.file)
    more = copy.deepcopy(info)
    more.atomic_types = [1, 6, 8]
    loaded = model_from_checkpoint(copy.deepcopy(checkpoint), "finetune").restart(more)
    assert loaded.atomic_types == [1, 6, 8]
    frames = small.structures(4)
    torch.testing.assert_close(
        models.values(loaded.to(torch.float64).eval(), frames),
        models.values(model.to(torch.float64).eval(), frames),
    )
    more.atomic_types = [1, 8, 79]
    with pytest.raises(ValueError, match=r"backbone .* does not know the atomic types \[79\]"):
        model_from_checkpoint(checkpoint, "finetune").restart(more)


def test_fixed_weights_of_the_backbone_stay_fixed(small, tmp_path):
    """LoRA of PET trains few weights; a backbone that is set free is as PET left it."""
    from metatrain.pet.modules.finetuning import apply_finetuning_strategy

    reference = backbones.write_trained(tmp_path / "pet.ckpt")
    lora = {"method": "lora", "config": {"rank": 2, "alpha": 2.0}, "inherit_heads": {}}
    apply_finetuning_strategy(reference, lora).finetune_config = lora
    checkpoint = reference.get_checkpoint()
    checkpoint["best_model_state_dict"] = checkpoint["model_state_dict"]  # as PET's trainer does
    torch.save(checkpoint, tmp_path / "lora.ckpt")
    expected = {name for name, p in reference.named_parameters() if p.requires_grad}
    assert 0 < len(expected) < len(list(reference.parameters()))
    _, info = small.read(small.file)
    for freeze in (True, False):
        section = backbones.section(checkpoint=str(tmp_path / "lora.ckpt"), freeze=freeze)
        model = small.new_model(info, backbone=section)
        assert trained_names(model) == (set() if freeze else expected)
        loaded = model_from_checkpoint(copy.deepcopy(model.get_checkpoint()), "restart")
        loaded = loaded.restart(info, {"backbone": {**section, "freeze": False}})
        assert trained_names(loaded) == expected


def trained_names(model):
    return {name for name, p in model.backbone.model.named_parameters() if p.requires_grad}


def test_a_checkpoint_may_move_before_a_restart(small, pet, caplog):
    """It is not read any more. What else it says about the backbone must be the same."""
    _, info = small.read(small.file)
    section = backbones.section(checkpoint=str(pet[1]))
    checkpoint = small.new_model(info, backbone=section).get_checkpoint()

    def restarted(start, **changes):
        loaded = model_from_checkpoint(copy.deepcopy(start), "restart")
        return loaded.restart(info, {"backbone": {**section, **changes}})

    caplog.set_level(logging.INFO)
    for path in ("moved/pet.ckpt", None):
        caplog.clear()
        model = restarted(checkpoint, checkpoint=path)
        assert model.hypers["backbone"]["checkpoint"] == str(pet[1])
        assert f"backbone.checkpoint was {pet[1]}, now {path}: neither is read" in caplog.text
    with pytest.raises(ValueError, match="Mismatched hypers: .'backbone'"):
        restarted(checkpoint, checkpoint="moved/pet.ckpt", energy=False)
    scratch = small.new_model(info, backbone=backbones.section()).get_checkpoint()
    with pytest.raises(ValueError, match="Mismatched hypers: .'backbone'"):
        restarted(scratch, hypers=backbones.SMALL["pet"])
    restarted(scratch, hypers=backbones.SMALL["pet"], checkpoint=None)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_learning_rate_of_the_backbone(optimizer):
    """A quarter of what it is with the factor 1, and the same as then for all others."""
    model = models.new_model(backbone=backbones.section())
    quarter, whole = (learning_rates(model, optimizer, factor) for factor in (0.25, 1.0))
    for name, rate in whole.items():
        expected = 0.25 if name.startswith("backbone.model.") else 1.0
        assert quarter[name] / rate == pytest.approx(expected), name


def learning_rates(model, optimizer, factor):
    optimizers = build_optimizers(model, optimizer, 1.0, 0.0, factor)
    set_learning_rate(optimizers, 0.1, 0.0, 0.0)
    rates = {}
    for group in (group for each in optimizers for group in each.param_groups):
        for parameter in group["params"]:
            assert id(parameter) not in rates
            rates[id(parameter)] = group["lr"]
    return {name: rates[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("factor", [-1.0, np.nan, np.inf])
def test_no_learning_rate_of_the_backbone(small, tmp_path, factor):
    with pytest.raises(ValueError, match="training.backbone_learning_rate_factor: .* is not a fin"):
        data, info = small.read(small.file)
        trainer = small.new_trainer(backbone_learning_rate_factor=factor)
        small.fit(trainer, small.new_model(info), data, data, tmp_path)


def test_learning_rates_of_the_backbone_without_effect(pet, caplog):
    model = new_from(pet[1])
    check_backbone_factor(models.new_model(), 1.0)
    check_backbone_factor(model, 0.0)
    assert "no effect" not in caplog.text
    check_backbone_factor(models.new_model(), 0.5)
    assert "factor: 0.5 has no effect, for the model has no backbone" in caplog.text
    caplog.clear()
    check_backbone_factor(new_from(pet[1], backbone={"freeze": True}), 0.5)
    assert "factor: 0.5 has no effect, for the backbone is frozen" in caplog.text


def test_no_epoch_is_the_potential(small, pet, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trained(small, tmp_path, pet[1], {"num_epochs": 0})
    assert "the potential of the backbone's checkpoint is exported" in caplog.text
    assert "untrained" not in caplog.text
    caplog.clear()
    trained(small, tmp_path, pet[1], {"num_epochs": 0}, energy=False)
    assert "random weights, untrained" in caplog.text


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "pett"}, r"backbone.name: Architecture 'pett' is not .* Did you mean 'pet'"),
        ({"name": None, "checkpoint": "a.ckpt"}, r"backbone.checkpoint is given, .* set `name`"),
        ({"name": None, "hypers": {"a": 1}}, r"backbone.hypers is given, but no architecture"),
        ({"name": "composition", "hypers": {}}, r"'composition' has no features"),
        ({"name": "llpr", "hypers": {}}, r"'llpr' can't be a backbone: it is no model by itself"),
        ({"hypers": {"cutof": 3.0}}, r"backbone.hypers, as of 'pet': (.|\n)*'cutof'"),
        ({"hypers": {"cutoff": "far"}}, r"backbone.hypers, as of 'pet': (.|\n)*cutoff"),
        ({"energy": True}, r"backbone.energy: true has a meaning with a `checkpoint` only"),
    ],
)
def test_refused(section, message):
    with pytest.raises(ValueError, match=message):
        models.new_model(backbone={**backbones.section(), **section})


def test_refused_checkpoints(pet, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"backbone.checkpoint: there is no file .*no.ckpt"):
        new_from(tmp_path / "no.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(ValueError, match=r"backbone.checkpoint: .*text.ckpt is no checkpoint"):
        new_from(tmp_path / "text.ckpt")
    with pytest.raises(ValueError, match="is of the architecture 'pet', but `name` is 'lorem'"):
        new_from(pet[1], backbone={"name": "lorem"})
    with pytest.raises(ValueError, match=r"lengths are in 'angstrom' in .*, but in 'bohr'"):
        new_from(pet[1], length_unit="bohr")
    with pytest.raises(ValueError, match=r"pet.ckpt does not know the atomic types \[79\]"):
        new_from(pet[1], atomic_types=(1, 6, 7, 79))
    with pytest.raises(ValueError, match=r"backbone.hypers.cutoff is 3.0, but 4.5 in"):
        new_from(pet[1], backbone={"hypers": {"cutoff": 3.0}})
    with pytest.raises(ValueError, match=r"hypers.long_range.enable is True, but False in"):
        new_from(pet[1], backbone={"hypers": {"long_range": {"enable": True}}})
    new_from(pet[1], backbone={"hypers": {"long_range": {"enable": False}}})
    pet[0].export().save(str(tmp_path / "pet.pt"))
    with pytest.raises(ValueError, match=r"pet.pt is an exported model: give the checkpoint"):
        new_from(tmp_path / "pet.pt")


def test_home_in_the_path_of_a_checkpoint(pet, monkeypatch):
    monkeypatch.setenv("HOME", str(pet[1].parent))
    assert new_from("~/pet.ckpt").backbone.energies == {"energy": "energy"}


def test_freezing_random_weights_is_announced(caplog):
    models.new_model(backbone=backbones.section(freeze=True))
    assert "backbone.freeze: true has a meaning with a `checkpoint` only" in caplog.text


def test_built_in_charge(pet, frames, tmp_path):
    """By the command, which runs no code of a checkpoint."""
    model = new_from(pet[1], charge_equilibration=QEQ, conditional=True)
    torch.save(model.get_checkpoint(), tmp_path / "model.ckpt")
    set_charge(tmp_path / "model.ckpt", 1.0, tmp_path / "charged.ckpt")
    checkpoint = torch.load(tmp_path / "charged.ckpt", weights_only=False)
    charged = model_from_checkpoint(checkpoint, "export").eval()
    assert charged.requested_inputs() == {}
    for frame in frames:
        frame.info["charge"] = 1.0
    assert torch.equal(models.values(charged, frames), models.values(model, frames))


def test_a_built_in_charge_and_a_backbone_that_asks_for_it():
    hypers = {**backbones.SMALL["pet"], "system_conditioning": True}
    info = {name: models.total_charge_info() for name in ("charge", "spin_multiplicity")}
    model = models.new_model(backbone=backbones.section(hypers=hypers), extra_data=info)
    checkpoint = model.get_checkpoint()
    checkpoint["model_data"]["total_charge"] = 1.0
    with pytest.raises(ValueError, match="the backbone asks for total charges itself"):
        Lorem.load_checkpoint(checkpoint, "export")
