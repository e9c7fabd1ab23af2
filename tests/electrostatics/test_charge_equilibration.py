"""Charge equilibration against its oracle in NumPy, and what must hold for any charges."""

import ase
import ase.data
import numpy as np
import pytest
import torch
from ase.build import bulk, make_supercell
from helpers import qeq_oracle as oracle
from helpers.qeq_cases import BOUNDARIES, K_E, NAMES, TYPES, Structures, make_module


def test_parameters_of_the_species():
    """Covalent radii in Å, also of a model in other units; hardness 14.4 eV/e²."""
    module = make_module(
        "auto", learn_widths=True, length_unit="bohr", known_hardness=False
    ).float()
    bohr = 0.529177210903
    radii = torch.tensor(ase.data.covalent_radii[TYPES], dtype=torch.float32)
    torch.testing.assert_close(module.widths() * bohr, radii, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(module.hardness() / bohr, torch.ones(3), rtol=1e-6, atol=0.0)
    with torch.no_grad():
        module.raw_hardness.fill_(-50.0)
    torch.testing.assert_close(module.hardness() / bohr, torch.full((3,), 0.2))


@pytest.mark.parametrize("kind", ["features", "species"])
def test_hardness_of_atoms(kind):
    """That of their species, which the features change where they are asked; never below 0.2/Å."""
    module = make_module("auto", known_hardness=False, hardness=kind)
    species = torch.tensor([0, 0, 1, 2])
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    of_species, of_atoms = module.hardness()[species], module.hardness_of(x, species)
    if kind == "species":
        assert torch.equal(of_atoms, of_species)
        return
    differences = (of_atoms - of_species).abs()
    assert 1e-3 < differences.min() and differences.max() < 0.2
    assert (of_atoms[0] - of_atoms[1]).abs() > 1e-3
    with torch.no_grad():
        module.local_hardness[2].bias.fill_(-50.0)
    torch.testing.assert_close(module.hardness_of(x, species), torch.full((4,), 0.2).double())


@pytest.mark.parametrize("energy", ["variational", "celli"])
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_charges_and_energies(batch, three_species, solver, energy):
    """Mixed batch, charged and neutral, also one atom alone that holds the whole charge."""
    structures = [three_species(6 + i % 3, pbc, i) for i, pbc in enumerate(BOUNDARIES)]
    structures += [three_species(7, [True] * 3, 8), three_species(5, [False] * 3, 9)]
    structures += [ase.Atoms("O", [[1.0, 2.0, 3.0]])]
    structures += [ase.Atoms("H", [[0.1, 0.2, 0.3]], cell=np.eye(3) * 3.0, pbc=True)]
    total_charges = [1.0, -1.0, 0.0, -0.37, 2.0, 0.0, 0.0, -1.0, 1.0]
    data = Structures(batch, structures, total_charges)
    module = make_module(solver, energy)
    # of each atom its own, as from its features
    factors = torch.linspace(0.7, 1.5, len(data.species), dtype=torch.float64)
    data.hardness = factors * module.hardness()[data.species]
    result = data.solve(module)
    for number in range(len(structures)):
        positions, cell, pbc, widths, hardness, chi, total = data.expected(module, number)
        matrix = oracle.coulomb_matrix(positions, cell, pbc, widths)
        charges, _ = oracle.solve(matrix, hardness, chi, total)
        energies = oracle.energies(matrix, hardness, chi, charges, energy)
        mask = data.data.system_index == number
        got = result.charges[mask].detach().numpy()
        np.testing.assert_allclose(got, charges, rtol=0.0, atol=1e-8)
        got = result.energies[mask].detach().numpy()
        np.testing.assert_allclose(got, K_E * energies, rtol=0.0, atol=K_E * 1e-8)
        got = result.hardness[mask].detach().numpy()
        np.testing.assert_allclose(got, K_E * hardness, rtol=1e-12)
        got = result.electronegativity[mask].detach().numpy()
        np.testing.assert_allclose(got, K_E * chi, rtol=1e-12)


def test_iterations_where_hardness_varies(batch):
    """The preconditioner of long waves knows that of the species alone. Where that of atoms is up
    to four times larger or smaller, some 25 iterations do what 7 do where it is not."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(3)
    atoms.numbers = np.where(atoms.numbers == 11, *TYPES[:2])
    data = Structures(batch, [atoms], [1.0])
    module = make_module("iterative", tolerance=1e-10, max_iterations=30, accuracy=1e-6)
    factors = np.exp(np.random.default_rng(0).uniform(-1.4, 1.4, len(atoms)))
    data.hardness = torch.tensor(factors) * module.hardness().detach()[data.species]
    charges = data.solve(module).charges.detach()
    dense = data.solve(make_module("dense")).charges.detach()
    torch.testing.assert_close(charges, dense, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("pbc", BOUNDARIES, ids=NAMES)
def test_one_wide_species(batch, three_species, pbc, solver):
    """Wider than the smearing that the cutoff would need: a sum over k without any pairs."""
    atoms = three_species(6, pbc)
    atoms.numbers[:] = 11
    data = Structures(batch, [atoms], [1.0])
    data.species[:] = 0
    module = make_module(solver, types=[11])
    assert not module.uses_pairs
    widths, hardness = [x().item() for x in (module.widths, module.hardness)]
    matrix = oracle.coulomb_matrix(atoms.positions, atoms.cell, pbc, np.full(6, widths))
    expected, _ = oracle.solve(matrix, np.full(6, hardness), data.chi[0], 1.0)
    charges = data.solve(module).charges.detach().numpy()
    np.testing.assert_allclose(charges, expected, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("total_charge", [0.0, 1.0])
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_independent_of_the_splitting(batch, three_species, solver, total_charge):
    """Other cutoffs mean other smearings, k-vectors and meshes; default accuracy."""
    atoms = three_species(12, [True] * 3)
    results = []
    for cutoff in [4.0, 5.0, 7.0]:
        data = Structures(batch, [atoms], [total_charge], cutoff)
        results.append(data.solve(make_module(solver, cutoff=cutoff, accuracy=1e-6)))
    for other in results[1:]:
        torch.testing.assert_close(other.charges, results[0].charges, rtol=0.0, atol=2e-5)
        torch.testing.assert_close(other.energies, results[0].energies, rtol=0.0, atol=3e-4)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("pbc", BOUNDARIES, ids=NAMES)
def test_invariances(batch, three_species, pbc, solver):
    atoms = three_species(8, pbc)
    chi = np.random.default_rng(4).normal(size=8, scale=0.3)
    order = np.random.default_rng(5).permutation(8)
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))[0]
    changed = ase.Atoms(
        atoms.numbers[order],
        atoms.positions[order] @ rotation + [13.0, -7.0, 4.0],
        cell=atoms.cell @ rotation,
        pbc=pbc,
    )
    module = make_module(solver)
    one = Structures(batch, [atoms], [-1.0], chi=[chi]).solve(module)
    other = Structures(batch, [changed], [-1.0], chi=[chi[order]]).solve(module)
    torch.testing.assert_close(other.charges, one.charges[order], rtol=0.0, atol=1e-8)
    torch.testing.assert_close(other.energies, one.energies[order], rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_supercell(batch, three_species, solver):
    """Charged as well: per atom nothing changes."""
    atoms = three_species(5, [True] * 3)
    repeats = [[1, 1, 0], [0, 2, 0], [0, 1, 1]]
    atoms.arrays["chi"] = np.random.default_rng(4).normal(size=5, scale=0.3)
    atoms.arrays["origin"] = np.arange(5)
    supercell = make_supercell(atoms, repeats)
    module = make_module(solver)
    one = Structures(batch, [atoms], [1.0], chi=[atoms.arrays["chi"]]).solve(module)
    many = Structures(batch, [supercell], [2.0], chi=[supercell.arrays["chi"]]).solve(module)
    origin = supercell.arrays["origin"]
    assert len(origin) == 10
    torch.testing.assert_close(many.charges, one.charges[origin], rtol=0.0, atol=1e-8)
    torch.testing.assert_close(many.energies, one.energies[origin], rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize(
    "lattice, constant, ratio",
    # Borwein, Borwein and Taylor, J. Math. Phys. 26, 2999 (1985)
    [
        ("rocksalt", 1.747564594633182, 0.5),
        ("cesiumchloride", 1.762674773070992, np.sqrt(3.0) / 2.0),
        ("zincblende", 1.638055053388790, np.sqrt(3.0) / 4.0),
    ],
)
def test_madelung_constants(batch, lattice, constant, ratio, solver):
    """Charges of one by the choice of electronegativities, narrow Gaussians."""
    atoms = bulk("HO", lattice, a=5.0)
    module = make_module(solver, "celli")
    width = 0.15
    module.radii.fill_(width)

    def charges_and_energies(strength):
        chi = np.where(atoms.symbols == "H", -strength, strength)
        result = Structures(batch, [atoms], [0.0], chi=[chi]).solve(module)
        return result.charges[0].item(), result.energies.sum().item()

    # charges are linear in the electronegativities
    strength = 1.0 / charges_and_energies(1.0)[0]
    charge, energy = charges_and_energies(strength)
    assert charge == pytest.approx(1.0, abs=1e-9)
    energy = energy / K_E - 1.0 / (width * np.sqrt(np.pi))
    assert -energy * ratio * 5.0 == pytest.approx(constant, abs=1e-7)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_sums_of_charges(batch, three_species, solver, dtype, atol):
    structures = [three_species(200, [True] * 3), three_species(60, [False] * 3)]
    structures += [three_species(40, [True, False, True])]
    data = Structures(batch, structures, [3.0, -1.0, 0.25])
    module = make_module(solver, accuracy=1e-6, tolerance=None).to(dtype)
    charges = data.solve(module, dtype=dtype).charges.detach().double()
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, data.data.system_index, charges)
    assert abs(sums - torch.tensor([3.0, -1.0, 0.25])).max() < atol


@pytest.mark.parametrize("pbc", [BOUNDARIES[i] for i in (0, 2, 4)], ids=["FFF", "TFT", "TTT"])
def test_too_few_iterations(batch, three_species, pbc):
    data = Structures(batch, [three_species(6, pbc), three_species(9, pbc)], [0.0, 1.0])
    module = make_module("iterative", max_iterations=2)
    with pytest.raises(ValueError, match="structure 0 .*2 iterations.*residual.*max_iterations"):
        data.solve(module)
