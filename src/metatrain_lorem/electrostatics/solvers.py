r"""Charges that minimise a quadratic energy at a fixed total charge.

Both solvers find q and :math:`\mu` with

.. math:: A q + b + \mu 1 = 0, \qquad 1^T q = Q ,

for a symmetric A that is positive definite on the vectors of zero sum.
"""

from collections.abc import Callable

import torch

from .charge_operator import ChargeOperator, precondition, product


def solve_dense(
    matrix: torch.Tensor, b: torch.Tensor, total: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """
    Solve for many structures by LU factorisation of the saddle-point matrix; all derivatives exist.

    :param matrix: A, zero in rows and columns of filling, shape [B, n, n], 1/Angstrom
    :param b: electronegativities, zero for filling, shape [B, n], e/Angstrom
    :param total: total charges, shape [B], e
    :param mask: false for filling, shape [B, n]
    :return: charges, zero for filling, shape [B, n], e
    """
    ones = mask.to(matrix.dtype).unsqueeze(2)
    filling = torch.diag_embed(1.0 - ones.squeeze(2))
    upper = torch.cat([matrix + filling, ones], dim=2)
    lower = torch.nn.functional.pad(ones.transpose(1, 2), [0, 1])
    saddle = torch.cat([upper, lower], dim=1)
    right = torch.cat([-b, total.unsqueeze(1)], dim=1)
    return torch.linalg.solve(saddle, right)[:, :-1]


def without_mean(v: torch.Tensor) -> torch.Tensor:
    """
    :param v: shape [n]
    :return: its projection on the vectors of zero sum
    """
    return v - v.mean()


def solve_iteratively(
    operator: ChargeOperator,
    b: torch.Tensor,
    total: torch.Tensor,
    start: torch.Tensor,
    tolerance: float,
    max_iterations: int,
    name: str,
) -> tuple[torch.Tensor, int]:
    r"""
    Solve for one structure by preconditioned conjugate gradients on the vectors of zero sum.

    The residual is :math:`P r`, with :math:`r = -(A q + b)` and P the projection on zero sum; it
    must fall below ``tolerance`` times the larger one of :math:`P b` and the residual of uniform
    charges. The preconditioned residual is projected so that its sum is zero,
    :math:`z = B r - B 1\, (1^T B r) / (1^T B 1)`, the constrained minimum for A = B⁻¹. If the
    preconditioner turns out indefinite, the diagonal of A takes its place.

    :param operator: A, without derivatives
    :param b: shape [n], e/Angstrom
    :param total: total charge, a scalar, e
    :param start: first guess of the charges, shape [n], e
    :param tolerance: of the residual, relative
    :param max_iterations: largest number of products with A
    :param name: what to call the structure in an error
    :return: charges, shape [n], e; the number of iterations
    :raises ValueError: if the iterations do not suffice, with the residual
    """
    # a uniform b has no effect; left in, its rounding error may exceed all that matters
    b = without_mean(b)
    ones = torch.ones_like(b)
    uniform = ones * (total / b.size(0))
    scale = torch.maximum(
        torch.linalg.vector_norm(without_mean(b)),
        torch.linalg.vector_norm(without_mean(b + product(operator, uniform))),
    )
    q = start + (total - start.sum()) / b.size(0)
    r = -without_mean(b + product(operator, q))
    kerker = True
    preconditioned_ones = precondition(operator, ones, kerker)
    p = torch.zeros_like(b)
    rz = torch.ones_like(scale)
    # a GPU would wait at every look at the residual
    interval = 4 if b.is_cuda else 1
    iteration = 0
    residual = float(torch.linalg.vector_norm(r) / scale.clamp(min=1e-30))
    while not residual <= tolerance:
        if iteration >= max_iterations:
            raise ValueError(
                f"charge equilibration of {name} did not converge: after {iteration} iterations "
                f"the relative residual is {residual}, the tolerance {tolerance}. Look for atoms "
                "that are too close or far from anything the model was trained on; else raise "
                "charge_equilibration.max_iterations or charge_equilibration.tolerance, or set "
                "charge_equilibration.solver to dense"
            )
        z = precondition(operator, r, kerker)
        z = z - preconditioned_ones * (z.sum() / preconditioned_ones.sum())
        new_rz = torch.dot(r, z)
        p = z + p * (new_rz / rz)
        rz = new_rz
        ap = without_mean(product(operator, p))
        curvature = torch.dot(p, ap)
        # both vanish when there is nothing left to do
        step = torch.where(curvature > 0.0, rz / curvature, torch.zeros_like(rz))
        q = q + step * p
        r = r - step * ap
        iteration += 1
        if iteration % interval == 0 or iteration == max_iterations:
            numbers = torch.stack([torch.linalg.vector_norm(r) / scale, rz])
            look: list[float] = numbers.cpu().double().tolist()
            residual = look[0]
            if kerker and not look[1] > 0.0 and not residual <= tolerance:
                kerker = False
                preconditioned_ones = precondition(operator, ones, kerker)
                p = torch.zeros_like(b)
                rz = torch.ones_like(scale)
    return q, iteration


def respond(
    operator: ChargeOperator,
    b: torch.Tensor,
    tolerance: float,
    max_iterations: int,
    name: str,
) -> torch.Tensor:
    """
    Change of the charges, of zero sum, when b is added to the electronegativities.

    Parameters are those of ``solve_iteratively``. In derivatives b is often uniform up to noise,
    since the energy of the charges is stationary: no solution is then needed.

    :return: shape [n], e
    :raises ValueError: see ``solve_iteratively``
    """
    zero = torch.zeros_like(b)
    effective = torch.linalg.vector_norm(without_mean(b))
    if bool(effective <= tolerance * torch.linalg.vector_norm(b)):
        return zero
    return solve_iteratively(operator, b, zero.sum(), zero, tolerance, max_iterations, name)[0]


class Response(torch.autograd.Function):
    """``respond`` as a function of b; as it is linear and symmetric, so are its derivatives."""

    @staticmethod
    def forward(
        ctx, b: torch.Tensor, solve: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        ctx.solve = solve
        return solve(b)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return Response.apply(gradient, ctx.solve), None


class ResponseToResidual(Response):
    """``Response`` to a residual that is zero by construction: only derivatives remain."""

    @staticmethod
    def forward(
        ctx, b: torch.Tensor, solve: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        ctx.solve = solve
        return torch.zeros_like(b)
