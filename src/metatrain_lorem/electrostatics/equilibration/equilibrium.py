r"""Charges for given electronegativities, and the energy that they minimise.

As in CELLI (Fuchs, Sanocki, Zavadlav, npj Comput. Mater. 2025, arXiv 2501.19179), the charges
minimise

.. math::
    E = \sum_i \bigl(\chi_i q_i + \tfrac{1}{2} J_i q_i^2\bigr) + \tfrac{1}{2} q^T C q ,
    \qquad \sum_i q_i = Q ,

with the hardness J of each atom and the Coulomb matrix C of Gaussian charges
(:mod:`.gaussians`).
"""

from typing import NamedTuple

import torch

from ...safe import exact_sums
from ..boundaries import sort_structures
from .dense import dense_charges
from .gaussians import Interactions
from .iterative import Limits, respond, solve_iteratively, with_derivatives
from .operator import ChargeOperator, charge_operator, detached, product

LARGEST_DENSE = 1500
"""Atoms of an isolated structure whose matrix is stored: some seconds and 0.3 GB with forces."""


class Solver(NamedTuple):
    """How charges are solved for."""

    method: str  # auto, dense or iterative
    tolerance: float  # relative residual of the iterative solver, 0 to follow the precision
    max_iterations: int  # of the iterative solver
    largest_dense: int = LARGEST_DENSE


class Equilibrium(NamedTuple):
    """Charges of a batch, and what follows from them."""

    charges: torch.Tensor  # [atoms] e
    energies: torch.Tensor  # [atoms] e²/length, summing to the energy of the charges
    # of structures that were solved iteratively:
    constants: torch.Tensor  # [atoms] the charges without derivatives, e
    residual: torch.Tensor  # [atoms] electronegativity plus A times charges, e/length
    operators: list[ChargeOperator]  # their matrices A
    structures: list[int]  # their numbers
    chi: torch.Tensor  # [atoms] electronegativities of all structures, e/length
    solver: Solver


def choose_solver(interactions: Interactions, solver: Solver) -> tuple[list[int], list[int]]:
    """
    :param interactions: of the batch
    :param solver: how to solve
    :return: structures to be solved by a stored matrix, and iteratively
    """
    boundaries = interactions.graph.boundaries
    isolated, small, large = sort_structures(boundaries, interactions.parameters)
    if solver.method == "dense":
        return isolated + small + large, []
    if solver.method == "iterative":
        return [], isolated + small + large
    dense: list[int] = []
    iterative: list[int] = []
    for s in isolated:
        if boundaries.counts[s] <= solver.largest_dense:
            dense.append(s)
        else:
            iterative.append(s)
    return dense + small, iterative + large


def limits_of(solver: Solver, like: torch.Tensor) -> Limits:
    """
    :param solver: how to solve
    :param like: any tensor of the floating-point type
    :return: when the iterations stop
    """
    tolerance = solver.tolerance
    if tolerance == 0.0:
        tolerance = 1e-10 if like.dtype == torch.float64 else 1e-5
    return Limits(tolerance=tolerance, max_iterations=solver.max_iterations)


def equilibrate(
    chi: torch.Tensor, interactions: Interactions, solver: Solver, variational: bool
) -> Equilibrium:
    """
    :param chi: electronegativities ``[atoms]``, e/length
    :param interactions: of the batch
    :param solver: how to solve
    :param variational: whether the energy is all that the charges minimise, or its Coulomb part
    :return: the charges and their energy
    :raises ValueError: for a structure whose charges do not converge
    """
    graph = interactions.graph
    dense, iterative = choose_solver(interactions, solver)
    charges, potentials = dense_charges(interactions, dense, chi)
    constants, residual = torch.zeros_like(chi), torch.zeros_like(chi)
    operators: list[ChargeOperator] = []
    hardness = interactions.hardness
    if len(iterative) > 0:
        limits = limits_of(solver, chi)
        # TorchScript: derivatives by ``response``
        moves = graph.positions.requires_grad or graph.cells.requires_grad
        places: list[torch.Tensor] = []
        solved: list[torch.Tensor] = []
        for s in iterative:
            begin, end = graph.boundaries.first[s], graph.boundaries.first[s + 1]
            operator = charge_operator(interactions, s)
            operators.append(operator)
            places.append(torch.arange(begin, end, device=chi.device))
            solution = solve_iteratively(
                detached(operator),
                chi[begin:end].detach(),
                graph.total_charge[s].to(chi.dtype),
                limits,
                f"structure {s} of the batch",
            )
            solved.append(solution.detach())
        where = torch.cat(places)
        constants = constants.index_add(0, where, torch.cat(solved))
        if torch.jit.is_scripting():
            constants.requires_grad_(moves and torch.is_grad_enabled())
        solved.clear()
        products: list[torch.Tensor] = []
        for n, s in enumerate(iterative):
            begin, end = graph.boundaries.first[s], graph.boundaries.first[s + 1]
            q = constants[begin:end]
            if not torch.jit.is_scripting():
                name = f"structure {s} of the batch (in a derivative)"
                q = with_derivatives(q, operators[n], chi[begin:end], limits, name)
            solved.append(q)
            products.append(product(operators[n], q))
        q = torch.zeros_like(chi).index_add(0, where, torch.cat(solved))
        aq = torch.zeros_like(chi).index_add(0, where, torch.cat(products))
        charges = charges + q
        potentials = potentials + aq - hardness * q
        residual = aq + torch.zeros_like(chi).index_add(0, where, chi[where])

    charges = exact_sums(charges, graph.total_charge, graph.system_index)
    energies = charge_energies(charges, potentials, chi, hardness, variational)
    return Equilibrium(
        charges=charges,
        energies=energies,
        constants=constants,
        residual=residual,
        operators=operators,
        structures=iterative,
        chi=chi,
        solver=solver,
    )


def charge_energies(
    charges: torch.Tensor,
    potentials: torch.Tensor,
    chi: torch.Tensor,
    hardness: torch.Tensor,
    variational: bool,
) -> torch.Tensor:
    """
    :param charges: ``[atoms]``, e
    :param potentials: C times the charges ``[atoms]``, e/length
    :param chi: electronegativities ``[atoms]``, e/length
    :param hardness: of the atoms ``[atoms]``, 1/length
    :param variational: whether the energy is all that the charges minimise, or its Coulomb part
    :return: ``[atoms]``, e²/length
    """
    energies = 0.5 * charges * potentials
    if variational:
        energies = energies + (chi + 0.5 * hardness * charges) * charges
    return energies


def response(energy: torch.Tensor, equilibrium: Equilibrium, first: list[int]) -> torch.Tensor:
    r"""
    In TorchScript: what lets the first derivatives of an energy know that charges respond.

    With :math:`\lambda = -A^{-1} \partial E / \partial q` on zero sum and the residual r of the
    charges, :math:`\lambda^T (r - \text{value of } r)` is zero and has the derivative that the
    energy lacks where charges were solved iteratively. Second derivatives would need those of
    :math:`\lambda`; instead of wrong ones there are infinite ones.

    :param energy: sum over all structures, in any unit, a scalar
    :param equilibrium: the charges it was made of
    :param first: first atom of each structure, and the number of all atoms
    :return: per structure, to be added to the energies, ``[systems]``
    """
    like = equilibrium.constants
    result = torch.zeros(len(first) - 1, dtype=like.dtype, device=like.device)
    if not like.requires_grad:
        return result
    gradient = torch.autograd.grad([energy], [like], retain_graph=True, allow_unused=True)[0]
    if gradient is None:
        return result
    for n, s in enumerate(equilibrium.structures):
        begin, end = first[s], first[s + 1]
        g = gradient[begin:end].detach()
        multiplier = respond(
            detached(equilibrium.operators[n]),
            g,
            limits_of(equilibrium.solver, g),
            f"structure {s} of the batch (response of the charges)",
        )
        r = equilibrium.residual[begin:end]
        index = torch.full([1], s, device=g.device)
        missing = (multiplier * (r - r.detach())).sum()
        # zero, and so is its first derivative
        alarm = missing**1.5
        result = result.index_add(0, index, (missing + alarm).unsqueeze(0))
    return result
