"""Forces and stresses against finite differences of the energy.

The energy is summed with Ewald parameters that are integers of the cell, and its real-space part
ends at the cutoff with a step of the size of ``accuracy``. The tests assert that neither the set of
pairs nor that of k-vectors changes within a finite difference. Steps are small because LOREM's norm
of a feature of degree zero is its absolute value: the energy has a kink where one changes sign.
"""

import io
import warnings

import pytest
import torch
from helpers import backbones
from helpers.batches import tune
from metatensor.torch import Labels
from metatomic.torch import ModelEvaluationOptions, ModelOutput, System, load_atomistic_model
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)

from metatrain_lorem.electrostatics.ewald import half_space_integers
from metatrain_lorem.electrostatics.mesh import mesh_shape

MODELS = {
    "long range": {},
    "short range": {"long_range": {"enable": False}},
    "message passing": {"num_message_passing": 1},
    "scalar message passing": {"num_message_passing": 1, "equivariant_message_passing": False},
    "ZBL": {"zbl": True},
    "dispersion": {"long_range": {"exponents": [1, 6]}},
    "partial charges": {"long_range": {"energy": "charges"}},
    "backbone": {"backbone": backbones.section("pet")},
}
SHORT = {"long_range": {"enable": False}}
DENSE = {"enable": True, "solver": "dense", "accuracy": 1e-4}
# derivatives are those of the mesh, however coarse, but charges must be converged
ITERATIVE = {**DENSE, "solver": "iterative", "tolerance": 1e-13}
CHARGES = {
    "dense": {"charge_equilibration": DENSE, "conditional": True},
    "dense, celli": {"charge_equilibration": {**DENSE, "energy": "celli"}, **SHORT},
    "iterative": {"charge_equilibration": ITERATIVE, "conditional": True},
    "iterative, celli": {
        "charge_equilibration": {**ITERATIVE, "energy": "celli"},
        "conditional": True,
        **SHORT,
    },
    "learned widths": {"charge_equilibration": {**ITERATIVE, "learn_widths": True}, **SHORT},
    "dense, hardness": {
        "charge_equilibration": {**DENSE, "hardness": "features"},
        "conditional": True,
        **SHORT,
    },
    "iterative, hardness": {
        "charge_equilibration": {**ITERATIVE, "energy": "celli", "hardness": "features"},
        "conditional": True,
    },
    "dense, last": {
        "charge_equilibration": {**DENSE, "after_long_range": True},
        "conditional": True,
    },
    "iterative, last": {
        "charge_equilibration": {**ITERATIVE, "after_long_range": True},
        "conditional": True,
    },
    "total charge": {"conditional": True},
    "backbone": {
        "backbone": backbones.section("pet"),
        "charge_equilibration": ITERATIVE,
        "conditional": True,
    },
}
BACKBONE = pytest.param("backbone", marks=pytest.mark.slow)
# Five-point formula for the first derivative
STEPS = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
STRAIN = 0.1  # per Å: larger strains change the set of k-vectors
WEIGHTS = torch.tensor([1.0, -8.0, 8.0, -1.0], dtype=torch.float64) / 12.0


def in_form(model, form, folder):
    """A function of systems that returns their energies, in one of the forms of a model."""
    outputs = {"energy": ModelOutput(unit="eV", sample_kind="system")}
    if form == "exported":
        model.export().save(str(folder / "model.pt"))
        exported = load_atomistic_model(str(folder / "model.pt"))
        options = ModelEvaluationOptions(length_unit="angstrom", outputs=outputs)
        return lambda batch: exported(batch, options, check_consistency=True)["energy"][0].values
    if form == "scripted":
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(model), file)
        file.seek(0)
        scripted = torch.jit.load(file)
        return lambda batch: scripted(batch, outputs, None)["energy"].block().values
    return lambda batch: model(batch, outputs)["energy"].block().values


def displaced(model, system, positions, strains):
    """Copies of a system with other positions, and strained."""
    copies = []
    lists = get_requested_neighbor_lists(model)
    for r, strain in zip(positions, strains, strict=True):
        deformation = torch.eye(3, dtype=torch.float64) + strain
        copy = System(system.types, r @ deformation, system.cell @ deformation, system.pbc)
        copies.append(get_system_with_neighbor_lists(copy, lists))
        if "charge" in system.known_data():
            copy.add_data("charge", system.get_data("charge"))
    return copies


def integers_of_sums(model, batch):
    """For each system what is summed over: pairs, k-vectors and the size of the mesh."""
    pairs = [system.get_neighbor_list(model.requested_nl).samples.values for system in batch]
    sums = [[{tuple(pair) for pair in p.tolist()}] for p in pairs]
    zeros = torch.zeros(len(batch), dtype=torch.float64)
    boundaries = model.graph(batch, zeros, model.total_charge_range).boundaries
    blocks = []
    for block in (model.long_range, model.partial_charges):
        if block is not None:
            blocks.append(block.coulomb.settings)
    if model.charge_equilibration is not None:
        blocks.append(model.charge_equilibration.settings)
    for settings in blocks:
        cells, lengths = boundaries.host_cells, boundaries.lengths
        k, counts = half_space_integers(cells, lengths, [settings.k_cutoff] * len(cells))
        for i, integers in enumerate(k.split(counts)):
            sums[i].append({tuple(row) for row in integers.tolist()})
            sums[i].append(mesh_shape(lengths[i], settings.mesh_spacing))
    return sums


def check_derivatives(model, energies, frame, lorem, step=1e-4):
    """Compare all forces and the derivatives with respect to all nine strains."""
    system = lorem.systems(model, [frame])[0]
    n = len(system)
    positions = system.positions.detach().requires_grad_(True)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    energy = energies(displaced(model, system, [positions], [strain]))
    gradients = torch.autograd.grad(energy.sum(), [positions, strain])

    directions = torch.eye(3 * n + 9, dtype=torch.float64)
    shifts = step * STEPS[:, None, None] * directions
    shifts = shifts.reshape(-1, 3 * n + 9)
    moved = positions.detach() + shifts[:, : 3 * n].reshape(-1, n, 3)
    batch = displaced(model, system, moved, STRAIN * shifts[:, 3 * n :].reshape(-1, 3, 3))
    reference = integers_of_sums(model, [system])[0]
    assert all(sums == reference for sums in integers_of_sums(model, batch))
    with torch.no_grad():
        differences = WEIGHTS @ energies(batch).reshape(4, -1) / step
    by_positions = differences[: 3 * n].reshape(n, 3)
    by_strain = differences[3 * n :].reshape(3, 3) / STRAIN
    for analytic, numerical in zip(gradients, (by_positions, by_strain), strict=True):
        scale = analytic.pow(2).mean().sqrt()
        assert scale > 1e-3
        error = (analytic - numerical).abs().max() / scale
        print(f"largest error relative to the rms: {error:.1e}")
        assert error < 1e-6


@pytest.mark.parametrize("boundary", ["bulk", "slab", "molecule"])
@pytest.mark.parametrize("name", MODELS)
def test_eager(lorem, name, boundary):
    model = lorem.new_model(**MODELS[name])
    check_derivatives(model, in_form(model, "eager", None), lorem.frames[boundary], lorem)


# an exported model is a scripted one
OTHER_FORMS = [("long range", "scripted"), ("long range", "exported")]
OTHER_FORMS += [(name, "exported") for name in ("message passing", "ZBL", "dispersion")]
OTHER_FORMS += [
    pytest.param(name, "scripted", marks=pytest.mark.slow)
    for name in ("message passing", "ZBL", "dispersion", "backbone")
]
OTHER_FORMS += [pytest.param("backbone", "exported", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name, form", OTHER_FORMS)
def test_other_forms(lorem, tmp_path, name, form):
    """One compilation serves all boundaries."""
    model = lorem.new_model(**MODELS[name])
    energies = in_form(model, form, tmp_path)
    for boundary in ("bulk", "slab", "molecule"):
        check_derivatives(model, energies, lorem.frames[boundary], lorem)


@pytest.mark.parametrize(
    "name, form",
    [
        *((name, "eager") for name in ("long range", "message passing", "dispersion")),
        ("long range", "exported"),
        ("dispersion", "exported"),
        pytest.param("message passing", "exported", marks=pytest.mark.slow),
    ],
)
def test_mesh(lorem, tmp_path, name, form):
    model = lorem.new_model(**MODELS[name])
    frames = [lorem.frames["bulk"], lorem.frames["slab"]]
    explicit = lorem.values(model, frames)
    tune(model.long_range.coulomb, mesh_threshold=0)
    if model.long_range.dispersion is not None:
        tune(model.long_range.dispersion, mesh_threshold=0)
    assert not torch.equal(lorem.values(model, frames), explicit)
    energies = in_form(model, form, tmp_path)
    for frame in frames:
        check_derivatives(model, energies, frame, lorem)


def charged(frame):
    """A frame with a total charge, for models that take it."""
    frame = frame.copy()
    frame.info["charge"] = 0.7
    return frame


@pytest.mark.parametrize("boundary", ["bulk", "slab", "molecule"])
@pytest.mark.parametrize("name", [*(n for n in CHARGES if n != "backbone"), BACKBONE])
def test_charges_eager(lorem, name, boundary):
    model = lorem.new_model(**CHARGES[name])
    check_derivatives(model, in_form(model, "eager", None), charged(lorem.frames[boundary]), lorem)


@pytest.mark.parametrize(
    "name",
    ["dense", "iterative", pytest.param("iterative, celli", marks=pytest.mark.slow), BACKBONE],
)
def test_charges_exported(lorem, tmp_path, name):
    model = lorem.new_model(**CHARGES[name])
    energies = in_form(model, "exported", tmp_path)
    for boundary in ("bulk", "slab", "molecule") if name == "iterative" else ("bulk",):
        check_derivatives(model, energies, charged(lorem.frames[boundary]), lorem)


def test_charges_with_selected_atoms(lorem):
    """Of two energies, in TorchScript, where derivatives of iterative solutions are special."""
    energy = get_energy_target_info("energy", {"unit": "eV"})
    targets = {"energy": energy, "mtt::other": energy}
    model = lorem.new_model(targets, **CHARGES["iterative, celli"])
    outputs = {name: ModelOutput(sample_kind="system") for name in targets}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)

    def energies(batch):
        selected = [[i, atom] for i in range(len(batch)) for atom in (0, 2, 3)]
        labels = Labels(["system", "atom"], torch.tensor(selected))
        return scripted(batch, outputs, labels)["mtt::other"].block().values

    check_derivatives(model, energies, charged(lorem.frames["molecule"]), lorem)
