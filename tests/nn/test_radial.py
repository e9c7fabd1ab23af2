from math import comb, cos, exp, pi, sin, sqrt

import pytest
import torch

from metatrain_lorem.nn.radial import CUTOFF_FUNCTIONS, RADIAL_BASES, RadialBasis

KINDS = [(basis, cutoff) for basis in RADIAL_BASES for cutoff in CUTOFF_FUNCTIONS]


def expected_value(basis, cutoff_function, n, num_radial, r, cutoff):
    u = r / cutoff
    if basis == "bernstein":
        value = comb(num_radial - 1, n) * u**n * (1 - u) ** (num_radial - 1 - n)
    else:
        value = sqrt(2 / cutoff) * sin((n + 1) * pi * u) / r
    ends = (1 + cos(pi * u)) / 2 if cutoff_function == "cosine" else exp(1 - 1 / (1 - u * u))
    return value * ends


@pytest.mark.parametrize("basis, cutoff_function", KINDS)
def test_values(basis, cutoff_function):
    distances = torch.tensor([0.3, 1.0, 2.77, 4.2], dtype=torch.float64)
    values = RadialBasis(4.5, 12, basis, cutoff_function)(distances)
    for row, r in zip(values.tolist(), distances.tolist(), strict=True):
        for n, value in enumerate(row):
            expected = expected_value(basis, cutoff_function, n, 12, r, 4.5)
            assert abs(value - expected) < 1e-14 + 1e-13 * abs(expected)


def test_bernstein_functions_sum_to_the_cutoff_function():
    distances = torch.linspace(0.01, 4.99, 50, dtype=torch.float64)
    sums = RadialBasis(5.0, 32, "bernstein", "cosine")(distances).sum(dim=1)
    assert torch.allclose(
        sums, 0.5 * (1 + torch.cos(torch.pi * distances / 5.0)), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("basis, cutoff_function", KINDS)
def test_gradients_and_second_derivatives(basis, cutoff_function):
    # the last one lies where the smooth cutoff function is close to its end
    distances = torch.tensor([0.4, 2.0, 4.3], dtype=torch.float64, requires_grad=True)
    module = RadialBasis(4.5, 5, basis, cutoff_function)
    assert torch.autograd.gradcheck(module, distances)
    assert torch.autograd.gradgradcheck(module, distances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis, cutoff_function", KINDS)
def test_everything_ends_at_the_cutoff(basis, cutoff_function, dtype):
    inside = 4.5 * (1 - (1e-3 if dtype == torch.float32 else 1e-5))
    distances = torch.tensor([inside, 4.5], dtype=dtype, requires_grad=True)
    values = RadialBasis(4.5, 8, basis, cutoff_function).to(dtype)(distances)
    weights = torch.linspace(-1, 2, 8, dtype=dtype)
    (gradient,) = torch.autograd.grad((values * weights).sum(), distances, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), distances)
    assert (values[1].abs() < 1e-7).all() and (values[0].abs() < 1e-5).all()
    assert gradient[1].abs() < 1e-6 and gradient[0].abs() < 1e-2
    assert torch.isfinite(second).all()
    if cutoff_function == "smooth":
        assert (values == 0).all() and (gradient == 0).all() and (second == 0).all()


def test_bernstein_functions_at_zero_distance():
    distances = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    values = RadialBasis(5.0, 6, "bernstein", "cosine")(distances)
    assert values.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    (gradient,) = torch.autograd.grad(values[0, 1], distances)
    assert abs(gradient.item() - 5 / 5.0) < 1e-14


def test_no_pairs():
    assert RadialBasis(5.0, 6, "bernstein", "cosine")(torch.zeros(0)).shape == (0, 6)


@pytest.mark.parametrize("basis, cutoff_function", KINDS)
def test_scripted_equals_eager(basis, cutoff_function):
    distances = torch.linspace(0.1, 4.5, 9)
    module = RadialBasis(4.5, 8, basis, cutoff_function)
    assert torch.equal(torch.jit.script(module)(distances), module(distances))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5.0, 8, "gaussian", "cosine"), "radial_basis: 'gaussian' is not one of"),
        ((5.0, 8, "bernstein", "step"), "cutoff_function: 'step' is not one of"),
        ((0.0, 8, "bernstein", "cosine"), "cutoff: 0.0 is not a positive"),
        ((5.0, 0, "bernstein", "cosine"), "num_radial: 0 is not a positive"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RadialBasis(*arguments)
