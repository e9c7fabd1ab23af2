"""Partial charges (``long_range.energy: charges``) against sums written out, and what they obey."""

import copy
import logging

import numpy as np
import pytest
import torch
from ase import Atoms
from metatomic.torch import ModelOutput
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.io import model_from_checkpoint
from metatrain.utils.neighbor_lists import get_requested_neighbor_lists
from scipy.special import erf

from metatrain_lorem.commands.set_charge import set_charge
from metatrain_lorem.inspection import built_in_charge
from metatrain_lorem.trainer import Trainer
from metatrain_lorem.training.checkpoint_files import read_checkpoint

COULOMB_CONSTANT = 14.399645  # eV Å / e²
CHARGES = {"energy": "charges"}
CUTOFF = 4.0  # of the small models
BORN = "mtt::born_effective_charge"
POLARIZABILITY = "mtt::polarizability"
ENERGY = get_energy_target_info("energy", {"unit": "eV"})


def target(name, rank, kind, unit, quantity=""):
    section = {"quantity": quantity, "unit": unit, "num_subtargets": 1, "sample_kind": kind}
    section["type"] = {"cartesian": {"rank": rank}} if rank else "scalar"
    return get_generic_target_info(name, section)


MADE_OF_CHARGES = {
    "mtt::atomic_charge": target("mtt::atomic_charge", 0, "atom", "e"),
    "mtt::dipole_moment": target("mtt::dipole_moment", 1, "system", "debye"),
    BORN: target(BORN, 2, "atom", "e"),
    POLARIZABILITY: target(POLARIZABILITY, 2, "system", "A^3"),
}


@pytest.fixture(scope="module")
def model(lorem):
    return lorem.new_model(long_range=CHARGES, conditional=True)


def calls(model, systems, monkeypatch):
    """What the block gets, and what it makes of it: scalar features and graph, charges."""
    seen = []
    forward = model.partial_charges.forward

    def spy(x, graph):
        charges = forward(x, graph)
        seen.append((x.detach(), graph, charges))
        return charges

    with monkeypatch.context() as patch:
        patch.setattr(model.partial_charges, "forward", spy)
        model(systems, {"energy": model.outputs["energy"]})
    return seen[0]


def evaluated(model, systems, monkeypatch):
    """Charges of the network, what lets them flow and how far; energies and charges after that;
    structure by structure."""
    x, graph, made = calls(model, systems, monkeypatch)
    arrays = [*model.partial_charges.charges(x, graph), made.energies, made.charges]
    ends = np.cumsum([len(system) for system in systems])[:-1]
    return [np.split(array.detach().numpy(), ends) for array in arrays]


def test_charges_sum_to_the_total_charge(lorem, model, monkeypatch):
    frames = [lorem.frames[name].copy() for name in ("bulk", "slab", "molecule", "molecule")]
    totals = [0.0, 0.0, 0.0, -2.0]
    for frame, total in zip(frames, totals, strict=True):
        frame.info["charge"] = total
    first, *_, last = evaluated(model, lorem.systems(model, frames), monkeypatch)
    for charges in (first, last):
        np.testing.assert_allclose([q.sum() for q in charges], totals, atol=1e-13)
        assert min(np.ptp(q) for q in charges) > 1e-3
    assert max(abs(a - b).max() for a, b in zip(first, last, strict=True)) > 1e-5


def test_energy_equals_the_sums_written_out(lorem, model, monkeypatch):
    rng = np.random.default_rng(2)
    corners = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    positions = 1.7 * corners + rng.uniform(-0.2, 0.2, (27, 3))
    frame = Atoms("HCNOHCNOHCNOHCNOHCNOHCNOHCN", positions, info={"charge": 1.0})
    systems = lorem.systems(model, [frame])
    (q,), (g,), (rho,), (energies,), (charges,) = evaluated(model, systems, monkeypatch)
    r = frame.get_all_distances() + np.eye(27)
    f = np.where(r < CUTOFF, 0.5 + 0.5 * np.cos(np.pi * r / CUTOFF), 0.0) * (1 - np.eye(27))
    v = ((1 - f) / r * (1 - np.eye(27))) @ q
    overlaps = f * np.exp(-(r**2) / (rho[:, None] ** 2 + rho**2))
    drops = v[:, None] - v
    polarisation = (np.outer(g, g) * overlaps * drops**2).sum(axis=1)
    moved = 2 * (np.outer(g, g) * overlaps * drops).sum(axis=1)
    assert np.abs(moved).max() > 1e-4
    np.testing.assert_allclose(charges, q - moved, rtol=0, atol=1e-14)
    expected = COULOMB_CONSTANT * 0.5 * (q * v - polarisation)
    assert np.abs(polarisation).max() > 1e-6
    np.testing.assert_allclose(energies, expected, rtol=0, atol=1e-12)


def test_energy_of_a_crystal(lorem, model, monkeypatch):
    """Against Ewald's sum at another splitting, written out, for three unequal axes."""
    cell = np.array([[5.1, 0.0, 0.0], [0.7, 4.6, 0.0], [-0.4, 0.5, 5.6]])
    frame = Atoms(
        "HCNO", np.array([[0, 0, 0], [0.5, 0.1, 0.4], [0.2, 0.6, 0.5], [0.7, 0.7, 0.9]]) @ cell
    )
    frame.cell, frame.pbc, frame.info["charge"] = cell, True, 0.0
    precise = lorem.new_model(long_range={**CHARGES, "accuracy": 1e-10}, conditional=True)
    systems = lorem.systems(precise, [frame])
    (q,), (g,), (rho,), (energies,), _ = evaluated(precise, systems, monkeypatch)
    alpha = 0.9
    n = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3), axis=-1).reshape(-1, 3)
    vectors = frame.positions[None, :, None] - frame.positions[:, None, None] + n @ cell
    r = np.linalg.norm(vectors, axis=-1)
    own = r < 1e-9
    r = np.where(own, 1.0, r)
    f = np.where(
        own | (r > CUTOFF), 0.0, 0.5 + 0.5 * np.cos(np.pi * np.minimum(r, CUTOFF) / CUTOFF)
    )
    near = np.where(own, -2 * alpha / np.sqrt(np.pi), (1 - erf(alpha * r) - f) / r).sum(axis=2)
    k = n[np.any(n != 0, axis=1)] @ (2 * np.pi * np.linalg.inv(cell).T)
    squares = (k**2).sum(axis=1)
    weights = 4 * np.pi / frame.get_volume() * np.exp(-squares / (2 * alpha) ** 2) / squares
    phases = np.exp(1j * frame.positions @ k.T)
    v = (near + ((phases * weights) @ phases.conj().T).real) @ q
    overlaps = f * np.exp(-(r**2) / (rho[:, None] ** 2 + rho**2)[..., None])
    moved = (np.outer(g, g) * overlaps.sum(axis=2) * (v[:, None] - v) ** 2).sum(axis=1)
    expected = COULOMB_CONSTANT * 0.5 * (q * v - moved)
    np.testing.assert_allclose(energies, expected, rtol=0, atol=1e-8)


def test_distant_parts_act_by_their_charges(lorem, model):
    """Charge that polarises can't leave a molecule: each keeps the charge that it has alone."""
    parts = [lorem.frames["molecule"].copy() for _ in range(2)]
    distances = np.array([400.0, 800.0])
    energies = []
    for distance in distances:
        pair = parts[0].copy()
        other = parts[1].copy()
        other.positions += [distance, 0.0, 0.0]
        pair = pair + other
        pair.info["charge"] = 2.0
        energies.append(lorem.values(model, [pair]).item())
    # 1 e each, as the two are alike
    expected = COULOMB_CONSTANT * (1 / distances[0] - 1 / distances[1])
    assert abs((energies[0] - energies[1]) / expected - 1) < 1e-3


def test_features_are_those_of_the_local_model(lorem, model):
    assert model.readout.num_stages == 1
    assert model.long_range is None
    assert model.interaction_range() == torch.inf
    assert len(get_requested_neighbor_lists(model)) == 1


def test_targets_that_remain_local_are_named(lorem, caplog):
    targets = {"energy": ENERGY, "mtt::gap": target("mtt::gap", 0, "system", "eV", "gap")}
    with caplog.at_level(logging.WARNING):
        lorem.new_model(targets, long_range=CHARGES)
    assert "targets ['mtt::gap'] know nothing beyond the cutoff" in caplog.text
    caplog.clear()
    lorem.new_model({"energy": ENERGY, **MADE_OF_CHARGES}, long_range=CHARGES)
    assert "beyond the cutoff" not in caplog.text


def test_a_trained_model_gets_charges(lorem, monkeypatch):
    """All else stays: energies change by those of the first charges."""
    short = lorem.new_model(long_range={"enable": False})
    hypers = copy.deepcopy(dict(short.hypers))
    hypers["long_range"] |= {"enable": True, **CHARGES}
    extended = short.restart(short.dataset_info, hypers).eval()
    frames = [lorem.frames["molecule"].copy()]
    systems = lorem.systems(extended, frames)
    *_, (energies,), _ = evaluated(extended, systems, monkeypatch)
    change = (lorem.values(extended, frames) - lorem.values(short, frames)).item()
    assert change == pytest.approx(energies.sum(), abs=1e-12) and change != 0.0
    old = dict(short.named_parameters())
    assert all(torch.equal(x, old[key]) for key, x in extended.named_parameters() if key in old)


def test_degree_of_charges_has_no_meaning(lorem):
    """Its default may be larger than that of a small model."""
    model = lorem.new_model(long_range={**CHARGES, "max_degree": 2}, max_degree=1)
    assert model.partial_charges is not None


def test_length_unit(lorem, model):
    """The same weights in nm give the same energies, if features are those of the same lengths."""
    other = lorem.new_model(long_range=CHARGES, conditional=True, length_unit="nm", cutoff=0.4)
    assert other.partial_charges.constant == pytest.approx(1.4399645)
    assert other.partial_charges.flow**2 == pytest.approx(0.1 * model.partial_charges.flow**2)


@pytest.mark.parametrize("boundary", ["molecule", "slab", "bulk"])
def test_charges_are_derivatives_by_potentials(lorem, model, monkeypatch, boundary):
    """Of the energy, by finite differences, about potentials that differ from atom to atom."""
    frame = lorem.frames[boundary].copy()
    frame.info["charge"] = 1.0
    x, graph, _ = calls(model, lorem.systems(model, [frame]), monkeypatch)
    block, graph = model.partial_charges, graph._replace(field=torch.zeros(1, 3))
    given = torch.linspace(-0.7, 0.9, len(frame), dtype=torch.float64)  # V

    def charges(potentials):
        means = potentials.mean().expand_as(potentials)
        patched = "metatrain_lorem.blocks.partial_charges.field_potentials"
        with monkeypatch.context() as patch:
            patch.setattr(patched, lambda field, graph: (potentials, means))
            return block(x, graph)

    h, numerical = 1e-3, []
    for step in h * torch.eye(len(frame), dtype=torch.float64):
        up, down = (charges(given + s * step).energies.sum() for s in (1, -1))
        numerical.append(float((up - down).detach()) / (2 * h))
    made = charges(given)
    np.testing.assert_allclose(made.charges.detach(), numerical, atol=1e-9)
    without = charges(torch.zeros_like(given))
    assert abs(made.charges - without.charges).max() > 1e-3


def values(model, systems, kind, *names):
    outputs = {name: ModelOutput(sample_kind=kind) for name in names}
    results = model(systems, outputs)
    return [results[name].block().values.squeeze(-1).detach().numpy() for name in names]


def test_targets_made_of_charges(lorem, model, monkeypatch):
    """They are those of a model without these targets, and have no heads."""
    trained = lorem.new_model(
        {"energy": ENERGY, **MADE_OF_CHARGES}, long_range=CHARGES, conditional=True
    )
    trained.load_state_dict(model.state_dict(), strict=False)
    assert list(trained.readout.heads) == ["energy"]
    assert trained.unscaled_targets == list(MADE_OF_CHARGES)
    frames = [lorem.frames["molecule"].copy(), lorem.frames["molecule"][:3]]
    for frame in frames:
        frame.info["charge"] = -1.0
    systems = lorem.systems(model, frames)
    *_, charges = evaluated(model, systems, monkeypatch)
    q, target, born = values(trained, systems, "atom", "charge", "mtt::atomic_charge", BORN)
    np.testing.assert_allclose(q, np.concatenate(charges), atol=1e-14)
    np.testing.assert_array_equal(target, q)
    dipoles, polarizability = values(
        trained, systems, "system", "mtt::dipole_moment", POLARIZABILITY
    )
    names = ("mtt::polarization", POLARIZABILITY)
    expected, expected_polarizability = values(model, systems, "system", *names)
    np.testing.assert_allclose(0.20819433 * dipoles, expected, rtol=1e-6)
    np.testing.assert_allclose(polarizability, expected_polarizability, atol=1e-14)
    np.testing.assert_allclose(born, values(model, systems, "atom", BORN)[0], atol=1e-14)


def test_polarizability_trains(lorem, monkeypatch):
    """Its derivatives by weights, against finite differences; zero where it is not defined, so
    that a batch may hold periodic structures."""
    targets = {"energy": ENERGY, POLARIZABILITY: MADE_OF_CHARGES[POLARIZABILITY]}
    model = lorem.new_model(targets, long_range=CHARGES, conditional=True).train()
    frames = [lorem.frames[name].copy() for name in ("molecule", "bulk")]
    for frame in frames:
        frame.info["charge"] = 0.0
    systems = lorem.systems(model, frames)
    bias = model.partial_charges.network[2].bias

    def loss():
        outputs = {POLARIZABILITY: ModelOutput(sample_kind="system")}
        found = model(systems, outputs)[POLARIZABILITY].block().values[..., 0]
        assert not found[1].any()
        return (found[0] * torch.arange(9.0).view(3, 3)).sum()

    (gradient,) = torch.autograd.grad(loss(), [bias])
    for k in (2, 3):
        numerical, start = 0.0, bias.detach().clone()
        for sign in (1, -1):
            bias.data = start + sign * 1e-4 * torch.eye(4, dtype=torch.float64)[k]
            numerical += sign * float(loss()) / 2e-4
        bias.data = start
        assert abs(numerical) > 1e-3
        assert float(gradient[k]) == pytest.approx(numerical, rel=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"rank": 1}, {"kind": "atom"}, {"unit": "eV"}, {"unit": "bohr^3"}]
)
def test_wrong_polarizability_targets(lorem, wrong):
    options = {"rank": 2, "kind": "system", "unit": "A^3", **wrong}
    targets = {"energy": ENERGY, POLARIZABILITY: target(POLARIZABILITY, **options)}
    with pytest.raises(ValueError, match="one matrix per structure in angstrom\\^3"):
        lorem.new_model(targets, long_range=CHARGES)


def test_charges_of_a_head_become_those_of_the_block(lorem):
    """In fine-tuning: no scale, no baseline of before."""
    targets = {"energy": ENERGY, "mtt::atomic_charge": MADE_OF_CHARGES["mtt::atomic_charge"]}
    short = lorem.new_model(targets, long_range={"enable": False})
    hypers = copy.deepcopy(dict(short.hypers))
    hypers["long_range"] |= {"enable": True, **CHARGES}
    extended = short.restart(short.dataset_info, hypers)
    assert list(extended.readout.heads) == ["energy"]
    assert extended.scaler.new_outputs == ["mtt::atomic_charge"]


def test_checkpoints_before_charge_flowed_by_overlap(lorem, model, monkeypatch):
    """It flowed as far as the cutoff, and does."""
    frame = lorem.frames["molecule"].copy()
    frame.info["charge"] = 0.0
    checkpoint = copy.deepcopy(model.get_checkpoint())
    checkpoint["model_ckpt_version"] = 5
    states = [checkpoint[name] for name in ("model_state_dict", "best_model_state_dict")]
    for name in ("partial_charges.network.2.weight", "partial_charges.network.2.bias"):
        for state in states:
            state[name] = state[name][:3]
    x, *_ = calls(model, lorem.systems(model, [frame]), monkeypatch)
    moves = model.partial_charges.network(x).detach().numpy()[:, 2]
    loaded = model_from_checkpoint(checkpoint, "export").to(torch.float64).eval()
    (q,), (g,), _, (energies,), _ = evaluated(loaded, lorem.systems(loaded, [frame]), monkeypatch)
    np.testing.assert_allclose(g, 0.1 * np.exp(moves), rtol=1e-6)
    r = frame.get_all_distances() + np.eye(len(frame))
    f = np.where(r < CUTOFF, 0.5 + 0.5 * np.cos(np.pi * r / CUTOFF), 0.0)
    f *= 1 - np.eye(len(frame))
    v = ((1 - f) / r * (1 - np.eye(len(frame)))) @ q
    moved = (np.outer(g, g) * f * (v[:, None] - v) ** 2).sum(axis=1)
    np.testing.assert_allclose(energies, 7.1998225 * (q * v - moved), rtol=0, atol=1e-12)
    assert abs(energies - evaluated(model, lorem.systems(model, [frame]), monkeypatch)[3][0]).any()
    checkpoint["model_ckpt_version"] = 5
    checkpoint["model_data"]["dataset_info"].targets.update(MADE_OF_CHARGES)
    with pytest.raises(RuntimeError, match="predicted beside the partial charges"):
        model.upgrade_checkpoint(checkpoint)


def test_total_charge_that_is_built_in(lorem, tmp_path):
    """Models without the input take all structures as neutral, or as what `set-charge` says."""
    model = lorem.new_model(long_range=CHARGES)
    assert built_in_charge(model) == 0.0
    Trainer(get_default_hypers("lorem")["training"]).save_checkpoint(model, tmp_path / "model.ckpt")
    set_charge(tmp_path / "model.ckpt", 1.0, tmp_path / "cation.ckpt")
    cation = model_from_checkpoint(read_checkpoint(tmp_path / "cation.ckpt"), "export").eval()
    systems = lorem.systems(cation, [lorem.frames["molecule"]])
    (q,) = values(cation.to(torch.float64), systems, "system", "charge")
    assert q.item() == pytest.approx(1.0, abs=1e-12)
