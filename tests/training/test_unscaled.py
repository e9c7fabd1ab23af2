"""Targets without baseline and scale."""

from types import SimpleNamespace

import pytest
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap

from metatrain_lorem.training.unscaled import (
    check_dipole,
    check_fixed,
    unscaled_targets,
    with_fixed,
)

CHARGE = "mtt::atomic_charge"


def test_fixed_weights_join_those_of_the_user():
    weights = {"energy": -1.0}
    assert with_fixed(weights, [CHARGE], 1.0, "x") == {"energy": -1.0, CHARGE: 1.0}
    assert weights == {"energy": -1.0}
    # metatrain takes only floats for all elements
    fixed = with_fixed({CHARGE: {1: 0, 8: 0.0}}, [CHARGE], 0.0, "x")[CHARGE]
    assert fixed == 0.0 and isinstance(fixed, float)
    assert with_fixed("model.ckpt", [CHARGE], 1.0, "x") == "model.ckpt"


@pytest.mark.parametrize("given", [0.5, {1: 0.0, 8: -0.4}])
def test_other_weights_of_the_user(given):
    with pytest.raises(ValueError, match=f"'{CHARGE}' .* Remove other values from `atomic_base"):
        with_fixed({CHARGE: given}, [CHARGE], 0.0, "atomic_baseline")


def test_weights_of_a_checkpoint():
    values = torch.tensor([[1.0], [1.0]])
    block = TensorBlock(values, Labels.range("type", 2), [], Labels.range("q", 1))
    weights = {CHARGE: TensorMap(Labels.single(), [block])}
    check_fixed(weights, [CHARGE], 1.0, "fixed_scaling_weights")
    values[1] = 0.9
    with pytest.raises(ValueError, match="leave out a checkpoint"):
        check_fixed(weights, [CHARGE], 1.0, "fixed_scaling_weights")


@pytest.mark.parametrize("block, new, expected", [(True, [], 2), (False, [CHARGE], 1)])
def test_charges_of_a_head_keep_their_scale(block, new, expected):
    model = SimpleNamespace(
        readout=SimpleNamespace(has_charges=block),
        scaler=SimpleNamespace(new_outputs=new),
        unscaled_targets=[CHARGE, "mtt::dipole_moment"],
    )
    assert len(unscaled_targets(model)) == expected


def one_block(values, samples, components):
    labels = torch.arange(len(values)).unsqueeze(1).repeat(1, len(samples))
    block = TensorBlock(values, Labels(samples, labels), components, Labels.single())
    return TensorMap(Labels.single(), [block])


def test_dipole_moment_of_a_periodic_structure():
    def fields(pbc, value):
        block = one_block(torch.full((1, 3, 1), value), ["system"], [Labels.range("xyz", 3)])
        return {"system": SimpleNamespace(pbc=torch.tensor(pbc)), "mtt::dipole_moment": block}

    check_dipole(fields([False] * 3, 1.0), "Structure 3")
    check_dipole(fields([True] * 3, torch.nan), "Structure 3")
    with pytest.raises(ValueError, match="Structure 3 is periodic"):
        check_dipole(fields([True, True, False], 1.0), "Structure 3")
