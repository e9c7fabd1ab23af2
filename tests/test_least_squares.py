"""The fit of all weights that the benchmark of far dimers uses."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"needs the repository: no folder {FOLDER}"
)


@pytest.fixture
def fit(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("least_squares").levenberg_marquardt


def test_equals_scipy(fit):
    """Two parameters, four residuals in two parts, of which none can vanish alone."""
    times = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    labels = torch.tensor([2.0, 1.0, 1.1, 0.1], dtype=torch.float64)
    height = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def residuals() -> Iterator[torch.Tensor]:
        for part in (slice(0, 3), slice(3, 4)):
            yield height * torch.exp(-rate * times[part]) - labels[part]

    squares = list(fit(residuals, [height, rate, unused], 30))
    expected = least_squares(
        lambda x: x[0] * np.exp(-x[1] * times.numpy()) - labels.numpy(), [1.0, 0.1]
    )
    np.testing.assert_allclose([height.item(), rate.item()], expected.x, rtol=1e-6)
    assert squares[-1] == pytest.approx(2 * expected.cost, rel=1e-9)
    before = torch.exp(-0.1 * times) - labels
    assert squares[0] == pytest.approx(float(before @ before), rel=1e-12)
    assert squares == sorted(squares, reverse=True)
    assert unused.tolist() == [1.0, 1.0, 1.0]


def test_more_parameters_than_residuals(fit):
    """Linear residuals all vanish, by the smallest change of the parameters."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    labels = torch.randn(3, dtype=torch.float64, generator=generator)
    x = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    squares = list(fit(lambda: iter([matrix @ x - labels]), [x], 12))
    assert squares[-1] < 1e-12 * squares[0]
    np.testing.assert_allclose(
        x.detach().numpy(), np.linalg.pinv(matrix.numpy()) @ labels.numpy(), atol=1e-6
    )


def test_stops_where_no_step_helps(fit):
    """At a cusp, from which all steps lead up: the parameter is that of before."""
    x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    assert list(fit(lambda: iter([1.0 + torch.where(x >= 0.0, x, -x)]), [x], 5)) == [1.0]
    assert x.item() == 0.0
