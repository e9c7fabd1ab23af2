"""Polarisation, Born charges and polarisability from charges."""

import copy
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers import backbones
from helpers.models import systems
from metatensor.torch import Labels
from metatomic.torch import ModelEvaluationOptions, ModelOutput, load_atomistic_model
from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
from scipy.spatial.transform import Rotation
from scipy.special import erf

from metatrain_lorem.training.checks import check_data
from metatrain_lorem.training.distributed import Processes

POLARIZATION = "mtt::polarization"
BORN = "mtt::born_effective_charge"
EXCESS = "mtt::aux::born_effective_charge_excess"
POLARIZABILITY = "mtt::polarizability"
K_E = 14.399645
ENERGY = get_energy_target_info("energy", {"unit": "eV"})

pytestmark = pytest.mark.usefixtures("interpreted")


def target(name, rank, kind="atom", unit="e", **options):
    section = {"quantity": "", "unit": unit, "num_subtargets": 1, "sample_kind": kind}
    section["type"] = {"cartesian": {"rank": rank}} if rank else "scalar"
    return get_generic_target_info(name, {**section, "description": "", **options})


DIPOLE = target("mtt::dipole_moment", 1, "system", "debye")
CHARGE = target("mtt::atomic_charge", 0)
BORN_TARGET = target(BORN, 2)


def equilibrated(lorem, targets=(), backbone=None, **entries):
    hypers = {"enable": True, "accuracy": 1e-6, "tolerance": 1e-13, **entries}
    return lorem.new_model(
        {"energy": ENERGY, **dict(targets)},
        charge_equilibration=hypers,
        conditional=True,
        long_range={"enable": False},
        **({} if backbone is None else {"backbone": backbone}),
    )


def with_charge_head(lorem, **options):
    targets = {"energy": ENERGY, "mtt::atomic_charge": CHARGE}
    model = lorem.new_model(targets, long_range={"enable": False}, conditional=True, **options)
    # charges of some 0.1 e
    head = model.readout.heads["mtt::atomic_charge"].invariants.last_layer
    torch.nn.init.normal_(head.weight, std=0.2)
    return model


def partial(lorem, targets=(), **options):
    model = lorem.new_model(
        {"energy": ENERGY, **dict(targets)},
        long_range={"energy": "charges"},
        conditional=True,
        **options,
    )
    # charges of some 0.1 e
    model.partial_charges.network[2].weight.data *= 5.0
    return model


EXPORTED = [
    ("iterative", "slab"),
    ("iterative", "molecule"),
    ("dense", "bulk"),
    ("head", "bulk"),
]
"""What is also tested in its exported form, which takes seconds to make."""


class Exported:
    """The file of a model, called like the model."""

    def __init__(self, model, folder):
        self.source = model
        model.export().save(str(folder / "model.pt"))
        self.loaded = load_atomistic_model(str(folder / "model.pt"))

    def __call__(self, systems, outputs, selected_atoms=None):
        options = ModelEvaluationOptions(
            length_unit="angstrom", outputs=outputs, selected_atoms=selected_atoms
        )
        return self.loaded(systems, options, check_consistency=True)


def structures(model, frames):
    return systems(model.source if isinstance(model, Exported) else model, frames)


def response(model, frames, *names, kind="atom", selected_atoms=None):
    """Outputs of a model, exported or not, as arrays."""
    outputs = {name: ModelOutput(sample_kind=kind) for name in names}
    with torch.no_grad():
        results = model(structures(model, frames), outputs, selected_atoms)
    values = [results[name].block().values.squeeze(-1).numpy() for name in names]
    return values if len(values) > 1 else values[0]


def charged(frame, charge=1.0):
    frame = frame.copy()
    frame.info["charge"] = charge
    return frame


def displaced(frame, atoms, h):
    """Copies for fourth-order differences along x, y and z, and the weights of their values."""
    copies, weights = [], np.array([1, -8, 8, -1]) / (12 * h)
    for i in atoms:
        for beta in range(3):
            for steps in (-2, -1, 1, 2):
                copies.append(frame.copy())
                copies[-1].positions[i, beta] += steps * h
    return copies, weights


def derivatives_of_charges(model, frame, atoms=None, h=1e-4):
    """Finite differences ``[atom moved, direction, atom]``."""
    atoms = range(len(frame)) if atoms is None else atoms
    copies, weights = displaced(frame, atoms, h)
    values = response(model, copies, "charge").reshape(len(atoms), 3, 4, len(frame))
    return np.einsum("s,ibsj->ibj", weights, values)


def literal(model, frame):
    """The formula of the documentation with charges and their finite differences, and the excess
    that the sum rule takes from each atom."""
    q = response(model, [frame], "charge")
    derivatives = derivatives_of_charges(model, frame)
    born = q[:, None, None] * np.eye(3)
    offsets = frame.positions - frame.get_center_of_mass()
    periodic = frame.cell.array[frame.pbc]
    fractions = np.zeros((len(frame), 0))
    if frame.pbc.any():
        fractions = offsets @ np.linalg.pinv(periodic)
    outside = offsets - fractions @ periodic
    for i in range(len(frame)):
        born[i] += derivatives[i] @ outside
        for a, s in zip(periodic, fractions.T, strict=True):
            weights = np.sin(2 * np.pi * (s - s[i])) / (2 * np.pi)
            born[i] += np.outer(derivatives[i] @ weights, a)
    excess = (born.sum(axis=0) - frame.info["charge"] * np.eye(3)) / len(frame)
    return born - excess, excess


@pytest.mark.parametrize("boundary", ["molecule", "slab", "bulk"])
@pytest.mark.parametrize("kind", ["dense", "iterative", "head", "partial"])
def test_born_charges(lorem, tmp_path, kind, boundary):
    """Against the formula with finite differences of the charges, also in the exported file."""
    if kind == "head":
        model = with_charge_head(lorem)
    elif kind == "partial":
        model = partial(lorem)
    else:
        model = equilibrated(lorem, solver=kind)
    frame = charged(lorem.frames[boundary])
    expected, expected_excess = literal(model, frame)
    traces = np.trace(expected, axis1=1, axis2=2)[:, None, None]
    assert abs(expected - traces / 3 * np.eye(3)).max() > 0.05
    forms = [model]
    if (kind, boundary) in EXPORTED:
        forms.append(Exported(model, tmp_path))
    for form in forms:
        born, excess = response(form, [frame], BORN, EXCESS)
        np.testing.assert_allclose(born, expected, atol=2e-8)
        np.testing.assert_allclose(excess, np.broadcast_to(expected_excess, born.shape), atol=2e-8)
        np.testing.assert_allclose(born.sum(axis=0), np.eye(3), atol=1e-10)
        if boundary == "molecule" and kind != "head":
            assert abs(excess).max() < 1e-12
    if boundary != "molecule" or kind == "head":
        assert abs(expected_excess).max() > 1e-3
    # per structure: the total charge, and all that was taken
    np.testing.assert_allclose(
        response(model, [frame], BORN, kind="system")[0], np.eye(3), atol=1e-10
    )
    np.testing.assert_allclose(
        response(model, [frame], EXCESS, kind="system")[0], len(frame) * excess[0], atol=1e-10
    )


@pytest.mark.parametrize("solver, atomic_dipoles", [("dense", False), ("iterative", True)])
def test_isolated_born_charges_are_derivatives_of_the_polarization(
    lorem, tmp_path, solver, atomic_dipoles
):
    """That of a neutral molecule, and the polarisation is the dipole moment."""
    targets = {"mtt::dipole_moment": DIPOLE}
    model = equilibrated(lorem, targets, solver=solver, atomic_dipoles=atomic_dipoles)
    frame = charged(lorem.frames["molecule"], 0.0)
    copies, weights = displaced(frame, [0, 4], 1e-4)
    values = response(model, copies, POLARIZATION, kind="system").reshape(2, 3, 4, 3)
    numerical = np.einsum("s,ibsa->iba", weights, values)
    for form in (model, Exported(model, tmp_path)):
        born = response(form, [frame], BORN)
        np.testing.assert_allclose(born[[0, 4]], numerical, atol=2e-8)
        debye, polarization = response(
            form, [frame], "mtt::dipole_moment", POLARIZATION, kind="system"
        )
        np.testing.assert_allclose(0.20819433 * debye, polarization, rtol=1e-6)
        assert abs(polarization).min() > 1e-3


def test_polarization_of_an_ion(lorem):
    """About its centre of mass; NaN for periodic structures."""
    model = equilibrated(lorem)
    frames = [charged(lorem.frames[name]) for name in ("molecule", "bulk", "slab")]
    q = response(model, frames[:1], "charge")
    values = response(model, frames, POLARIZATION, kind="system")
    offsets = frames[0].positions - frames[0].get_center_of_mass()
    np.testing.assert_allclose(values[0], q @ offsets, atol=1e-12)
    assert np.isnan(values[1:]).all()


def test_screened_charges(lorem):
    """Born charges of periodic structures are larger by the root of the dielectric constant, before
    the sum rule; those of molecules are not."""
    model, plain = equilibrated(lorem, epsilon_infinity=1.69), equilibrated(lorem)
    for name, factor in (("molecule", 1.0), ("slab", 1.3), ("bulk", 1.3)):
        frame = charged(lorem.frames[name])
        expected = factor * sum(response(plain, [frame], BORN, EXCESS))
        born, excess = response(model, [frame], BORN, EXCESS)
        np.testing.assert_allclose(born + excess, expected, atol=1e-9)
        np.testing.assert_allclose(born.sum(axis=0), np.eye(3), atol=1e-10)


def test_atomic_dipoles_of_periodic_structures(lorem):
    """They add their own derivatives, whichever cell the atoms are in."""
    names = {"mtt::dipole_moment": DIPOLE}
    model = equilibrated(lorem, names, atomic_dipoles=True)
    frame = charged(lorem.frames["bulk"])
    with_dipoles, excess = response(model, [frame], BORN, EXCESS)
    without = response(equilibrated(lorem), [frame], BORN)
    frame.positions[3] += 2 * frame.cell[0]
    np.testing.assert_allclose(response(model, [frame], BORN), with_dipoles, atol=1e-9)
    assert abs(with_dipoles - without).max() > 0.01
    sums = []
    hook = model.readout.heads["mtt::dipole_moment"].register_forward_hook(
        lambda _, __, output: sums.append(output[0].detach().sum(dim=0).squeeze(1).numpy())
    )
    copies, weights = displaced(frame, [2], 1e-4)
    for moved in copies:
        response(model, [moved], BORN)
    hook.remove()
    numerical = 0.20819433 * np.einsum("s,bsa->ba", weights, np.reshape(sums, (3, 4, 3)))
    literal_part, literal_excess = literal(model, frame)
    added = (with_dipoles + excess - literal_part - literal_excess)[2]
    np.testing.assert_allclose(added, numerical, atol=1e-6)


def test_converges_with_the_supercell(lorem):
    """Local charges: towards sums over the neighbours themselves, along each vector of the cell."""
    model = with_charge_head(lorem)
    frame = charged(lorem.frames["bulk"], 0.0)
    errors = []
    for repeats in (2, 3, 4):
        cell = frame.repeat(repeats)
        cell.info["charge"] = 0.0
        born, excess = response(model, [cell], BORN, EXCESS)
        errors.append((born + excess)[2])
    # the exact sum, from the nearest images of the largest cell
    (derivatives,) = derivatives_of_charges(model, cell, [2])
    exact = response(model, [cell], "charge")[2] * np.eye(3)
    to_neighbors = cell.get_distances(2, range(len(cell)), mic=True, vector=True)
    exact += derivatives @ to_neighbors
    # components along the reciprocal vectors are those of one vector of the cell each
    errors = abs(np.array([(x - exact) @ np.linalg.inv(frame.cell.array) for x in errors]))
    sizes = errors.max(axis=1)
    assert (sizes[0] > 1e-3).all()
    # with the square of its length
    assert (sizes[1] < 0.6 * sizes[0]).all() and (sizes[2] < 0.7 * sizes[1]).all()


@pytest.mark.parametrize("kind", ["dense", "partial"])
def test_symmetries(lorem, kind):
    """Rotation with inversion, permutation, translation, batches of all boundaries."""
    model = partial(lorem) if kind == "partial" else equilibrated(lorem, solver=kind)
    frames = [charged(lorem.frames[name]) for name in ("bulk", "molecule", "slab")]
    together = response(model, frames, BORN)
    matrix = -Rotation.from_euler("xyz", [0.4, 1.1, -2.3]).as_matrix()
    start = 0
    for frame in frames:
        born = response(model, [frame], BORN)
        np.testing.assert_allclose(together[start : start + len(frame)], born, atol=1e-9)
        start += len(frame)
        order = np.random.default_rng(0).permutation(len(frame))
        other = charged(frame[order])
        other.set_cell(other.cell.array @ matrix.T)
        other.positions = (other.positions + [3.0, -50.0, 20.0]) @ matrix.T
        turned = np.einsum("ac,ncd,bd->nab", matrix, born[order], matrix)
        np.testing.assert_allclose(response(model, [other], BORN), turned, atol=1e-6)


def coulomb_matrix(frame, model):
    """A of an isolated structure from its definition, in eV/e²."""
    radii = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66}
    hardness = response(model, [frame], "mtt::aux::hardness")
    widths = np.array([radii[z] for z in frame.numbers])
    variances = widths[:, None] ** 2 + widths[None] ** 2
    distances = frame.get_all_distances()
    np.fill_diagonal(distances, 1.0)
    matrix = K_E * erf(distances / np.sqrt(2 * variances)) / distances
    np.fill_diagonal(matrix, hardness + K_E / (widths * np.sqrt(np.pi)))
    return matrix


@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_polarizability(lorem, tmp_path, solver):
    """In closed form: charges that minimise the energy in a field, for each field."""
    model = equilibrated(lorem, solver=solver)
    for frame in (lorem.frames["molecule"], Atoms("OO", [[0, 0, 0], [0, 3.0, 9.0]])):
        frame = charged(frame)
        ones = np.ones((len(frame), 1))
        saddle = np.block([[coulomb_matrix(frame, model), ones], [ones.T, np.zeros((1, 1))]])
        right = np.vstack([frame.positions, np.zeros(3)])
        expected = K_E * frame.positions.T @ np.linalg.solve(saddle, right)[:-1]
        assert np.linalg.eigvalsh(expected).max() > 10.0
        for form in (model, Exported(model, tmp_path)):
            found = response(form, [frame], POLARIZABILITY, kind="system")[0]
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)
    periodic = response(model, [charged(lorem.frames["slab"])], POLARIZABILITY)
    assert np.isnan(periodic).all()


def test_polarizability_of_partial_charges(lorem, tmp_path):
    """In closed form: each flow moves charge along the vector between its atoms."""
    model = partial(lorem)
    seen = []
    charges = model.partial_charges.charges
    model.partial_charges.charges = lambda *given: seen.append(charges(*given)) or seen[-1]
    frame = charged(lorem.frames["molecule"])
    found = response(model, [frame], POLARIZABILITY, kind="system")[0]
    g, rho = (x.detach().numpy() for x in seen[0][1:])
    r, vectors = frame.get_all_distances(), frame.get_all_distances(vector=True)
    f = np.where(r < 4.0, 0.5 + 0.5 * np.cos(np.pi * r / 4.0), 0.0)  # zero vectors count nothing
    flows = np.outer(g, g) * f * np.exp(-(r**2) / (rho[:, None] ** 2 + rho**2))
    expected = np.einsum("ij,ija,ijb->ab", flows, vectors, vectors)
    assert np.linalg.eigvalsh(expected).min() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-12)
    exported = Exported(partial(lorem), tmp_path)
    found = response(exported, [frame], POLARIZABILITY, kind="system")[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    for other in (frame, charged(lorem.frames["bulk"])):
        born = response(exported, [other], BORN)
        np.testing.assert_allclose(born, response(model, [other], BORN), atol=1e-12)
    assert np.isnan(response(model, [charged(lorem.frames["slab"])], POLARIZABILITY)).all()


# minima of GFN2-xTB, and its polarisabilities in Å³: differences of its dipole moments in fields of
# 0.05 V/Å along each axis (tblite 0.8.0)
WATER = Atoms("OHH", [[0, 0, 0.1011], [0, 0.7722, -0.4680], [0, -0.7722, -0.4680]])
WATER_POLARIZABILITY = [0.0005, 0.7819, 0.2980]
WATER_PAIR = Atoms(
    "OHHOHH",
    [
        [0.1914, -0.0362, 0.0],
        [1.1306, 0.2019, 0.0],
        [-0.2945, 0.7897, 0.0],
        [3.0043, 0.3229, 0.0],
        [3.2806, -0.1750, 0.7730],
        [3.2806, -0.1750, -0.7730],
    ],
)
WATER_PAIR_POLARIZABILITY = [0.9903, 0.6025, 0.7700]


def test_water_against_gfn2(lorem):
    """Two hardnesses make the polarisability of a molecule, and that of two across their hydrogen
    bond. Along it charges flow as in a metal, which the documentation says: a model that no longer
    does needs other words there."""
    model = equilibrated(lorem)
    hardness = torch.tensor([0.35253, 1.0, 1.0, 0.51420])  # of H, C, N and O, 1/Å
    model.charge_equilibration.raw_hardness.data = torch.log(torch.expm1(hardness - 0.2)).double()
    names = (WATER, WATER_POLARIZABILITY), (WATER_PAIR, WATER_PAIR_POLARIZABILITY)
    (one, expected), (two, expected_of_two) = (
        (np.diag(response(model, [charged(frame, 0.0)], POLARIZABILITY, kind="system")[0]), known)
        for frame, known in names
    )
    np.testing.assert_allclose(one, expected, rtol=0.01, atol=0.001)
    np.testing.assert_allclose(two[1:], expected_of_two[1:], rtol=0.03)
    assert two[0] > 5.0 * expected_of_two[0]


def test_water_of_partial_charges_against_gfn2(lorem, monkeypatch):
    """Two constants of each element make all five numbers: charge stays in its molecule, but for
    what the hydrogen bond lets through."""
    model = lorem.new_model({"energy": ENERGY}, long_range={"energy": "charges"})
    constants = torch.tensor([[2.0, 0.54355], [0.0, 0.0], [0.0, 0.0], [0.23691, 1.13971]])

    def charges(x, graph):
        flow, width = constants.double()[graph.species].unbind(dim=1)
        return torch.zeros_like(flow), flow, width

    monkeypatch.setattr(model.partial_charges, "charges", charges)
    for frame, expected in ((WATER, WATER_POLARIZABILITY), (WATER_PAIR, WATER_PAIR_POLARIZABILITY)):
        found = response(model, [charged(frame, 0.0)], POLARIZABILITY, kind="system")[0]
        np.testing.assert_allclose(np.diag(found), expected, rtol=0.01, atol=0.001)


@pytest.mark.parametrize("solver", ["dense", pytest.param("iterative", marks=pytest.mark.slow)])
def test_backbone(lorem, tmp_path, solver):
    """Another architecture reads the positions for itself; they count all the same."""
    model = equilibrated(lorem, solver=solver, backbone=backbones.section("pet"))
    frame = charged(lorem.frames["molecule"])
    expected, _ = literal(model, frame)
    assert abs(expected - literal(equilibrated(lorem), frame)[0]).max() > 0.01
    for form in (model, Exported(model, tmp_path)):
        np.testing.assert_allclose(response(form, [frame], BORN), expected, atol=1e-6)


def test_lone_ion(lorem):
    model = equilibrated(lorem)
    for frame in (Atoms("O"), Atoms("O", cell=[9.0] * 3, pbc=True)):
        born = response(model, [charged(frame, -2.0)], BORN)
        np.testing.assert_allclose(born, -2.0 * np.eye(3)[None], atol=1e-12)


def test_units(lorem):
    """Lengths in bohr: the same Born charges, polarisability in bohr³."""
    bohr = 1 / 0.529177210903
    hypers = {"enable": True, "accuracy": 1e-6}
    models, frames = [], []
    for unit, factor in (("angstrom", 1.0), ("bohr", bohr)):
        model = lorem.new_model(
            {"energy": ENERGY},
            charge_equilibration=hypers,
            length_unit=unit,
            conditional=True,
            cutoff=4.0 * factor,
            long_range={"enable": False},
        )
        models.append(model)
        frame = charged(lorem.frames["molecule"])
        frame.positions *= factor
        frames.append(frame)
    models[1].load_state_dict(models[0].state_dict())
    for name, factor in ((BORN, 1.0), (POLARIZATION, bohr), (POLARIZABILITY, bohr**3)):
        values = [response(m, [f], name) for m, f in zip(models, frames, strict=True)]
        np.testing.assert_allclose(values[1], factor * values[0], atol=2e-5 * abs(values[1]).max())


@pytest.mark.parametrize("boundary", ["molecule", "bulk"])
@pytest.mark.parametrize("solver", ["dense", "iterative", "partial"])
def test_single_and_mixed_precision(lorem, tmp_path, solver, boundary):
    """Far from the origin too: positions are taken about their mean."""
    if solver == "partial":
        model = partial(lorem)
    else:
        model = equilibrated(lorem, solver=solver, tolerance=None, accuracy=1e-4)
    frame = charged(lorem.frames[boundary])
    expected = response(model, [frame], BORN)
    mixed = Exported(copy.deepcopy(model).to(torch.float32), tmp_path)
    frame.positions += [1e4, -3e3, 2e4]
    born = response(mixed, [frame], BORN)
    np.testing.assert_allclose(born, expected, atol=2e-4)
    # i-PI wants the sum to be right to 1e-8
    np.testing.assert_allclose(born.sum(axis=0), np.eye(3), atol=1e-12)


def test_selected_atoms(lorem, tmp_path):
    """Of some atoms, while all take part."""
    model = equilibrated(lorem)
    frame = charged(lorem.frames["bulk"])
    born = response(model, [frame], BORN)
    atoms = Labels(["system", "atom"], torch.tensor([[0, 4], [0, 1]]))
    for form in (model, Exported(model, tmp_path)):
        some = response(form, [frame], BORN, selected_atoms=atoms)
        np.testing.assert_allclose(np.sort(some, axis=0), np.sort(born[[1, 4]], axis=0), atol=1e-12)


@pytest.mark.parametrize("form", ["eager", "exported"])
@pytest.mark.parametrize("kind", ["dense", "iterative", "partial"])
def test_beside_the_forces(lorem, tmp_path, kind, form):
    """Neither output changes the other; Born charges have no derivatives, and none are left on
    where the caller wants none."""
    model = partial(lorem) if kind == "partial" else equilibrated(lorem, solver=kind)
    model = Exported(model, tmp_path) if form == "exported" else model
    frame = charged(lorem.frames["bulk"])
    born = response(model, [frame], BORN)
    found = []
    for names in (["energy"], ["energy", BORN, POLARIZABILITY]):
        (system,) = structures(model, [frame])
        system.positions.requires_grad_(True)
        outputs = {n: ModelOutput(sample_kind="system" if n == "energy" else "atom") for n in names}
        results = model([system], outputs)
        energy = results["energy"].block().values
        found.append([energy.item(), *torch.autograd.grad(energy.sum(), system.positions)])
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(results[BORN].block().values[..., 0].numpy(), born, atol=1e-10)
    assert not results[BORN].block().values.requires_grad
    (system,) = structures(model, [frame])
    with torch.no_grad():
        results = model([system], outputs)
        assert not torch.is_grad_enabled()
    assert not any(x.block().values.requires_grad for x in results.values())
    assert not system.positions.requires_grad


def test_component_labels(lorem):
    """They say which index is which; a target's are metatrain's."""
    frame = charged(lorem.frames["molecule"])
    for targets, names in (({}, ["displacement", "polarization"]), ({BORN: BORN_TARGET}, None)):
        model = equilibrated(lorem, targets)
        outputs = {BORN: ModelOutput(sample_kind="atom")}
        block = model(structures(model, [frame]), outputs)[BORN].block()
        found = [component.names[0] for component in block.components]
        assert found == (names or ["xyz_1", "xyz_2"])
        np.testing.assert_allclose(
            block.values[..., 0], response(equilibrated(lorem), [frame], BORN), atol=1e-10
        )


@pytest.mark.parametrize("kind", ["dense", "iterative", "partial"])
@pytest.mark.parametrize("boundary", ["molecule", "bulk"])
def test_training_gradients(lorem, kind, boundary):
    """Of a loss on derived Born charges, against finite differences."""
    targets, parameter = {BORN: BORN_TARGET}, "charge_equilibration.raw_hardness"
    if kind == "partial":
        model, parameter = partial(lorem, targets), "partial_charges.network.2.bias"
    else:
        model = equilibrated(lorem, targets, solver=kind)
    model.train()
    frame = charged(lorem.frames[boundary])
    batch = structures(model, [frame])
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(len(frame), 3, 3, 1, generator=generator, dtype=torch.float64)

    def loss():
        born = model(batch, {BORN: ModelOutput(sample_kind="atom")})[BORN].block().values
        return (factors * born).sum()

    names = (parameter, "short_range.initial.bias")
    parameters = [model.get_parameter(name) for name in names]
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss(), parameters), strict=True
    ):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        start, numerical, h = parameter.detach().clone(), 0.0, 1e-4
        for steps, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            parameter.data = start + steps * h * direction
            numerical += weight * loss().item() / (12 * h)
        parameter.data = start
        assert abs(numerical) > 1e-3
        assert (gradient * direction).sum().item() == pytest.approx(numerical, rel=1e-6)


def test_scales_of_older_versions(lorem):
    """Charges of a head may have a scale, which Born charges then have too."""
    model = with_charge_head(lorem)
    frame = charged(lorem.frames["molecule"], 0.0)
    before = sum(response(model, [frame], BORN, EXCESS))
    name = "mtt::atomic_charge"
    for part in (model.scaler.model.scales[name], model.scaler.model.per_target_scales[name]):
        part.block().values[:] = 3.0
    np.testing.assert_allclose(sum(response(model, [frame], BORN, EXCESS)), 3 * before, atol=1e-12)


def test_targets_of_the_same_names(lorem):
    """A polarisability to be learned beside the derived one needs another name."""
    model = equilibrated(lorem, {POLARIZABILITY: target(POLARIZABILITY, 2, "system", "")})
    with pytest.raises(ValueError, match=f"target '{POLARIZABILITY}': .* needs another name"):
        check_data(model, [], [], Processes(torch.device("cpu")))
    name = "mtt::learned_polarizability"
    model = equilibrated(lorem, {name: target(name, 2, "system", "")})
    frames = [charged(lorem.frames["bulk"])]
    assert np.isfinite(response(model, frames, name, kind="system")).all()
    assert np.isnan(response(model, frames, POLARIZABILITY, kind="system")).all()
    response(model, frames, BORN)


@pytest.mark.parametrize(
    "given",
    [
        target(BORN, 2, "system"),
        target(BORN, 1),
        target(BORN, 2, unit="eV"),
        target(BORN, 2, num_subtargets=2),
    ],
)
@pytest.mark.parametrize("enable", [False, True])
def test_wrong_targets(lorem, given, enable):
    with pytest.raises(ValueError, match="must be one matrix per atom in e"):
        lorem.new_model(
            {"energy": ENERGY, BORN: given}, charge_equilibration={"enable": enable}, scale=False
        )


def test_two_definitions(lorem):
    targets = {"energy": ENERGY, "mtt::atomic_charge": CHARGE, BORN: BORN_TARGET}
    with pytest.raises(ValueError, match="predicted as well as derived from the target 'mtt::ato"):
        lorem.new_model(targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lorem.new_model(targets, charge_equilibration={"enable": True})
    assert BORN not in model.readout.heads
