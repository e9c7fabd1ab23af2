import numpy as np
import pytest
import sphericart.torch
import torch

from metatrain_lorem.nn.spherical import (
    SphericalHarmonics,
    SphericalNorms,
    degrees_of_components,
)


def racah_factors(max_degree):
    """What turns orthonormal harmonics into Racah's."""
    degrees = degrees_of_components(max_degree).double()
    return (4 * torch.pi / (2 * degrees + 1)).sqrt()


def test_harmonics_equal_sphericart(unit_vectors):
    reference = sphericart.torch.SphericalHarmonics(6).compute(unit_vectors) * racah_factors(6)
    assert torch.allclose(SphericalHarmonics(6)(unit_vectors), reference, rtol=0, atol=1e-13)


def test_gradients_equal_sphericart(unit_vectors):
    # of the harmonics of the direction of a free vector, which is what the model differentiates
    vectors = (1.7 * unit_vectors).requires_grad_()
    weights = torch.linspace(-1, 1, 49, dtype=torch.float64)

    def gradient(harmonics):
        scalar = (harmonics * weights).sum()
        return torch.autograd.grad(scalar, vectors, retain_graph=True)[0]

    directions = vectors / vectors.norm(dim=-1, keepdim=True)
    reference = sphericart.torch.SphericalHarmonics(6).compute(directions)
    own = SphericalHarmonics(6)(directions)
    assert torch.allclose(gradient(own), gradient(reference * racah_factors(6)), rtol=0, atol=1e-12)


def test_harmonics_equal_e3x(shared):
    conventions = np.load(shared / "golden" / "conventions.npz")
    own = SphericalHarmonics(6)(torch.from_numpy(conventions["unit_vectors"]))
    reference = torch.from_numpy(conventions["spherical_harmonics_l6"])
    for degree in range(7):
        # e3x orders m = l, -l, l - 1, ..., 0
        order = [m for k in range(degree, 0, -1) for m in (k, -k)] + [0]
        columns = [degree**2 + degree + m for m in order]
        block = reference[:, degree**2 : (degree + 1) ** 2]
        assert torch.allclose(own[:, columns], block, rtol=0, atol=1e-13)


def test_normalisation(unit_vectors):
    harmonics = SphericalHarmonics(6)(unit_vectors)
    assert torch.allclose(harmonics[:, 1:4], unit_vectors[:, [1, 2, 0]], rtol=0, atol=0)
    norms = SphericalNorms(6, "lorem-jax", 1)(harmonics.unsqueeze(-1))
    expected = (2 * torch.arange(7, dtype=torch.float64) + 1) ** 0.25
    assert torch.allclose(norms, expected.expand_as(norms), rtol=0, atol=1e-13)


@pytest.mark.parametrize("z", [1.0, -1.0])
def test_harmonics_are_smooth_at_the_poles(z):
    vector = torch.tensor([[0.0, 0.0, z]], dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda v: SphericalHarmonics(6)(v), vector)
    assert torch.isfinite(jacobian).all()
    assert torch.autograd.gradgradcheck(lambda v: SphericalHarmonics(4)(v), vector)


def test_scripted_harmonics_equal_eager(unit_vectors):
    harmonics = SphericalHarmonics(5)
    assert torch.equal(torch.jit.script(harmonics)(unit_vectors), harmonics(unit_vectors))


@pytest.mark.parametrize("max_degree", range(9))
def test_harmonics_of_any_degree(max_degree, unit_vectors):
    harmonics = SphericalHarmonics(max_degree)(unit_vectors)
    reference = sphericart.torch.SphericalHarmonics(max_degree).compute(unit_vectors)
    reference = reference * racah_factors(max_degree)
    assert torch.allclose(harmonics, reference, rtol=0, atol=1e-13)


def test_norms_follow_their_definition(generator):
    features = torch.randn(5, 16, 3, dtype=torch.float64, generator=generator)
    norms = SphericalNorms(3, "lorem-jax", 3)(features)
    for atom in range(5):
        for degree in range(4):
            for channel in range(3):
                block = features[atom, degree**2 : (degree + 1) ** 2, channel]
                expected = (2 * degree + 1) ** 0.25 * float((block**2).sum()) ** 0.5
                assert abs(norms[atom, 3 * degree + channel].item() - expected) < 1e-13


def test_norms_are_differentiable_where_nothing_vanishes(generator):
    features = torch.randn(2, 9, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SphericalNorms(2, "lorem-jax", 2)(x), features)
    assert torch.autograd.gradgradcheck(lambda x: SphericalNorms(2, "lorem-jax", 2)(x), features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_at_the_origin_have_zero_gradients(dtype):
    features = torch.zeros(1, 9, 2, dtype=dtype)
    features[0, 4:9, 1] = 0.5  # one block beside that does not vanish
    features.requires_grad_()
    norms = SphericalNorms(2, "lorem-jax", 2)(features)
    (gradient,) = torch.autograd.grad(norms.sum(), features, create_graph=True)
    assert (norms[0, :5] == 0).all() and norms[0, 5] > 0
    assert (gradient[0, :4] == 0).all() and (gradient[0, 4:, 0] == 0).all()
    # second derivative: along random directions, as in training on forces
    (second,) = torch.autograd.grad((gradient * torch.linspace(-1, 1, 9)[:, None]).sum(), features)
    assert torch.isfinite(second).all() and (second[0, :4] == 0).all()


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_norms_of_tiny_and_huge_blocks(size):
    """Their squares leave the range of single precision, the norms and gradients do not."""
    unit = torch.tensor([0.6, 0.0, -0.8]).reshape(1, 3, 1)
    features = (size * torch.cat([torch.ones(1, 1, 1), unit], dim=1)).requires_grad_()
    norms = SphericalNorms(1, "lorem-jax", 1)(features)
    assert abs(norms[0, 1].item() / (3**0.25 * size) - 1) < 1e-6
    (gradient,) = torch.autograd.grad(norms[0, 1], features, create_graph=True)
    assert torch.allclose(gradient[0, 1:], 3**0.25 * unit[0], rtol=1e-6)
    (second,) = torch.autograd.grad(gradient[0, 2, 0], features)
    assert torch.isfinite(second).all()
    assert abs(second[0, 2, 0].item() * size / 3**0.25 - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_have_no_gradient(dtype):
    """What symmetry makes zero is not quite zero; its norm must not have a gradient of size one."""
    features = torch.rand(3, 9, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    features[:, 1:4] *= torch.finfo(dtype).eps
    features.requires_grad_()
    norms = SphericalNorms(2, "lorem-jax", 2)(features)
    (gradient,) = torch.autograd.grad(norms.sum(), features)
    assert (norms[:, 2:4] == 0).all() and (gradient[:, 1:4] == 0).all()
    assert (gradient[:, 4:].abs().amax(dim=1) > 0.1).all()


def test_smooth_norms_follow_their_definition(generator):
    features = torch.randn(5, 16, 3, dtype=torch.float64, generator=generator)
    invariants = SphericalNorms(3, "smooth", 3)(features)
    assert torch.equal(invariants[:, :3], features[:, 0])
    for atom in range(5):
        delta = float((features[atom] ** 2).mean()) ** 0.5
        for degree in range(1, 4):
            for channel in range(3):
                square = (features[atom, degree**2 : (degree + 1) ** 2, channel] ** 2).sum()
                expected = (2 * degree + 1) ** 0.25 * (float(square + delta**2) ** 0.5 - delta)
                assert abs(invariants[atom, 3 * degree + channel].item() - expected) < 1e-10


@pytest.mark.parametrize("factor", [1e-25, 1e-9, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smooth_norms_are_proportional_to_the_features(generator, dtype, factor):
    features = torch.randn(3, 9, 2, dtype=dtype, generator=generator)
    module = SphericalNorms(2, "smooth", 2)
    torch.testing.assert_close(
        module(features * factor) / factor, module(features), rtol=1e-5, atol=1e-6
    )


def test_smooth_norms_are_differentiable_where_features_vanish(generator):
    """A degree that symmetry makes zero, and second differences of its norm."""
    features = torch.randn(2, 9, 2, dtype=torch.float64, generator=generator)
    features[:, 1:4] = 0.0
    features[0, :, 1] = 0.0
    features.requires_grad_()
    module = SphericalNorms(2, "smooth", 2)
    assert torch.autograd.gradcheck(lambda x: module(x), features)
    assert torch.autograd.gradgradcheck(lambda x: module(x), features)


@pytest.mark.parametrize("norms", ["smooth", "lorem-jax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_atoms_without_features(norms, dtype):
    features = torch.zeros(1, 9, 2, dtype=dtype, requires_grad=True)
    invariants = SphericalNorms(2, norms, 2)(features)
    (gradient,) = torch.autograd.grad(invariants[:, 2:].sum(), features, create_graph=True)
    assert (invariants == 0).all() and (gradient == 0).all()
    (second,) = torch.autograd.grad(gradient.sum(), features, allow_unused=True)
    assert second is None or torch.isfinite(second).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_hardly_have_a_gradient(dtype):
    """Smooth norms of what symmetry makes zero, up to rounding."""
    eps = torch.finfo(dtype).eps
    features = torch.rand(3, 9, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    features[:, 1:4] *= eps
    features.requires_grad_()
    norms = SphericalNorms(2, "smooth", 2)(features)[:, 2:4]
    (gradient,) = torch.autograd.grad(norms.sum(), features)
    assert gradient.abs().max() < 100 * eps
