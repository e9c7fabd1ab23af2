"""Targets of every kind: shapes, symmetries, and a new long-range block under them."""

import ase
import metatensor.torch as mts
import numpy as np
import pytest
import torch
from metatomic.torch import ModelOutput
from metatomic.torch.o3 import O3Transformations
from metatrain.utils.data.target_info import get_generic_target_info
from scipy.spatial.transform import Rotation

SPHERICAL = [(degree, sigma) for degree in range(4) for sigma in (1, -1)]
IRREPS = [{"o3_lambda": degree, "o3_sigma": sigma} for degree, sigma in SPHERICAL]
PRODUCT = [{"o3_lambda": 1, "o3_sigma": 1}, {"o3_lambda": 1, "o3_sigma": -1}]
COUPLED = [{"o3_lambda": 0, "o3_sigma": 1}, {"o3_lambda": 1, "o3_sigma": 1}]
BASIS = {
    1: [{"num": 1, "o3_lambda": 0, "o3_sigma": 1}, {"num": 1, "o3_lambda": 1, "o3_sigma": 1}],
    **{
        atomic_type: [
            {"num": 2, "o3_lambda": 0, "o3_sigma": 1},
            {"num": 1, "o3_lambda": 1, "o3_sigma": 1},
        ]
        for atomic_type in (6, 7, 8)
    },
}


def target(kind, sample_kind="atom", num_subtargets=2):
    return get_generic_target_info(
        "mtt::target",
        {
            "quantity": "",
            "unit": "",
            "type": kind,
            "num_subtargets": num_subtargets,
            "sample_kind": sample_kind,
        },
    )


TARGETS = {
    "scalar": target("scalar", "system", 5),
    "scalar per atom": target("scalar", num_subtargets=5),
    "spherical": target({"spherical": {"irreps": IRREPS}}),
    "spherical per system": target({"spherical": {"irreps": IRREPS}}, "system"),
    "vector": target({"cartesian": {"rank": 1}}, "system"),
    "matrix": target({"cartesian": {"rank": 2}}),
    "product": target({"spherical": {"irreps": PRODUCT, "product": "cartesian"}}),
    "coupled product": target({"spherical": {"irreps": COUPLED, "product": "coupled"}}),
    "atomic basis": target({"spherical": {"irreps": BASIS}}),
    "product of atomic bases": target({"spherical": {"irreps": BASIS, "product": "cartesian"}}),
}


def evaluate(model, systems, sample_kind):
    outputs = {"mtt::target": ModelOutput(sample_kind=sample_kind)}
    with torch.no_grad():
        return model(systems, outputs)["mtt::target"]


def rms(tensor):
    return tensor.pow(2).mean().sqrt()


@pytest.mark.parametrize("num_message_passing", [0, 1])
@pytest.mark.parametrize("name", TARGETS)
def test_equivariance(lorem, name, num_message_passing):
    """Under rotations and rotations with inversion; metatomic knows how each kind changes."""
    model = lorem.new_model(
        {"mtt::target": TARGETS[name]},
        num_message_passing=num_message_passing,
        long_range={"accuracy": 1e-10},
    )
    sample_kind = TARGETS[name].sample_kind
    matrices = Rotation.from_euler("xyz", [[0.4, 1.1, -2.3], [-0.9, 2.0, 0.3]]).as_matrix()
    matrices[1] *= -1
    transformations = O3Transformations(torch.tensor(matrices), 3)
    for frame in lorem.frames.values():
        frames = []
        for matrix in matrices:
            frames.append(frame.copy())
            frames[-1].set_cell(frame.cell.array @ matrix.T)
            frames[-1].positions = frame.positions @ matrix.T
        before = evaluate(model, lorem.systems(model, [frame, frame]), sample_kind)
        after = evaluate(model, lorem.systems(model, frames), sample_kind)
        expected = transformations.transform_tensormap(before)
        assert expected.keys == after.keys
        for key, block in after.items():
            if len(block.samples) > 0:
                scale = rms(block.values)
                assert scale > 1e-6, key
                error = (block.values - expected.block(key).values).abs().max() / scale
                print(f"largest error relative to the rms: {error:.1e}")
                assert error < 1e-8, key


@pytest.mark.parametrize("name", ["scalar", "spherical per system", "vector"])
def test_system_is_the_sum_over_atoms(lorem, name):
    model = lorem.new_model({"mtt::target": TARGETS[name]})
    systems = lorem.systems(model, list(lorem.frames.values()))
    per_atom = evaluate(model, systems, "atom")
    total = evaluate(model, systems, "system")
    assert mts.allclose(mts.sum_over_samples(per_atom, "atom"), total, rtol=1e-10, atol=1e-12)


def test_subtargets_differ(lorem):
    model = lorem.new_model({"mtt::target": TARGETS["scalar"]})
    values = lorem.values(model, [lorem.frames["molecule"]], "mtt::target")
    assert values.shape == (1, 5)
    assert len(values.unique()) == 5


def test_atomic_basis_has_the_blocks_of_each_type(lorem):
    model = lorem.new_model({"mtt::target": TARGETS["atomic basis"]})
    frame = lorem.frames["molecule"]
    result = evaluate(model, lorem.systems(model, [frame]), "atom")
    layout = TARGETS["atomic basis"].layout
    assert len(result) == len(layout)
    for key, block in result.items():
        atoms = np.flatnonzero(frame.numbers == int(key["atom_type"]))
        assert block.samples["atom"].tolist() == atoms.tolist()
        assert block.properties == layout.block(key).properties


@pytest.mark.parametrize("num_message_passing", [0, 1])
def test_pseudoscalar(lorem, num_message_passing):
    """Opposite for a molecule and its mirror image, zero for a molecule with a mirror plane."""
    pseudoscalar = target({"spherical": {"irreps": [{"o3_lambda": 0, "o3_sigma": -1}]}}, "system")
    model = lorem.new_model(
        {"mtt::target": pseudoscalar}, max_degree=4, num_message_passing=num_message_passing
    )
    # hydrogen peroxide, twisted by 111 degrees: chiral, and without any other asymmetry
    left, planar = (
        ase.Atoms(
            "OOHH",
            [
                [0.0, 0.0, 0.0],
                [0.0, 0.0, 1.45],
                [0.95, 0.0, -0.15],
                [0.95 * np.cos(angle), 0.95 * np.sin(angle), 1.6],
            ],
        )
        for angle in np.deg2rad([111.0, 0.0])
    )
    right = left.copy()
    right.positions[:, 0] *= -1
    left, right, planar = lorem.values(model, [left, right, planar], "mtt::target")
    scale = left.abs().min()
    assert scale > 1e-7
    assert (left + right).abs().max() < 1e-8 * scale
    assert planar.abs().max() < 1e-8 * scale


@pytest.mark.parametrize(
    "kind, hypers, message",
    [
        ({"spherical": {"irreps": [IRREPS[6]]}}, {"max_degree": 2}, "up to degree 3"),
        ({"cartesian": {"rank": 2}}, {"max_degree": 1}, "up to degree 2"),
        ({"cartesian": {"rank": 3}}, {}, "rank 3 are not supported"),
        ({"spherical": {"irreps": [IRREPS[1]]}}, {"num_spherical_features": 2}, "features >= 3"),
        ({"spherical": {"irreps": [IRREPS[3]]}}, {"num_spherical_features": 2}, "features >= 3"),
    ],
)
def test_refused(lorem, kind, hypers, message):
    with pytest.raises(ValueError, match=f"'mtt::target'.*{message}"):
        lorem.new_model({"mtt::target": target(kind)}, long_range={"max_degree": 0}, **hypers)


def test_atom_pairs_are_refused(lorem):
    pairs = target({"spherical": {"irreps": BASIS, "product": "cartesian"}}, "atom_pair")
    with pytest.raises(ValueError, match="'lorem' .* 'atom_pair' .*'mtt::target'"):
        lorem.new_model({"mtt::target": pairs})


@pytest.mark.parametrize("num_message_passing", [0, 1])
def test_new_long_range_block_changes_nothing_at_first(lorem, num_message_passing):
    """A short-range model is extended when it is trained further with long range on."""
    targets = {f"mtt::{number}": kind for number, kind in enumerate(TARGETS.values())}
    old = lorem.new_model(
        targets, long_range={"enable": False}, num_message_passing=num_message_passing
    )
    block = {**old.hypers["long_range"], "enable": True, "max_degree": 1}
    hypers = {**old.hypers, "long_range": block}
    new = old.restart(old.dataset_info, hypers)
    assert new.interaction_range() == float("inf")
    assert new.has_new_parameters
    assert new.hypers["long_range"] == hypers["long_range"]

    frames = list(lorem.frames.values())
    outputs = {name: ModelOutput(sample_kind=kind.sample_kind) for name, kind in targets.items()}
    before = old(lorem.systems(old, frames), outputs)
    after = new.eval()(lorem.systems(new, frames), outputs)
    for name in targets:
        assert mts.allclose(after[name], before[name], rtol=1e-12, atol=1e-14)

    # the block is not stuck there: the way into every target learns
    total = sum(block.values.pow(2).sum() for result in after.values() for block in result.blocks())
    total.backward()
    for name, head in new.readout.heads.items():
        d = new.hypers["num_features"]
        assert head.invariants.last_layer.weight.grad[:, -d:].abs().max() > 1e-12, name
        if head.field_linear is not None:
            gradients = [parameter.grad.abs().max() for parameter in head.field_linear.parameters()]
            assert max(gradients) > 1e-12, name


def test_restart_with_the_same_hypers_is_no_extension(lorem):
    model = lorem.new_model()
    assert model.restart(model.dataset_info, model.hypers) is model
    assert not model.has_new_parameters
    with pytest.raises(ValueError, match="cutoff"):
        model.restart(model.dataset_info, {**model.hypers, "cutoff": 3.0})
