"""Models of single precision: structures and energies keep the digits of double precision."""

import ase
import numpy as np
import pytest
import torch
from helpers import models
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelEvaluationOptions, ModelOutput
from metatomic_ase import MetatomicCalculator

BASELINE = {1: -13454.6789123, 6: -1036.123456789, 7: -1488.987654321, 8: -2043.555555555}
"""As of all-electron calculations, eV."""

BLOCKS = {
    "short range": {"long_range": {"enable": False}},
    "long range": {},
    # one solver for the cell and the supercell: another sum is accurate to 4e-6 eV here
    "charge equilibration": {"charge_equilibration": {"enable": True, "solver": "dense"}},
}


@pytest.fixture(scope="module", params=BLOCKS)
def exported(request, tmp_path_factory):
    """A model of single precision with such a baseline, as it is given to engines."""
    model = models.new_model(**BLOCKS[request.param])
    add_baseline(model)
    if model.charge_equilibration is not None:
        model.charge_equilibration.species_electronegativity.data *= 0.3  # charges up to 1 e
    path = tmp_path_factory.mktemp("digits") / "model.pt"
    model.to(torch.float32).export().save(str(path))
    return MetatomicCalculator(path)


def add_baseline(model) -> None:
    samples = Labels(["center_type"], torch.tensor([[z] for z in BASELINE]))
    values = torch.tensor([[energy] for energy in BASELINE.values()], dtype=torch.float64)
    block = TensorBlock(values, samples, [], Labels(["energy"], torch.tensor([[0]])))
    composition = model.additive_models[0]
    composition.model.weights["energy"] = TensorMap(Labels(["_"], torch.tensor([[0]])), [block])


def crystal() -> ase.Atoms:
    """48 atoms whose energy is some -2e5 eV."""
    frame = models.bulk().repeat(2)
    frame.rattle(0.05, seed=1)
    return frame


def evaluate(calculator, frame, *properties):
    """Energy and forces in ASE, or other properties."""
    frame = frame.copy()
    frame.calc = calculator
    found = [calculator.get_property(name, frame) for name in properties or ("energy", "forces")]
    return found if len(found) > 1 else found[0]


def test_precision_of_structures_and_outputs(exported):
    model = torch.jit.load(exported.parameters["model"])
    assert model.capabilities().dtype == "float64"
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    options = ModelEvaluationOptions(
        length_unit="angstrom",
        outputs={name: ModelOutput(sample_kind="atom") for name in model.capabilities().outputs},
    )
    structures = models.systems(model, [models.molecule(), models.bulk()])
    outputs = model(structures, options, check_consistency=True)
    assert {output.block().values.dtype for output in outputs.values()} == {torch.float64}


def test_supercell(exported):
    """Of twice the length in two directions: the energy of an atom to 1e-6 eV."""
    frame = crystal()
    energy, forces = evaluate(exported, frame)
    more_energy, more_forces = evaluate(exported, frame.repeat((2, 2, 1)))
    assert abs(more_energy / 4 - energy) < 1e-6 * len(frame)
    np.testing.assert_allclose(more_forces[: len(frame)], forces, atol=5e-5 * abs(forces).max())


@pytest.mark.parametrize("repeat", [1, 2])
def test_stress_far_from_the_origin(exported, repeat):
    """Sums over images, explicit or on a mesh, leave no force on the whole: times its distance from
    the origin that is a stress of any size."""
    frame = crystal().repeat(repeat)
    stress = evaluate(exported, frame, "stress")
    forces = evaluate(exported, frame, "forces")
    assert abs(forces.sum(axis=0)).max() < 1e-7 * abs(forces).max()
    frame.positions += [1e5, -7e4, 4e4]
    np.testing.assert_allclose(
        evaluate(exported, frame, "stress"), stress, atol=1e-5 * abs(stress).max()
    )


@pytest.mark.parametrize("boundary", [crystal, models.slab, models.molecule])
def test_far_from_the_origin(exported, boundary):
    frame = boundary()
    energy, forces = evaluate(exported, frame)
    frame.positions += [1e5, -7e4, 4e4]
    far_energy, far_forces = evaluate(exported, frame)
    assert abs(far_energy - energy) < 1e-6 * len(frame)
    np.testing.assert_allclose(far_forces, forces, atol=2e-6 * abs(forces).max())


def test_forces_are_derivatives(exported):
    """Differences of energies of -2e5 eV, in which single precision counts by 1/64 eV."""
    frame = crystal()
    forces = evaluate(exported, frame)[1]
    direction = np.random.default_rng(0).normal(size=forces.shape)
    direction /= np.linalg.norm(direction)
    h = 1e-2
    energies = []
    for sign in (1, -1):
        moved = frame.copy()
        moved.positions += sign * h * direction
        energies.append(evaluate(exported, moved)[0])
    slope = (energies[0] - energies[1]) / (2 * h)
    expected = -np.sum(forces * direction)
    assert abs(expected) > 0.1
    assert abs(slope - expected) < 2e-3 * abs(expected)
