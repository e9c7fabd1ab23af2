import copy

import pytest
import torch

from metatrain_lorem.nn.clebsch_gordan import clebsch_gordan
from metatrain_lorem.nn.tensor_dense import DegreeLinear, TensorDense, TensorProduct

PROPER = (False, False, False)


def explicit_product(product, degrees, improper, x, y):
    """The sum over paths, in the order of l1, l2, l3."""
    result = torch.zeros(x.shape[0], (degrees[2] + 1) ** 2, x.shape[2], dtype=x.dtype)
    path = 0
    for l1 in range(degrees[0] + 1):
        for l2 in range(degrees[1] + 1):
            for l3 in range(degrees[2] + 1):
                # parity is conserved: (-1)**l for proper tensors, the opposite for improper ones
                parity = (-1) ** (l1 + l2 + l3 + sum(improper))
                if abs(l1 - l2) <= l3 <= l1 + l2 and parity == 1:
                    term = torch.einsum(
                        "nac,nbc,abd->ndc",
                        x[:, l1**2 : (l1 + 1) ** 2],
                        y[:, l2**2 : (l2 + 1) ** 2],
                        clebsch_gordan(l1, l2, l3).to(x.dtype),
                    )
                    result[:, l3**2 : (l3 + 1) ** 2] += product.weight[path] * term
                    path += 1
    assert path == product.weight.shape[0]
    return result


@pytest.mark.parametrize(
    "degrees, improper",
    [
        ((2, 2, 2), PROPER),
        ((1, 3, 3), PROPER),
        ((3, 3, 0), PROPER),
        ((0, 0, 0), PROPER),
        ((2, 2, 2), (False, False, True)),
        ((2, 3, 1), (True, False, False)),
        ((2, 2, 2), (True, False, True)),
    ],
)
def test_product_equals_the_sum_over_paths(degrees, improper, generator):
    product = TensorProduct(degrees, 3, improper).to(torch.float64)
    x = torch.randn(5, (degrees[0] + 1) ** 2, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(5, (degrees[1] + 1) ** 2, 3, dtype=torch.float64, generator=generator)
    expected = explicit_product(product, degrees, improper, x, y)
    assert expected.abs().max() > 0.1
    assert torch.allclose(product(x, y), expected, rtol=0, atol=1e-12)


def test_tensor_dense_equals_the_explicit_form(generator):
    module = TensorDense(3, 2, 2, 4).to(torch.float64)
    x = torch.randn(5, 16, 2, dtype=torch.float64, generator=generator)
    linear = torch.zeros(5, 16, 8, dtype=torch.float64)
    for degree in range(4):
        rows = slice(degree**2, (degree + 1) ** 2)
        linear[:, rows] = x[:, rows] @ module.linear.weight[degree]
    assert torch.allclose(module.linear(x), linear, rtol=0, atol=1e-13)
    expected = explicit_product(module.product, (3, 3, 2), PROPER, linear[..., :4], linear[..., 4:])
    assert torch.allclose(module(x), expected, rtol=0, atol=1e-12)


def test_tensor_dense_is_equivariant(rotation, generator):
    module = TensorDense(3, 2, 3, 2).to(torch.float64)
    x = torch.randn(4, 16, 2, dtype=torch.float64, generator=generator)
    components = rotation.components[:16, :16]
    after = module(torch.einsum("nac,ab->nbc", x, components))
    before = torch.einsum("nac,ab->nbc", module(x), components)
    assert torch.allclose(after, before, rtol=0, atol=1e-12)


def test_inversion_gives_every_degree_its_parity(generator):
    module = TensorDense(3, 2, 3, 2).to(torch.float64)
    x = torch.randn(4, 16, 2, dtype=torch.float64, generator=generator)
    signs = torch.cat([torch.full((2 * degree + 1, 1), (-1.0) ** degree) for degree in range(4)])
    assert torch.allclose(module(x * signs), module(x) * signs, rtol=0, atol=1e-12)


def test_no_atoms():
    assert TensorDense(2, 3, 1, 4)(torch.zeros(0, 9, 3)).shape == (0, 4, 4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-14)])
def test_scripted_equals_eager(dtype, tolerance, generator):
    module = TensorDense(3, 2, 2, 4).to(dtype)
    x = torch.randn(4, 16, 2, dtype=dtype, generator=generator)
    assert torch.allclose(torch.jit.script(module)(x), module(x), rtol=0, atol=tolerance)


def test_outputs_start_with_the_variance_of_the_inputs():
    """Degree-wise maps: the sum over inputs keeps the variance."""
    torch.manual_seed(0)
    x = torch.randn(400, 16, 64)
    assert abs(DegreeLinear(3, 64, 64)(x).var().item() - 1) < 0.05


def test_many_atoms_and_few_give_the_same(generator):
    """Many atoms take another way, which stores nothing between its two sums."""
    module = TensorProduct((3, 4, 2), 3).to(torch.float64)
    x = torch.randn(5000, 16, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(5000, 25, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(5000, 9, 3, dtype=torch.float64, generator=generator)
    inputs = [x, y, module.weight]
    together = (weights * module(x, y) ** 2).sum()
    apart = sum(
        (w * module(a, b) ** 2).sum()
        for a, b, w in zip(x.split(200), y.split(200), weights.split(200), strict=True)
    )
    assert torch.allclose(together, apart, rtol=1e-12)
    gradients = [torch.autograd.grad(z, inputs, create_graph=True) for z in (together, apart)]
    for own, expected in zip(*gradients, strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-9 * expected.abs().max().item())
    second = [torch.autograd.grad(sum((g**2).sum() for g in first), inputs) for first in gradients]
    for own, expected in zip(*second, strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_folded_table(generator):
    """Evaluation with the kept table, in a copy: what is trained on keeps following its weights."""
    product = TensorProduct((2, 2, 2), 3).to(torch.float64)
    x, y = torch.randn(2, 4, 9, 3, dtype=torch.float64, generator=generator)
    expected = product(x, y)
    folded = copy.deepcopy(product)
    folded.fold()
    assert torch.allclose(folded(x, y), expected, rtol=1e-14)
    # single precision and back, as engines may do
    as_single = copy.deepcopy(product).to(torch.float32)
    single = copy.deepcopy(as_single)
    single.fold()
    assert torch.allclose(
        single.to(torch.float64)(x, y), as_single.to(torch.float64)(x, y), rtol=1e-12
    )
    with torch.no_grad():
        for module in (product, folded):
            module.weight.mul_(2.0)
    assert torch.allclose(product(x, y), 2.0 * expected, rtol=1e-14)
    assert torch.allclose(folded(x, y), expected, rtol=1e-14)
