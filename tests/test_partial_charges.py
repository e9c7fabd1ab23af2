"""Partial charges (``long_range.energy: charges``) against sums written out, and what they obey."""

import copy
import logging

import numpy as np
import pytest
import torch
from ase import Atoms
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from metatrain.utils.neighbor_lists import get_requested_neighbor_lists
from scipy.special import erf

COULOMB_CONSTANT = 14.399645  # eV Å / e²
CHARGES = {"energy": "charges"}
CUTOFF = 4.0  # of the small models


@pytest.fixture(scope="module")
def model(lorem):
    return lorem.new_model(long_range=CHARGES, conditional=True)


def evaluated(model, systems, monkeypatch):
    """What goes into the block and what comes out, structure by structure."""
    seen = []
    forward = model.partial_charges.forward

    def spy(x, graph):
        q, moves = model.partial_charges.charges(x, graph)
        energies = forward(x, graph)
        seen.append([a.detach().numpy() for a in (q, moves, energies)])
        return energies

    monkeypatch.setattr(model.partial_charges, "forward", spy)
    requested = {"energy": model.outputs["energy"]}
    model(systems, requested)
    ends = np.cumsum([len(system) for system in systems])[:-1]
    return [np.split(array, ends) for array in seen[0]]


def test_charges_sum_to_the_total_charge(lorem, model, monkeypatch):
    frames = [lorem.frames[name].copy() for name in ("bulk", "slab", "molecule", "molecule")]
    totals = [0.0, 0.0, 0.0, -2.0]
    for frame, total in zip(frames, totals, strict=True):
        frame.info["charge"] = total
    charges, _, _ = evaluated(model, lorem.systems(model, frames), monkeypatch)
    found = [q.sum() for q in charges]
    np.testing.assert_allclose(found, totals, atol=1e-13)
    assert min(np.ptp(q) for q in charges) > 1e-3


def test_energy_equals_the_sums_written_out(lorem, model, monkeypatch):
    rng = np.random.default_rng(2)
    corners = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    positions = 1.7 * corners + rng.uniform(-0.2, 0.2, (27, 3))
    frame = Atoms("HCNOHCNOHCNOHCNOHCNOHCNOHCN", positions, info={"charge": 1.0})
    (q,), (g,), (energies,) = evaluated(model, lorem.systems(model, [frame]), monkeypatch)
    r = frame.get_all_distances() + np.eye(27)
    f = np.where(r < CUTOFF, 0.5 + 0.5 * np.cos(np.pi * r / CUTOFF), 0.0) * (1 - np.eye(27))
    v = ((1 - f) / r * (1 - np.eye(27))) @ q
    polarisation = (np.outer(g, g) * f * (v[:, None] - v) ** 2).sum(axis=1)
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
    (q,), (g,), (energies,) = evaluated(precise, lorem.systems(precise, [frame]), monkeypatch)
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
    moved = (np.outer(g, g) * f.sum(axis=2) * (v[:, None] - v) ** 2).sum(axis=1)
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
    targets = {
        "energy": get_energy_target_info("energy", {"unit": "eV"}),
        "mtt::atomic_charge": get_generic_target_info(
            "mtt::atomic_charge",
            {"quantity": "charge", "unit": "e", "type": "scalar", "num_subtargets": 1}
            | {"sample_kind": "atom"},
        ),
    }
    with caplog.at_level(logging.WARNING):
        lorem.new_model(targets, long_range=CHARGES)
    assert "targets ['mtt::atomic_charge'] know nothing beyond the cutoff" in caplog.text
    caplog.clear()
    lorem.new_model({"energy": targets["energy"]}, long_range=CHARGES)
    assert "beyond the cutoff" not in caplog.text


def test_a_trained_model_gets_charges(lorem, monkeypatch):
    """All else stays: energies change by those of the first charges."""
    short = lorem.new_model(long_range={"enable": False})
    hypers = copy.deepcopy(dict(short.hypers))
    hypers["long_range"] |= {"enable": True, **CHARGES}
    extended = short.restart(short.dataset_info, hypers).eval()
    frames = [lorem.frames["molecule"].copy()]
    systems = lorem.systems(extended, frames)
    _, _, (energies,) = evaluated(extended, systems, monkeypatch)
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
    assert other.partial_charges.start**2 == pytest.approx(0.1 * model.partial_charges.start**2)
