"""All weights of a model by nonlinear least squares, for few structures: the Jacobian of their
residuals has to fit into memory."""

import math
from collections.abc import Callable, Iterator

import torch

Residuals = Callable[[], Iterator[torch.Tensor]]
"""Gives them in parts ``[residuals of the part]``, each of which is differentiated on its own."""

SMALLEST = 1e-12
"""Damping below which rounding would make the matrix singular."""


def levenberg_marquardt(
    residuals: Residuals, parameters: list[torch.Tensor], steps: int, damping: float = 1e-2
) -> Iterator[float]:
    """Gauss–Newton steps, shortened by a damping that falls when they succeed.

    With residuals r and their Jacobian J, a step is :math:`-J^T (J J^T + \\lambda t)^{-1} r`, which
    needs a matrix of the size of the residuals alone; t is the mean of the diagonal of
    :math:`J J^T` (Levenberg, Quart. Appl. Math. 2, 164 (1944); a damping that adapts: Marquardt,
    J. SIAM 11, 431 (1963)).

    :param residuals: of the present parameters
    :param parameters: double precision; changed in place
    :param steps: at most; fewer if no step makes the sum of squares smaller
    :param damping: λ of the first step
    :return: sum of squares before each step, and after the last one if all were made
    :raises FloatingPointError: if residuals are not finite before a step
    """
    for _ in range(steps):
        values, jacobian = differentiated(residuals, parameters)
        before = float(values @ values)
        if not math.isfinite(before):
            raise FloatingPointError(f"the sum of squares is {before}")
        yield before
        gram = jacobian @ jacobian.T
        unit = gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        start = torch.nn.utils.parameters_to_vector(parameters).detach()
        while damping < 1e6:
            solved, failed = torch.linalg.solve_ex(gram + damping * unit, values)
            if not failed:
                torch.nn.utils.vector_to_parameters(start - jacobian.T @ solved, parameters)
                if sum_of_squares(residuals) < before:
                    damping = max(damping / 3, SMALLEST)
                    break
            damping *= 4
        else:
            torch.nn.utils.vector_to_parameters(start, parameters)
            return
        # the next one is built before these names are given away
        del jacobian, gram, unit
    yield sum_of_squares(residuals)


def differentiated(
    residuals: Residuals, parameters: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param residuals: of the present parameters
    :param parameters: to differentiate by
    :return: all residuals, and their derivatives ``[residuals, parameters]``
    """
    values, rows = [], []
    for part in residuals():
        values.append(part.detach())
        for value in part:
            gradients = torch.autograd.grad(
                value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.cat(values), torch.stack(rows)


def sum_of_squares(residuals: Residuals) -> float:
    """
    :param residuals: of the present parameters
    """
    return sum(float(part.detach() @ part.detach()) for part in residuals())
