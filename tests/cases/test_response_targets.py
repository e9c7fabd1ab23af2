"""Targets beside outputs that are derived from charges, which once trained in silence."""

import re

import pytest
import torch
from helpers import models
from metatomic.torch import ModelOutput
from metatrain.utils.data.target_info import get_generic_target_info
from metatrain.utils.io import model_from_checkpoint

from metatrain_lorem.training.checks import check_data
from metatrain_lorem.training.distributed import Processes

SHORT = {"long_range": {"enable": False}}
CHARGES = {"charge_equilibration": {"enable": True}}
BORN = "mtt::born_effective_charge"


def targets(*names, rank=2, kind="atom", unit="e"):
    section = {"quantity": "", "unit": unit, "num_subtargets": 1, "sample_kind": kind}
    section["type"] = {"cartesian": {"rank": rank}} if rank else "scalar"
    return {name: get_generic_target_info(name, dict(section)) for name in names}


@pytest.mark.parametrize("hypers", [{}, CHARGES], ids=["predicted", "derived"])
@pytest.mark.parametrize("others", [[], [BORN]], ids=["alone", "both"])
def test_variants_of_born_charges(hypers, others):
    """Neither derived from charges, nor made to obey the sum rule."""
    named = f"target '{BORN}/pbe': .* Call the target '{BORN}'"
    with pytest.raises(ValueError, match=named):
        models.new_model(targets(*others, f"{BORN}/pbe"), **hypers, **SHORT)


@pytest.mark.parametrize(
    "name, options",
    [
        ("mtt::polarization", {"rank": 1, "kind": "system"}),
        ("mtt::polarization", {"rank": 2}),
        ("mtt::polarization/pbe", {"rank": 1, "kind": "system"}),
        ("mtt::polarizability", {"kind": "system", "unit": "A^3"}),
        ("mtt::polarizability", {"rank": 0, "unit": ""}),
    ],
)
def test_derived_outputs(name, options):
    """As targets they would take the place of what the charges say."""
    model = models.new_model(targets(name, **options), **CHARGES, **SHORT)
    with pytest.raises(ValueError, match=f"target '{re.escape(name)}': .*mtt::dipole_moment"):
        check_data(model, [], [], Processes(torch.device("cpu")))


def test_older_checkpoints():
    """Models that were trained on such a target before it was refused load, and keep it."""
    name = "mtt::polarizability"
    model = models.new_model(targets(name, kind="system", unit="A^3"), **CHARGES, **SHORT)
    loaded = model_from_checkpoint(model.get_checkpoint(), "export").to(torch.float64).eval()
    outputs = {name: ModelOutput(sample_kind="system"), BORN: ModelOutput(sample_kind="atom")}
    batch = models.systems(model, [models.molecule()])
    results = loaded(batch, outputs)
    features = []
    hook = model.readout.heads[name].register_forward_hook(lambda *x: features.append(x[2][0]))
    model(batch, {name: outputs[name]})
    hook.remove()
    torch.testing.assert_close(results[name].block().values[0], features[0].sum(dim=0))
    assert results[BORN].block().values.shape == (len(batch[0]), 3, 3, 1)


def test_polarizability_without_charges():
    """A tensor like any other where nothing is derived."""
    named = targets("mtt::polarizability", kind="system", unit="A^3")
    assert "mtt::polarizability" in models.new_model(named, **SHORT).readout.heads
