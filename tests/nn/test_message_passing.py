import pytest
import torch
from metatrain.utils.architectures import get_default_hypers

from metatrain_lorem.nn.density import Edges
from metatrain_lorem.nn.message_passing import MessagePassing
from metatrain_lorem.nn.spherical import SphericalNorms


def make_step(equivariant):
    torch.manual_seed(0)
    hypers = get_default_hypers("lorem")["model"]
    hypers.update(num_radial=4, num_features=5, max_degree=2, num_spherical_features=2)
    hypers["equivariant_message_passing"] = equivariant
    step = MessagePassing(hypers).to(torch.float64)
    x = torch.randn(6, 5, dtype=torch.float64)
    rho = torch.randn(6, 9, 2, dtype=torch.float64)
    return step, x, rho


def step_pair_by_pair(step, x, rho, graph):
    """The messages as they are written, one pair after the other."""
    sums = torch.zeros_like(x)
    messages = torch.zeros_like(rho)
    for pair, (i, j) in enumerate(zip(graph.centers, graph.neighbors, strict=True)):
        mixing = step.mixing.mlp(torch.cat([x[i], x[j]])).reshape(4, 5)
        edge = graph.radial[pair] @ mixing
        sums[i] += step.scalar.weight @ edge
        if step.spherical is not None:
            coefficients = (step.spherical.coefficients.weight @ edge).reshape(3, 2)
            filters = torch.zeros(1, 9, 2, dtype=torch.float64)
            for degree in range(3):
                rows = slice(degree**2, (degree + 1) ** 2)
                filters[0, rows] = (
                    graph.harmonics[pair, rows, None] * coefficients[degree]
                ) @ step.spherical.filter.weight[degree]
            messages[i] += step.spherical.message_product(filters, rho[j : j + 1])[0]
    x = step.update(x, sums)
    if step.spherical is not None:
        rho = step.spherical.product(
            step.spherical.atom_linear(rho), step.spherical.message_linear(messages)
        )
        x = step.norm_update(x, SphericalNorms(2, "smooth", 2)(rho))
    return x, rho


@pytest.mark.parametrize("equivariant", [False, True])
def test_step_equals_messages_pair_by_pair(equivariant, graph):
    step, x, rho = make_step(equivariant)
    own = step(x, rho, graph.edges())
    expected = step_pair_by_pair(step, x, rho, graph)
    for value, reference in zip(own, expected, strict=True):
        assert torch.allclose(value, reference, rtol=0, atol=1e-12)
    assert torch.equal(own[1], rho) == (not equivariant)
    # nothing reaches the atom without neighbours
    assert equivariant == bool((own[1][5] == 0).all())


@pytest.mark.parametrize("equivariant", [False, True])
def test_scripted_equals_eager(equivariant, graph):
    step, x, rho = make_step(equivariant)
    arguments = (x, rho, graph.edges())
    for own, expected in zip(torch.jit.script(step)(*arguments), step(*arguments), strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("equivariant", [False, True])
def test_no_pairs(equivariant):
    step, x, rho = make_step(equivariant)
    none = torch.zeros(0, dtype=torch.int64)
    radial = torch.zeros(0, 4, dtype=torch.float64)
    harmonics = torch.zeros(0, 9, dtype=torch.float64)
    edges = Edges(centers=none, neighbors=none, radial=radial, harmonics=harmonics)
    new_x, new_rho = step(x, rho, edges)
    assert new_x.shape == x.shape and torch.isfinite(new_x).all()
    assert new_rho.shape == rho.shape
