"""The Coulomb module as a whole: batches, symmetries, accuracy, TorchScript, bad input."""

import ase
import numpy as np
import pytest
import torch
from ase.build import make_supercell
from helpers.batches import tune

from metatrain_lorem.electrostatics.coulomb_sum import CoulombSum

CUTOFF = 5.0


def default(mesh=False):
    module = CoulombSum(CUTOFF, accuracy=1e-6)
    tune(module, mesh_threshold=0 if mesh else 10**15)
    return module


def tight():
    return CoulombSum(CUTOFF, accuracy=1e-11)


@pytest.fixture
def mixed(batch, mixed_structures, random_charges):
    charges = [random_charges(max(1, len(a)), 4, 10 + i) for i, a in enumerate(mixed_structures)]
    charges = [q[: len(a)] for q, a in zip(charges, mixed_structures, strict=True)]
    return batch(mixed_structures, charges, CUTOFF)


@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
def test_batch_equals_one_by_one(batch, mixed_structures, mixed, mesh):
    together = mixed.potentials(default(mesh))
    for number, atoms in enumerate(mixed_structures):
        mask = mixed.system_index == number
        alone = batch([atoms], [mixed.charges[mask].numpy()], CUTOFF).potentials(default(mesh))
        torch.testing.assert_close(together[mask], alone, rtol=1e-12, atol=1e-13)


def test_lonely_atom_has_no_potential(batch):
    data = batch([ase.Atoms("H")], [[[1.0, -2.0]]], CUTOFF)
    assert torch.equal(data.potentials(default()), torch.zeros(1, 2, dtype=torch.float64))


def test_batch_without_atoms(batch):
    charges = np.zeros((0, 2))
    data = batch([ase.Atoms("H"), ase.Atoms()], [[[1.0, 1.0]], charges], CUTOFF)
    keep = slice(0, 0)
    data.charges, data.positions = data.charges[keep], data.positions[keep]
    data.system_index = data.system_index[keep]
    assert data.potentials(default()).shape == (0, 2)


@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
def test_chunks_change_nothing(mixed, mesh):
    module = default(mesh)
    expected = mixed.potentials(module)
    tune(module, max_terms=50)
    torch.testing.assert_close(mixed.potentials(module), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
def test_scripted_equals_eager(mixed, mesh):
    module = default(mesh)
    scripted = torch.jit.script(module)
    positions = mixed.positions.clone().requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    results = []
    # the third call runs the optimised graph
    for function in [module, scripted, scripted, scripted]:
        energy = (mixed.charges * mixed.potentials(function, None, positions, strain)).sum()
        results.append([energy, *torch.autograd.grad(energy, [positions, strain])])
    for result in results[1:]:
        for value, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


def test_scripted_module_keeps_the_parameters(tmp_path):
    module = default()
    tune(module, smearing=1.25)
    torch.jit.script(module).save(str(tmp_path / "coulomb.pt"))
    assert torch.jit.load(str(tmp_path / "coulomb.pt")).potential.smearing == 1.25


@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
def test_single_precision(mixed, mesh):
    reference = mixed.potentials(default(mesh))
    single = mixed.to(torch.float32)
    result = single.potentials(default(mesh))
    assert result.dtype == torch.float32
    error = (result - reference).abs().max() / reference.square().mean().sqrt()
    assert error < 1e-5


def test_single_precision_far_from_the_origin(mixed):
    single = mixed.to(torch.float32)
    single.positions = single.positions + 300.0
    # the same rounded positions, so that only the sum itself is compared
    reference = single.to(torch.float64).potentials(default())
    error = (single.potentials(default()) - reference).abs().max()
    # distances of neighbours, taken from the rounded positions, are exact to 3e-5
    assert error < 2e-5 * reference.square().mean().sqrt()


@pytest.mark.parametrize("shift", [7.3, -80.0])
@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
def test_translation(mixed, mesh, shift):
    # the mesh breaks the symmetry to within its accuracy
    tolerance = 2e-5 if mesh else 1e-10
    moved = mixed.positions + torch.tensor([shift, 0.37 * shift, -1.2])
    torch.testing.assert_close(
        mixed.potentials(default(mesh), positions=moved),
        mixed.potentials(default(mesh)),
        rtol=0.0,
        atol=tolerance,
    )


def test_rotation(mixed):
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    expected = mixed.potentials(default())
    mixed.cells = mixed.cells @ rotation
    mixed.positions = mixed.positions @ rotation
    torch.testing.assert_close(mixed.potentials(default()), expected, rtol=0.0, atol=1e-10)


def test_permutation_of_atoms_and_pairs(mixed):
    expected = mixed.potentials(default())
    order = torch.randperm(len(mixed.centers))
    mixed.centers, mixed.neighbors = mixed.centers[order], mixed.neighbors[order]
    mixed.shifts = mixed.shifts[order]
    # reverses the atoms of each structure
    last = torch.bincount(mixed.system_index, minlength=len(mixed.cells)).cumsum(0) - 1
    first = torch.cat([torch.zeros(1, dtype=torch.long), last[:-1] + 1])
    atom = torch.arange(len(mixed.positions))
    reverse = (first + last)[mixed.system_index] - atom
    mixed.centers, mixed.neighbors = reverse[mixed.centers], reverse[mixed.neighbors]
    mixed.positions, mixed.charges = mixed.positions[reverse], mixed.charges[reverse]
    torch.testing.assert_close(
        mixed.potentials(default()), expected[reverse], rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize(
    "pbc, matrix",
    [
        ([True, True, True], [[2, 1, 0], [0, 1, 0], [0, -1, 1]]),
        ([True, True, False], [[2, 1, 0], [-1, 1, 0], [0, 0, 1]]),
        ([False, True, True], [[1, 0, 0], [0, 1, 1], [0, 0, 2]]),
    ],
)
def test_supercell(batch, random_structure, random_charges, pbc, matrix):
    atoms = random_structure(6, pbc, 21)
    charges = random_charges(6, 2, 22)
    supercell = make_supercell(atoms, matrix)
    copies = len(supercell) // 6
    expected = batch([atoms], [charges], CUTOFF).potentials(tight())
    repeated = batch([supercell], [np.tile(charges, (copies, 1))], CUTOFF)
    result = repeated.potentials(tight())
    torch.testing.assert_close(result, expected.repeat(copies, 1), rtol=0.0, atol=1e-9)


def test_slab_ignores_the_third_vector(batch, random_structure, random_charges):
    atoms = random_structure(6, [True, True, False], 23)
    data = batch([atoms], [random_charges(6, 2, 24)], CUTOFF)
    expected = data.potentials(default())
    data.cells[0, 2] = torch.tensor([1.0, 2.0, 30.0])
    assert torch.equal(data.potentials(default()), expected)


def test_isolated_ignores_the_cell(batch, random_structure, random_charges):
    atoms = random_structure(6, [False] * 3, 23)
    data = batch([atoms], [random_charges(6, 2, 24)], CUTOFF)
    expected = data.potentials(default())
    data.cells[0] = torch.eye(3)
    assert torch.equal(data.potentials(default()), expected)


@pytest.mark.parametrize("pbc", [[True, True, True], [True, True, False]])
def test_splitting_between_real_and_reciprocal_space(batch, random_structure, random_charges, pbc):
    atoms = random_structure(10, pbc, 25)
    charges = random_charges(10, 3, 26)
    results = []
    for cutoff in [4.0, 5.0, 7.0]:
        data = batch([atoms], [charges], cutoff)
        results.append(data.potentials(CoulombSum(cutoff, accuracy=1e-11)))
    torch.testing.assert_close(results[1], results[0], rtol=0.0, atol=1e-9)
    torch.testing.assert_close(results[2], results[0], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("pbc", [[True, True, True], [True, False, True]])
def test_slab_height_does_not_matter(batch, random_structure, random_charges, pbc):
    atoms = random_structure(8, pbc, 27)
    data = batch([atoms], [random_charges(8, 3, 28)], CUTOFF)
    module = tight()
    expected = data.potentials(module)
    result = data.potentials(module, least_vacuum=100.0)
    torch.testing.assert_close(result, expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("accuracy", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("cutoff", [3.5, 5.0])
@pytest.mark.parametrize("mesh", [False, True], ids=["ewald", "mesh"])
@pytest.mark.parametrize("num_atoms, cell", [(60, None), (30, np.diag([4.0, 5.0, 45.0]))])
def test_accuracy(batch, random_structure, random_charges, num_atoms, cell, mesh, cutoff, accuracy):
    """Errors of potentials and energies of neutral and charged channels follow the hyper."""
    atoms = random_structure(num_atoms, [True] * 3, 31, cell)
    charges = random_charges(num_atoms, 4, 32) + np.array([0.0, 0.0, 0.5, 1.0])
    module = CoulombSum(cutoff, accuracy)
    tune(module, mesh_threshold=0 if mesh else 10**15)
    result = batch([atoms], [charges], cutoff).potentials(module)
    data = batch([atoms], [charges], 7.0)
    exact = data.potentials(CoulombSum(7.0, accuracy=1e-12))
    error = (result - exact).square().mean(dim=0).sqrt()
    assert torch.all(error < 4.0 * accuracy * exact.square().mean(dim=0).sqrt())
    energies = (data.charges * exact).sum(dim=0)
    deviation = (data.charges * (result - exact)).sum(dim=0)
    assert torch.all(deviation.abs() < 10.0 * accuracy * energies.abs())


def test_large_structures_go_to_the_mesh(batch, random_structure, random_charges):
    """The default threshold: 20 atoms by explicit k-vectors, 700 on the mesh."""
    for num_atoms, mesh in [(20, False), (700, True)]:
        atoms = random_structure(num_atoms, [True] * 3, 33)
        data = batch([atoms], [random_charges(num_atoms, 1, 34)], CUTOFF)
        result = data.potentials(CoulombSum(CUTOFF, accuracy=1e-6))
        assert torch.equal(result, data.potentials(default(mesh)))


@pytest.mark.parametrize("pbc", [[True, False, False], [False, True, False]])
def test_one_periodic_direction_is_refused(batch, pbc):
    bad = ase.Atoms("H2", positions=np.eye(3)[:2], pbc=pbc, cell=np.eye(3) * 4.0)
    data = batch([ase.Atoms("H"), bad], [[[1.0]], [[1.0], [1.0]]], CUTOFF)
    for module in [default(), torch.jit.script(default())]:
        with pytest.raises(Exception, match="structure 1 of the batch is periodic in one"):
            data.potentials(module)


@pytest.mark.parametrize(
    "pbc, cell, message",
    [
        ([True] * 3, np.zeros((3, 3)), "structure 1 of the batch span no volume"),
        ([True] * 3, [[1, 0, 0], [0, 1, 0], [1, 1, 0]], "structure 1 of the batch span no volume"),
        ([True] * 3, np.full((3, 3), np.nan), "structure 1 of the batch span no volume"),
        ([True, False, True], [[1, 2, 0], [0, 0, 9], [2, 4, 0]], "structure 1 .* span no area"),
    ],
)
def test_singular_cells_are_refused(batch, pbc, cell, message):
    data = batch([ase.Atoms("H"), ase.Atoms("H")], [[[1.0]], [[1.0]]], CUTOFF)
    data.cells[1] = torch.tensor(np.array(cell, dtype=float))
    data.pbc[1] = torch.tensor(pbc)
    with pytest.raises(ValueError, match=message):
        data.potentials(default())


@pytest.mark.parametrize("cutoff, accuracy, name", [(5.0, 0.1, "accuracy"), (0.0, 1e-6, "cutoff")])
def test_parameters_out_of_range_are_refused(cutoff, accuracy, name):
    with pytest.raises(ValueError, match=name):
        CoulombSum(cutoff, accuracy)


def test_description_names_every_parameter():
    module = CoulombSum(5.0, accuracy=1e-6)
    text = module.describe()
    for value in module.settings[:3]:
        assert f"{value:.4f}" in text
    assert "1e-06" in text
