"""Targets beside outputs that are derived from charges, which once trained in silence."""

import re

import pytest
from helpers import models
from metatrain.utils.data.target_info import get_generic_target_info

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
    with pytest.raises(ValueError, match=f"target '{re.escape(name)}': .*mtt::dipole_moment"):
        models.new_model(targets(name, **options), **CHARGES, **SHORT)


def test_polarizability_without_charges():
    """A tensor like any other where nothing is derived."""
    named = targets("mtt::polarizability", kind="system", unit="A^3")
    assert "mtt::polarizability" in models.new_model(named, **SHORT).readout.heads
