"""Backbones other than PET, each where its packages are installed."""

import numpy as np
import pytest
import torch
from helpers import backbones, models
from helpers.backbones import PACKAGES
from metatomic.torch import ModelOutput
from metatomic_ase import MetatomicCalculator

from metatrain_lorem.nn.spex_harmonics import SpexHarmonics

QEQ = {"enable": True}
PER_SYSTEM = {"energy": ModelOutput(unit="eV", sample_kind="system")}


@pytest.fixture(params=PACKAGES)
def name(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def test_starts_as_the_checkpoint(name, lorem, tmp_path):
    reference = backbones.write_trained(tmp_path / "other.ckpt", name)
    section = backbones.section(name, checkpoint=str(tmp_path / "other.ckpt"))
    model = models.new_model(backbone=section, charge_equilibration=QEQ, scale=False)
    torch.nn.init.zeros_(model.charge_equilibration.species_electronegativity)
    for frame in lorem.frames.values():
        results = []
        for each in (model, reference):
            (system,) = models.systems(each, [frame])
            system.positions.requires_grad_()
            energy = each([system], PER_SYSTEM)["energy"].block().values
            results.append((energy, *torch.autograd.grad(energy, system.positions)))
        for own, its in zip(*results, strict=True):
            error = float((own - its).abs().max() / its.abs().max())
            print(f"{name}: {error:.1e}")
            assert error < 1e-10


def test_exported(name, lorem, tmp_path):
    """Forces and stress of the file are derivatives of its energy, charges sum to the total."""
    model = models.new_model(
        backbone=backbones.section(name), charge_equilibration=QEQ, conditional=True
    )
    frame = lorem.frames["bulk"].copy()
    frame.info["charge"] = 0.7
    energy = models.values(model, [frame]).item()
    model.export().save(str(tmp_path / "model.pt"))
    calculator = MetatomicCalculator(tmp_path / "model.pt", check_consistency=True)
    frame.calc = calculator
    assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    forces = frame.get_forces()
    start, direction = frame.positions.copy(), np.random.default_rng(0).normal(size=(6, 3))

    def displaced(size):
        frame.positions = start + size * direction
        return frame.get_potential_energy()

    h = 1e-5
    expected = (displaced(-2 * h) - 8 * displaced(-h) + 8 * displaced(h) - displaced(2 * h)) / (
        12 * h
    )
    assert abs(expected) > 1e-2
    assert abs((forces * direction).sum() + expected) < 1e-6 * np.linalg.norm(forces)
    outputs = {"charge": ModelOutput(unit="e", sample_kind="atom")}
    charges = calculator.run_model(frame, outputs)["charge"].block().values
    assert abs(charges.sum() - 0.7) < 1e-12


@pytest.mark.parametrize("max_degree", [0, 1, 6])
def test_harmonics_are_those_of_spex(max_degree):
    spex = pytest.importorskip("spex.angular")

    vectors = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, its = SpexHarmonics(max_degree)(vectors), spex.SphericalHarmonics(max_degree)(vectors)
    for one, other in zip(own, its, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
