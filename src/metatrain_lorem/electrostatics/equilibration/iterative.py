r"""Charges that minimise a quadratic energy at a fixed total charge, without storing its matrix.

Find q and :math:`\mu` with :math:`A q + b + \mu 1 = 0` and :math:`1^T q = Q` for a symmetric A that
is positive definite on the vectors of zero sum.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .operator import ChargeOperator, detached, product
from .preconditioner import precondition


class Limits(NamedTuple):
    """When the iterations stop."""

    tolerance: float  # of the residual, relative
    max_iterations: int  # largest number of products with A


def without_mean(v: torch.Tensor) -> torch.Tensor:
    """
    :param v: ``[atoms]``
    :return: its projection on the vectors of zero sum
    """
    v = v - v.mean()
    # once more: the rounding error of a large mean may exceed all that is left
    return v - v.mean()


def solve_iteratively(
    operator: ChargeOperator, b: torch.Tensor, total: torch.Tensor, limits: Limits, name: str
) -> torch.Tensor:
    r"""
    Solve for one structure by preconditioned conjugate gradients on the vectors of zero sum.

    The residual is :math:`P r`, with :math:`r = -(A q + b)` and P the projection on zero sum; it
    must fall below the tolerance times the larger one of :math:`P b` and the residual of uniform
    charges. The preconditioned residual is projected so that its sum is zero,
    :math:`z = B r - B 1\, (1^T B r) / (1^T B 1)`, the constrained minimum for A = B⁻¹. If the
    preconditioner turns out indefinite, the diagonal of A takes its place.

    :param operator: A, without derivatives
    :param b: ``[atoms]``, e/Å
    :param total: total charge, a scalar, e
    :param limits: when to stop
    :param name: what to call the structure in an error
    :return: charges ``[atoms]``, e
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
    q = uniform
    r = -without_mean(b + product(operator, q))
    kerker = True
    preconditioned_ones = precondition(operator.preconditioner, ones, kerker)
    p = torch.zeros_like(b)
    rz = torch.ones_like(scale)
    # a GPU would wait at every look at the residual
    interval = 4 if b.is_cuda else 1
    iteration = 0
    residual = float(torch.linalg.vector_norm(r) / scale.clamp(min=1e-30))
    while not residual <= limits.tolerance:
        if iteration >= limits.max_iterations:
            raise ValueError(
                f"charge equilibration of {name} did not converge: after {iteration} iterations "
                f"the relative residual is {residual}, the tolerance {limits.tolerance}. Look for "
                "atoms that are too close or far from anything the model was trained on; else "
                "raise charge_equilibration.max_iterations or charge_equilibration.tolerance, or "
                "set charge_equilibration.solver to dense"
            )
        z = precondition(operator.preconditioner, r, kerker)
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
        if iteration % interval == 0 or iteration == limits.max_iterations:
            numbers = torch.stack([torch.linalg.vector_norm(r) / scale, rz])
            look: list[float] = numbers.cpu().double().tolist()
            residual = look[0]
            if kerker and not look[1] > 0.0 and not residual <= limits.tolerance:
                kerker = False
                preconditioned_ones = precondition(operator.preconditioner, ones, kerker)
                p = torch.zeros_like(b)
                rz = torch.ones_like(scale)
    return q


def respond(operator: ChargeOperator, b: torch.Tensor, limits: Limits, name: str) -> torch.Tensor:
    """
    Change of the charges, of zero sum, when b is added to the electronegativities.

    Parameters are those of :func:`solve_iteratively`. In derivatives b is often uniform up to
    noise, since the energy of the charges is stationary: no solution is then needed.

    :return: ``[atoms]``, e
    :raises ValueError: see :func:`solve_iteratively`
    """
    zero = torch.zeros_like(b)
    effective = torch.linalg.vector_norm(without_mean(b))
    if bool(effective <= limits.tolerance * torch.linalg.vector_norm(b)):
        return zero
    return solve_iteratively(operator, b, zero.sum(), limits, name)


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


def with_derivatives(
    q: torch.Tensor, operator: ChargeOperator, chi: torch.Tensor, limits: Limits, name: str
) -> torch.Tensor:
    r"""
    Give solved charges their first and second derivatives; not in TorchScript.

    One step of Newton's method with the inverse of A held constant,
    :math:`q \leftarrow q - A_0^{-1} (A q + \chi)`, does not change the values, and each step makes
    one more derivative right.

    :param q: charges of a structure, without derivatives, ``[atoms]``, e
    :param operator: A
    :param chi: electronegativities ``[atoms]``, e/length
    :param limits: when to stop
    :param name: what to call the structure in an error
    :return: the charges, with derivatives, ``[atoms]``, e
    """

    def solve(b: torch.Tensor) -> torch.Tensor:
        return respond(detached(operator), b, limits, name)

    for _ in range(2):
        r = product(operator, q) + chi
        if r.requires_grad:
            q = q + ResponseToResidual.apply(r, solve)
    return q
