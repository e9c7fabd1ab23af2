"""All weights of a model by nonlinear least squares, for few structures: the Jacobian of their
residuals has to fit into memory."""

from collections.abc import Callable, Iterator

import torch


def levenberg_marquardt(
    residuals: Callable[[], Iterator[torch.Tensor]],
    parameters: list[torch.Tensor],
    steps: int,
    damping: float = 1e-2,
) -> Iterator[float]:
    """Gauss–Newton steps, shortened by a damping that falls when they succeed.

    With residuals r and their Jacobian J, a step is :math:`-J^T (J J^T + \\lambda t)^{-1} r`, which
    needs a matrix of the size of the residuals alone; t is the mean of the diagonal of
    :math:`J J^T` (Levenberg, Quart. Appl. Math. 2, 164 (1944); Marquardt, J. SIAM 11, 431 (1963)).

    :param residuals: gives them in parts, each of which is differentiated on its own
    :param parameters: double precision; changed in place
    :param steps: at most; fewer if no step makes the sum of squares smaller
    :param damping: λ of the first step
    :return: sum of squares before each step and after the last one
    """
    for _ in range(steps):
        values, jacobian = differentiated(residuals, parameters)
        gram = jacobian @ jacobian.T
        unit = gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        before = float(values @ values)
        yield before
        start = torch.nn.utils.parameters_to_vector(parameters).detach()
        while damping < 1e6:
            step = -jacobian.T @ torch.linalg.solve(gram + damping * unit, values)
            torch.nn.utils.vector_to_parameters(start + step, parameters)
            if sum_of_squares(residuals) < before:
                damping /= 3
                break
            damping *= 4
        else:
            torch.nn.utils.vector_to_parameters(start, parameters)
            return
    yield sum_of_squares(residuals)


def differentiated(
    residuals: Callable[[], Iterator[torch.Tensor]], parameters: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param residuals: as above
    :param parameters: as above
    :return: residuals and their derivatives ``[residuals, parameters]``
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


def sum_of_squares(residuals: Callable[[], Iterator[torch.Tensor]]) -> float:
    return sum(float(part.detach() @ part.detach()) for part in residuals())
