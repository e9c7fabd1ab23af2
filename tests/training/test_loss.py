import math

import pytest
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info

from metatrain_lorem.training.loss import GlobalLoss, MeanLoss, check_energy_factor


def energies(values, forces) -> dict[str, TensorMap]:
    """Energies ``[structures]`` and gradients ``[structures, atoms, 3]`` as a target."""
    values = torch.as_tensor(values, dtype=torch.float64)
    forces = torch.as_tensor(forces, dtype=torch.float64)
    structures, atoms = forces.shape[:2]
    block = TensorBlock(
        values.reshape(-1, 1),
        Labels.range("system", structures),
        [],
        Labels.range("energy", 1),
    )
    samples = torch.cartesian_prod(torch.arange(structures), torch.arange(atoms))
    gradient = TensorBlock(
        forces.reshape(-1, 3, 1),
        Labels(["sample", "atom"], samples.reshape(-1, 2).to(torch.int32)),
        [Labels.range("xyz", 3)],
        Labels.range("energy", 1),
    )
    block.add_gradient("positions", gradient)
    return {"energy": TensorMap(Labels.single(), [block])}


def loss_function(reduction: str = "mean", force_weight: float = 0.5) -> GlobalLoss:
    options = {"quantity": "energy", "unit": "eV"}
    targets = {"energy": get_energy_target_info("energy", options, add_position_gradients=True)}
    term = {"type": "mse", "weight": 2.0, "reduction": reduction}
    gradients = {"positions": {"type": "mae", "weight": force_weight, "reduction": reduction}}
    return GlobalLoss(targets=targets, config={"energy": {**term, "gradients": gradients}})


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, generator=generator, dtype=torch.float64)
    forces = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    values[1] = values[2] = math.nan
    forces[0, 1, 2] = forces[3] = math.nan
    return values, forces


def expected(values, forces, reduction):
    """The loss of zero predictions, written out."""
    mean = torch.nanmean if reduction == "mean" else torch.nansum
    return (2.0 * mean(values**2) + 0.5 * mean(forces.abs())).item()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_missing_labels_are_left_out(labels, reduction):
    loss = loss_function(reduction)
    predictions = energies(torch.zeros(5), torch.zeros(5, 2, 3))
    values, counts = loss.values_and_counts(predictions, energies(*labels), None)
    assert counts.tolist() == [3, 23]
    assert loss.combine(values, counts, counts).item() == pytest.approx(
        expected(*labels, reduction)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parts_of_a_batch_add_up_with_their_gradients(labels, reduction):
    """As processes do it: uneven parts, and one without any energy."""
    loss = loss_function(reduction)

    def parts(sizes):
        prediction = torch.full((5,), 0.3, dtype=torch.float64, requires_grad=True)
        forces = 0.1 * prediction.reshape(5, 1, 1) * torch.ones(5, 2, 3, dtype=torch.float64)
        terms, first = [], 0
        for size in sizes:
            piece = slice(first, first + size)
            target = energies(*(label[piece] for label in labels))
            predicted = energies(prediction[piece], forces[piece])
            terms.append(loss.values_and_counts(predicted, target, None))
            first += size
        total = sum(counts for _, counts in terms)
        value = sum(loss.combine(values, counts, total) for values, counts in terms)
        value.backward()
        return value.detach(), prediction.grad

    whole, in_parts = parts([5]), parts([1, 2, 2])
    torch.testing.assert_close(in_parts, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_of_an_epoch_does_not_depend_on_the_batches(labels, reduction):
    loss = loss_function(reduction)
    mean = MeanLoss(loss, torch.device("cpu"))
    for piece in (slice(0, 1), slice(1, 3), slice(3, 5)):
        target = energies(*(label[piece] for label in labels))
        size = len(labels[0][piece])
        predictions = energies(torch.zeros(size), torch.zeros(size, 2, 3))
        mean.update(*loss.values_and_counts(predictions, target, None))
    assert mean.value(mean.sums) == pytest.approx(expected(*labels, reduction))


def test_batch_without_labels_has_no_loss():
    loss = loss_function()
    target = energies([math.nan], torch.full((1, 2, 3), math.nan))
    predictions = energies(torch.ones(1, requires_grad=True), torch.ones(1, 2, 3))
    values, counts = loss.values_and_counts(predictions, target, None)
    assert counts.tolist() == [0, 0]
    assert loss.combine(values, counts, counts).item() == 0.0


def test_energies_but_not_forces_weigh_more():
    energy = {"quantity": "energy", "unit": "eV"}
    charge = {"quantity": "charge", "unit": "e", "sample_kind": "atom", "num_subtargets": 1}
    targets = {
        "mtt::charge": get_generic_target_info("mtt::charge", charge | {"type": "scalar"}),
        "energy": get_energy_target_info("energy", energy, add_position_gradients=True),
        "energy/other": get_energy_target_info("energy/other", energy),
    }
    loss = GlobalLoss(targets=targets, config={})
    assert list(loss.losses) == ["mtt::charge", "energy", "energy_grad_positions", "energy/other"]
    assert loss.energy_factors(targets, 30.0).tolist() == [1.0, 30.0, 1.0, 30.0]


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_energy_factor_is_a_positive_number(factor):
    with pytest.raises(ValueError, match=f"`final_energy_factor` is {factor:g}: it has to be"):
        check_energy_factor(factor)
