import pytest
import torch
from helpers.graphs import small_chunks

from metatrain_lorem.nn.density import SpeciesDensity, grouped_matmul, sum_over_neighbors


def make_density():
    torch.manual_seed(0)
    module = SpeciesDensity(
        num_species_features=3,
        num_radial=4,
        num_features=5,
        max_degree=2,
        num_spherical_features=2,
    ).to(torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module, torch.randn(3, 3, dtype=torch.float64)


def in_slots(harmonics, block):
    """Harmonics of the pairs in all slots; padding, whose coefficients are zero, is anything."""
    return torch.nn.functional.pad(harmonics, [0, 0, 0, 1], value=7.0)[block.slots].T


def density_in_blocks(module, embeddings, graph, num_species=3):
    """Sums and density of all atoms, block after block."""
    pairs = graph.sorted(num_species)
    matrices = module.matrices(embeddings[pairs.present])
    sizes = [part.num_pairs for part in pairs.blocks]
    radial = graph.radial[pairs.order].split(sizes)
    harmonics = graph.harmonics[pairs.order].split(sizes)
    parts = [
        module(matrices, r, in_slots(y, block), block)
        for r, y, block in zip(radial, harmonics, pairs.blocks, strict=True)
    ]
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def density_pair_by_pair(module, embeddings, graph):
    """Steps 2 to 4 of LOREM as they are written: the networks run once for every pair."""
    sums = torch.zeros(6, 5, dtype=torch.float64)
    rho = torch.zeros(6, 9, 2, dtype=torch.float64)
    first, activation, second = module.mixing.mlp
    for pair, (i, j) in enumerate(zip(graph.centers, graph.neighbors, strict=True)):
        features = torch.cat([embeddings[graph.species[i]], embeddings[graph.species[j]]])
        mixing = second(activation(first(features))).reshape(4, 5)
        edge = graph.radial[pair] @ mixing
        sums[i] += module.scalar.weight @ edge
        coefficients = (module.spherical.weight @ edge).reshape(3, 2)
        for degree in range(3):
            rows = slice(degree**2, (degree + 1) ** 2)
            rho[i, rows] += graph.harmonics[pair, rows, None] * coefficients[degree]
    return sums, rho


@pytest.mark.parametrize("block, chunk", [(1, 1), (2, 1), (4, 2), (4, 4), (100, 4), (100, 100)])
def test_density_equals_networks_for_every_pair(graph, block, chunk, monkeypatch):
    small_chunks(monkeypatch, block, chunk)
    module, embeddings = make_density()
    sums, rho = density_in_blocks(module, embeddings, graph)
    expected_sums, expected_rho = density_pair_by_pair(module, embeddings, graph)
    assert torch.allclose(sums, expected_sums, rtol=0, atol=1e-12)
    assert torch.allclose(rho, expected_rho, rtol=0, atol=1e-12)
    assert (sums[5] == 0).all() and (rho[5] == 0).all()


def test_gradients_equal_those_of_networks_for_every_pair(graph):
    module, embeddings = make_density()
    graph.radial.requires_grad_()
    graph.harmonics.requires_grad_()
    inputs = [graph.radial, graph.harmonics, *module.parameters()]
    folded = density_in_blocks(module, embeddings, graph)
    by_pairs = density_pair_by_pair(module, embeddings, graph)
    gradients = []
    for sums, rho in (folded, by_pairs):
        gradients.append(torch.autograd.grad((sums**2).sum() + (rho**3).sum(), inputs))
    for own, expected in zip(*gradients, strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-10)


def test_no_pairs(graph):
    module, embeddings = make_density()
    graph.centers, graph.neighbors = graph.centers[:0], graph.neighbors[:0]
    graph.radial, graph.harmonics = graph.radial[:0], graph.harmonics[:0]
    sums, rho = density_in_blocks(module, embeddings, graph)
    assert sums.shape == (6, 5) and (sums == 0).all()
    assert rho.shape == (6, 9, 2) and (rho == 0).all()


def test_scripted_equals_eager(graph):
    module, embeddings = make_density()
    scripted = torch.jit.script(module)
    pairs = graph.sorted()
    matrices = module.matrices(embeddings[pairs.present])
    harmonics = in_slots(graph.harmonics[pairs.order], pairs.blocks[0])
    arguments = (graph.radial[pairs.order], harmonics, pairs.blocks[0])
    for own, expected in zip(
        scripted(matrices, *arguments), module(matrices, *arguments), strict=True
    ):
        assert torch.allclose(own, expected, rtol=0, atol=1e-14)


def test_sum_over_neighbors():
    values = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    sums = sum_over_neighbors(values, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[10.0, 20.0], [0.0, 0.0], [101.0, 202.0], [0.0, 0.0]]


def test_grouped_matmul(generator):
    x = torch.randn(7, 3, generator=generator)
    weights = torch.randn(4, 3, 2, generator=generator)
    group = [0, 0, 1, 1, 1, 3, 3]  # nothing in group 2
    expected = torch.stack([row @ weights[g] for row, g in zip(x, group, strict=True)])
    assert torch.allclose(grouped_matmul(x, [2, 3, 0, 2], weights), expected, atol=1e-6)


def test_species_that_do_not_occur(graph):
    """Numbers of species are those of the model, most of which a structure does not have."""
    module, embeddings = make_density()
    expected = density_in_blocks(module, embeddings, graph)
    graph.species = 2 * graph.species + 1
    many = torch.zeros(7, 3, dtype=torch.float64)
    many[1:6:2] = embeddings
    own = density_in_blocks(module, many, graph, num_species=7)
    for value, reference in zip(own, expected, strict=True):
        assert torch.allclose(value, reference, rtol=0, atol=1e-14)
