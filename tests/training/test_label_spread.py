"""Weights of charges that the log advises; beside forces in ``test_total_charge_training.py``."""

from types import SimpleNamespace

import pytest
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatrain.utils.loss import TensorMapMAELoss, TensorMapMSELoss

from metatrain_lorem.training.label_spread import LabelSpread

CHARGE, DIPOLE = "mtt::atomic_charge", "mtt::dipole_moment"


def one_block(values, samples, components):
    labels = torch.arange(len(values)).unsqueeze(1).repeat(1, len(samples))
    block = TensorBlock(values, Labels(samples, labels), components, Labels.single())
    return TensorMap(Labels.single(), [block])


def energies(forces):
    """A structure with an energy of zero."""
    block = one_block(torch.zeros(1, 1).double(), ["system"], []).block().copy()
    samples = torch.stack([torch.zeros(4, dtype=torch.int64), torch.arange(4)], dim=1)
    gradient = TensorBlock(
        forces, Labels(["sample", "atom"], samples), [Labels.range("xyz", 3)], block.properties
    )
    block.add_gradient("positions", gradient)
    return TensorMap(Labels.single(), [block])


def model_of(scale=0.1, **changes):
    """What is asked of a model with charges, dipole moments and energies."""
    scale = one_block(torch.full((1, 1), scale), ["atomic_type"], [])
    layout = energies(torch.zeros(4, 3, 1).double())
    targets = {CHARGE: one_block(torch.zeros(1, 1), ["system"], []), "energy": layout}
    return SimpleNamespace(
        readout=SimpleNamespace(has_charges=True),
        scaler=SimpleNamespace(new_outputs=[], model=SimpleNamespace(scales={"energy": scale})),
        unscaled_targets=[CHARGE, DIPOLE],
        dataset_info=SimpleNamespace(
            targets={name: SimpleNamespace(layout=layout) for name, layout in targets.items()}
        ),
        **{"finetunes": False, "backbone": None, **changes},
    )


def advice(caplog, model=None, kind=TensorMapMSELoss, weight=1.0, energies_part=None):
    """Messages, and the inverse variances that they should name."""
    model = model or model_of()
    spread = LabelSpread(model)
    if energies_part is not None:
        spread.energies = {"energy": energies_part}
    charges, dipoles = [], []
    generator = torch.Generator().manual_seed(0)
    types = torch.tensor([1, 8, 8, 1])
    for i in range(5):
        values = 0.1 * torch.randn(4, 1, generator=generator, dtype=torch.float64) + types[:, None]
        vector = torch.randn(1, 3, 1, generator=generator, dtype=torch.float64)
        charges.append(values.clone())
        dipoles.append(vector)
        if i == 0:
            values[0] = torch.nan
        spread.add(
            {
                "system": SimpleNamespace(types=types),
                CHARGE: one_block(values, ["system", "atom"], []),
                DIPOLE: one_block(vector, ["system"], [Labels.range("xyz", 3)]),
                "energy": energies(torch.full((4, 3, 1), 2.0, dtype=torch.float64)),
            }
        )
    terms = [kind(name, None, weight, "mean") for name in (CHARGE, DIPOLE)]
    terms.append(kind("energy", "positions", 0.5, "mean"))
    loss = SimpleNamespace(losses=dict(enumerate(terms)))
    caplog.clear()
    with caplog.at_level("INFO"):
        spread.report(model, loss, SimpleNamespace(sum=lambda x: x, device="cpu"))
    values, kinds = torch.cat(charges).flatten()[1:], types.repeat(5)[1:]
    deviations = torch.cat([values[kinds == z] - values[kinds == z].mean() for z in (1, 8)])
    return caplog.messages, [
        1.0 / deviations.pow(2).mean().item(),
        1.0 / torch.cat(dipoles).var(correction=0).item(),
    ]


def test_weight_of_charges_and_vectors(caplog):
    """Charges are told from the mean of their element, vectors from the mean of all components; an
    error as large costs a twentieth of forces: 0.5 · 2² / 0.1²."""
    messages, weights = advice(caplog)
    assert len(messages) == 3  # and a warning: a hundredth of the first is above one
    for message, weight in zip([messages[0], messages[2]], weights, strict=True):
        assert f"with a weight of {10.0 * weight:.2g} in" in message
        assert "costs 5% of what the forces of 'energy' cost at first" in message
    assert "will hardly be learnt" in messages[1] and CHARGE in messages[1]
    assert len(advice(caplog, weight=100.0)[0]) == 2


@pytest.mark.parametrize(
    "part, value, text",
    [
        (0.4, 0.4, "like other targets with weight 1"),
        (0.0, 0.05 * 0.5 * 4 / 9, "costs 5%"),
        (None, 1.0, "like other targets. "),
    ],
)
def test_scales_beyond_energies(caplog, part, value, text):
    """What energies have of a scale of 3, or a twentieth of forces of 2 with a weight of one half;
    one where forces have nothing of it."""
    messages, weights = advice(caplog, model_of(scale=3.0), weight=100.0, energies_part=part)
    for message, weight in zip(messages, weights, strict=True):
        assert f"with a weight of {value * weight:.2g} in" in message and text in message


def test_forces_of_several_processes():
    """The sum of two alike overwrites what it is given; asked for twice, forces are the same."""
    spread = LabelSpread(model_of())
    spread.add({"energy": energies(torch.full((4, 3, 1), 2.0, dtype=torch.float64))})
    processes = SimpleNamespace(sum=lambda x: x.mul_(2.0), device="cpu")
    for _ in range(2):
        assert spread.mean_square_forces(processes) == {"energy": 4.0}
    assert spread.forces["energy"].tolist() == [12.0, 48.0]


@pytest.mark.parametrize(
    "changes", [{"finetunes": True}, {"backbone": SimpleNamespace(energies=["energy"])}]
)
def test_models_that_know_forces(caplog, changes):
    """Their errors are not those forces at first."""
    messages, weights = advice(caplog, model_of(**changes), weight=100.0)
    for message, weight in zip(messages, weights, strict=True):
        assert f"with a weight of {weight:.2g} in" in message and "like other targets" in message


def test_other_losses(caplog):
    """What an absolute error costs, this does not know."""
    assert advice(caplog, kind=TensorMapMAELoss)[0] == []
