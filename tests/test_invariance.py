"""What must not change the outputs, and how far atoms feel each other."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from helpers.graphs import small_chunks
from metatensor.torch import Labels, TensorBlock
from metatomic.torch import ModelOutput, System
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)
from scipy.spatial.transform import Rotation

ACCURACY = 1e-10
MODELS = {
    "long range": {"long_range": {"accuracy": ACCURACY}},
    "short range": {"long_range": {"enable": False}},
    "message passing": {"long_range": {"accuracy": ACCURACY}, "num_message_passing": 1},
    "charge equilibration": {
        "long_range": {"accuracy": ACCURACY},
        "charge_equilibration": {"enable": True, "accuracy": ACCURACY, "hardness": "features"},
    },
    "charge equilibration last": {
        "long_range": {"accuracy": ACCURACY},
        "charge_equilibration": {"enable": True, "accuracy": ACCURACY, "after_long_range": True},
    },
    "partial charges": {"long_range": {"accuracy": ACCURACY, "energy": "charges"}},
    "dispersion": {"long_range": {"accuracy": ACCURACY, "exponents": [1, 6]}},
    "short-range message passing": {"long_range": {"enable": False}, "num_message_passing": 2},
}
BOUNDARIES = ["bulk", "slab", "molecule"]


def skip_dispersion_of_slabs(model, boundary):
    """Its images across the vacuum count, which is as high as the cell is wide."""
    if boundary == "slab" and getattr(model.long_range, "dispersion", None) is not None:
        pytest.skip("1/r^6 reaches across the vacuum of a slab, to about 1e-5")


@pytest.fixture(scope="module", params=MODELS)
def model(request, lorem):
    return lorem.new_model(**MODELS[request.param])


@pytest.fixture(params=BOUNDARIES)
def frame(request, lorem):
    return lorem.frames[request.param].copy()


def assert_equal(one, other, tolerance=1e-9):
    """Compare energies per atom, relative to their spread."""
    assert one.shape == other.shape
    error = (one - other).abs().max() / one.std()
    print(f"largest error: {error:.1e}")
    assert error < tolerance


def test_permutation_of_atoms(lorem, model, frame):
    order = np.random.default_rng(0).permutation(len(frame))
    before = lorem.values(model, [frame], sample_kind="atom")
    after = lorem.values(model, [frame[order]], sample_kind="atom")
    assert_equal(before[order], after)


def test_permutation_of_pairs(lorem, model, frame):
    outputs = {"energy": ModelOutput(sample_kind="atom")}
    system, shuffled = lorem.systems(model, [frame, frame])
    pairs = shuffled.get_neighbor_list(model.requested_nl)
    order = torch.randperm(len(pairs.samples), generator=torch.Generator().manual_seed(0))
    block = TensorBlock(
        pairs.values[order],
        Labels(pairs.samples.names, pairs.samples.values[order]),
        pairs.components,
        pairs.properties,
    )
    other = System(system.types, system.positions, system.cell, system.pbc)
    other.add_neighbor_list(model.requested_nl, block)
    with torch.no_grad():
        before, after = (model([s], outputs)["energy"].block().values for s in (system, other))
    assert_equal(before, after)


def test_translation(lorem, model, frame):
    before = lorem.values(model, [frame], sample_kind="atom")
    frame.positions += [1.3, -7.1, 3.4]
    assert_equal(before, lorem.values(model, [frame], sample_kind="atom"))


@pytest.mark.parametrize("boundary", ["bulk", "slab"])
def test_other_images_of_atoms(lorem, model, boundary):
    """Atoms folded into the cell, or taken from other cells."""
    frame = lorem.frames[boundary].copy()
    before = lorem.values(model, [frame], sample_kind="atom")
    images = np.random.default_rng(1).integers(-3, 4, size=(len(frame), 3)) * frame.pbc
    frame.positions += images @ frame.cell.array
    assert_equal(before, lorem.values(model, [frame], sample_kind="atom"))


@pytest.mark.parametrize("inversion", [False, True])
def test_rotation_and_inversion(lorem, model, frame, inversion):
    before = lorem.values(model, [frame], sample_kind="atom")
    matrix = Rotation.from_euler("xyz", [0.4, 1.1, -2.3]).as_matrix() * (-1 if inversion else 1)
    frame.set_cell(frame.cell.array @ matrix.T)
    frame.positions = frame.positions @ matrix.T
    assert_equal(before, lorem.values(model, [frame], sample_kind="atom"))


OTHER_CELLS = {
    "bulk": [[[1, 1, 0], [0, 1, 0], [-1, 0, 1]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]],
    # not periodic along the first vector
    "slab": [[[1, 0, 0], [0, 1, 0], [0, 2, 1]], [[1, 0, 0], [0, 1, -1], [0, 0, 1]]],
}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("boundary", OTHER_CELLS)
def test_other_cell_of_the_same_lattice(lorem, model, boundary, number):
    skip_dispersion_of_slabs(model, boundary)
    frame = lorem.frames[boundary].copy()
    before = lorem.values(model, [frame], sample_kind="atom")
    frame.set_cell(np.array(OTHER_CELLS[boundary][number]) @ frame.cell.array)
    assert_equal(before, lorem.values(model, [frame], sample_kind="atom"))


def test_other_axis_of_a_slab(lorem, model):
    frame = lorem.frames["slab"].copy()
    before = lorem.values(model, [frame], sample_kind="atom")
    frame.set_cell(frame.cell.array[[1, 2, 0]])
    frame.pbc = [True, True, False]
    assert_equal(before, lorem.values(model, [frame], sample_kind="atom"))


@pytest.mark.parametrize("boundary", ["bulk", "slab"])
def test_supercell(lorem, model, boundary):
    skip_dispersion_of_slabs(model, boundary)
    frame = lorem.frames[boundary]
    repeats = [2 if periodic else 1 for periodic in frame.pbc]
    supercell = frame.repeat(repeats)
    before = lorem.values(model, [frame], sample_kind="atom")
    after = lorem.values(model, [supercell], sample_kind="atom")
    assert_equal(before.repeat(len(supercell) // len(frame), 1), after)


def test_batch_equals_one_by_one(lorem, model):
    """Also after a permutation of the structures."""
    frames = list(lorem.frames.values())
    frames += [Atoms("O"), Atoms("HCN", 1.1 * np.arange(9).reshape(3, 3)), frames[0].repeat(2)]
    single = torch.cat([lorem.values(model, [frame]) for frame in frames])
    assert_equal(single, lorem.values(model, frames))
    order = [4, 1, 5, 3, 0, 2]
    assert_equal(single[order], lorem.values(model, [frames[i] for i in order]))


@pytest.mark.parametrize("scripted", [False, True])
def test_blocks_of_atoms(lorem, model, monkeypatch, scripted):
    """Large systems are taken block after block; here in blocks of at most four atoms."""
    outputs = {"energy": ModelOutput(sample_kind="system")}
    frames = list(lorem.frames.values())

    def energies_and_forces(evaluate):
        systems = lorem.systems(model, frames)
        for system in systems:
            system.positions.requires_grad_()
        energies = evaluate(systems, outputs)["energy"].block().values
        positions = [system.positions for system in systems]
        return energies, torch.cat(torch.autograd.grad(energies.sum(), positions))

    expected = energies_and_forces(model)

    small_chunks(monkeypatch, 4, 2)
    evaluate = torch.jit.script(model) if scripted else model
    for own, reference in zip(energies_and_forces(evaluate), expected, strict=True):
        assert_equal(own, reference, 1e-12)


def test_energies_of_atoms_add_up(lorem, model, frame):
    per_atom = lorem.values(model, [frame], sample_kind="atom")
    total = lorem.values(model, [frame])
    torch.testing.assert_close(per_atom.sum(dim=0, keepdim=True), total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_message_passing", [0, 1, 2])
def test_interaction_range(lorem, num_message_passing):
    hypers = {"num_message_passing": num_message_passing}
    short = lorem.new_model(long_range={"enable": False}, **hypers)
    expected = (1 + num_message_passing) * short.hypers["cutoff"]
    assert short.interaction_range() == expected
    assert short.export().capabilities().interaction_range == expected
    long = lorem.new_model(**hypers)
    assert long.interaction_range() == np.inf
    assert long.export().capabilities().interaction_range == np.inf


@pytest.mark.parametrize("num_message_passing", [0, 1, 2])
def test_receptive_field(lorem, num_message_passing):
    """Without the long-range block an atom is felt within the receptive field, not beyond."""
    model = lorem.new_model(
        long_range={"enable": False}, num_message_passing=num_message_passing, cutoff=2.0
    )
    # a chain whose last atom moves beyond the reach of the first: no shorter way round
    positions = np.zeros((8, 3))
    positions[:, 0] = 1.9 * np.arange(8)
    chain = Atoms("CNOHCNOH", positions)

    def first(length, shift):
        part = chain[:length].copy()
        part.positions[-1, 1] += shift
        return lorem.values(model, [part], sample_kind="atom")[0]

    inside, outside = num_message_passing + 2, num_message_passing + 3
    assert not torch.equal(first(inside, 0.1), first(inside, 0.0))
    assert torch.equal(first(outside, 0.1), first(outside, 0.0))


def test_distant_charges_interact_as_one_over_r(lorem):
    """Two atoms beyond the cutoff feel nothing but the potentials of each other's charges.

    Isolated atoms have no spherical features: their charges are scalars. The energy is then a
    function of 1/r alone, whose expansion starts with a linear term.
    """
    model = lorem.new_model()
    distances = np.array([8.0, 12.0, 20.0, 35.0, 50.0])
    pairs = [Atoms("NO", [[0, 0, 0], [0, 0, r]]) for r in distances]
    apart = lorem.values(model, [Atoms("N"), Atoms("O")]).sum()
    interaction = (lorem.values(model, pairs) - apart).squeeze(1).numpy()
    # c1 / r + c2 / r^2 + ...: the fit must reproduce an energy that it has not seen
    powers = distances[:, None] ** -np.arange(1.0, 5.0)
    assert np.abs(interaction).min() > 1e-6
    coefficients = np.linalg.solve(powers[[0, 2, 3, 4]], interaction[[0, 2, 3, 4]])
    assert abs(powers[1] @ coefficients / interaction[1] - 1) < 1e-4
    leading = coefficients[0] / distances[-1]
    assert abs(leading / interaction[-1] - 1) < 0.05


@pytest.mark.parametrize("equilibrate", [False, True])
def test_perfect_crystal_has_no_forces(lorem, equilibrate):
    """Where symmetry makes features zero, their rounding errors must not make forces."""
    model = lorem.new_model(charge_equilibration={"enable": equilibrate})
    frame = bulk("CO", "rocksalt", 5.2, cubic=True)
    system = lorem.systems(model, [frame])[0]
    positions = system.positions.clone().requires_grad_(True)
    moved = System(system.types, positions, system.cell, system.pbc)
    moved = get_system_with_neighbor_lists(moved, get_requested_neighbor_lists(model))
    energy = model([moved], {"energy": ModelOutput(sample_kind="system")})["energy"]
    (gradient,) = torch.autograd.grad(energy.block().values.sum(), positions)
    assert gradient.abs().max() < 1e-8
