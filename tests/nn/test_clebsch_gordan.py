import numpy as np
import pytest
import torch

from metatrain_lorem.nn.clebsch_gordan import clebsch_gordan
from metatrain_lorem.nn.spherical import SphericalHarmonics

TRIPLES = [
    (l1, l2, l3)
    for l1 in range(5)
    for l2 in range(5)
    for l3 in range(abs(l1 - l2), min(l1 + l2, 6) + 1)
]


@pytest.mark.parametrize("l1, l2", [(0, 3), (1, 1), (2, 1), (3, 2), (6, 6)])
def test_coefficients_are_an_orthogonal_matrix(l1, l2):
    """All products of degrees l1 and l2 are an orthogonal change of basis."""
    columns = [clebsch_gordan(l1, l2, l3) for l3 in range(abs(l1 - l2), l1 + l2 + 1)]
    matrix = torch.cat(columns, dim=-1).flatten(0, 1)
    identity = torch.eye((2 * l1 + 1) * (2 * l2 + 1), dtype=torch.float64)
    assert torch.allclose(matrix.T @ matrix, identity, rtol=0, atol=1e-12)
    assert torch.allclose(matrix @ matrix.T, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("l1, l2, l3", TRIPLES)
def test_products_rotate_like_spherical_tensors(l1, l2, l3, rotation, generator):
    def block(degree):
        rows = slice(degree**2, (degree + 1) ** 2)
        return rotation.components[rows, rows]

    x = torch.randn(2 * l1 + 1, dtype=torch.float64, generator=generator)
    y = torch.randn(2 * l2 + 1, dtype=torch.float64, generator=generator)
    table = clebsch_gordan(l1, l2, l3)
    before = torch.einsum("a,b,abc->c", x, y, table) @ block(l3)
    after = torch.einsum("a,b,abc->c", x @ block(l1), y @ block(l2), table)
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("l1, l2, l3", [t for t in TRIPLES if sum(t) % 2 == 0])
def test_products_of_harmonics_are_positive_multiples(l1, l2, l3, unit_vectors):
    y1, y2, y3 = (
        SphericalHarmonics(degree)(unit_vectors)[:, degree**2 :] for degree in (l1, l2, l3)
    )
    product = torch.einsum("na,nb,abc->nc", y1, y2, clebsch_gordan(l1, l2, l3))
    factor = (product * y3).sum(dim=1)
    assert (factor > 1e-3).all()
    assert torch.allclose(product, factor[:, None] * y3, rtol=0, atol=1e-12)


def test_vector_products():
    """Degrees 1 and 1: scalar product to degree 0, cross product to degree 1."""
    x = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    y = torch.tensor([1.1, 0.4, -0.5], dtype=torch.float64)
    to_spherical = [1, 2, 0]
    pair = (x[to_spherical], y[to_spherical])
    scalar = torch.einsum("a,b,abc->c", *pair, clebsch_gordan(1, 1, 0))
    assert torch.allclose(scalar, (x @ y)[None] / 3**0.5)
    cross = torch.einsum("a,b,abc->c", *pair, clebsch_gordan(1, 1, 1))
    # the sign is a choice, e3x's
    assert torch.allclose(cross, torch.linalg.cross(x, y)[to_spherical] / 2**0.5)


def test_coefficients_equal_e3x(shared):
    """Signs and normalisation, all degrees up to 3, and up to 6."""
    conventions = np.load(shared / "golden" / "conventions.npz")
    small = conventions["clebsch_gordan_l3"]
    large = np.zeros(conventions["clebsch_gordan_l6_shape"])
    large[tuple(conventions["clebsch_gordan_l6_index"].T)] = conventions["clebsch_gordan_l6_value"]
    for max_degree, reference in ((3, small), (6, large)):
        # e3x orders m = l, -l, l - 1, ..., 0
        order = []
        for degree in range(max_degree + 1):
            ms = [m for k in range(degree, 0, -1) for m in (k, -k)] + [0]
            order.extend(degree**2 + degree + m for m in ms)
        own = np.zeros(reference.shape)
        for l1 in range(max_degree + 1):
            for l2 in range(max_degree + 1):
                for l3 in range(abs(l1 - l2), min(l1 + l2, max_degree) + 1):
                    rows = [slice(degree**2, (degree + 1) ** 2) for degree in (l1, l2, l3)]
                    own[tuple(rows)] = clebsch_gordan(l1, l2, l3)
        np.testing.assert_allclose(own[np.ix_(order, order, order)], reference, rtol=0, atol=1e-12)


def test_degrees_that_do_not_couple_are_refused():
    with pytest.raises(ValueError, match="1 and 2 do not couple to 4"):
        clebsch_gordan(1, 2, 4)
