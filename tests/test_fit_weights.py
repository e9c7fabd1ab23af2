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
    return importlib.import_module("fit_weights").levenberg_marquardt


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


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    """Along a bent valley: first steps lead up its sides."""
    return torch.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])


def test_damping_adapts(fit):
    """Steps that lead up are refused, and the last ones are those of Gauss and Newton."""
    for unit in (1.0, 1e3):
        x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
        squares = list(fit(lambda x=x, unit=unit: iter([unit * rosenbrock(x)]), [x], 40, 1e-8))
        assert len(squares) < 25 and squares[-1] == 0.0
        np.testing.assert_allclose(x.detach().numpy(), 1.0, atol=1e-12)


def test_singular_and_not_a_number(fit):
    """No slope at all is a place where no step helps; what is not a number is an error."""
    x = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    assert list(fit(lambda: iter([1.0 + x**2]), [x], 5)) == [1.0] and x.item() == 0.0
    with pytest.raises(FloatingPointError, match="the sum of squares is nan"):
        list(fit(lambda: iter([x / 0.0]), [x], 5))
