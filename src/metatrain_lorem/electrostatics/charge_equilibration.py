r"""Charge equilibration: charges that minimise a global energy at a given total charge.

As in CELLI (Fuchs, Sanocki, Zavadlav, npj Comput. Mater. 2025, arXiv 2501.19179),
electronegativities :math:`\chi_i` come from the features of the atoms, and the charges minimise

.. math::
    E = \sum_i \big(\chi_i q_i + \tfrac12 J_i q_i^2\big) + \tfrac12 q^T C q ,
    \qquad \sum_i q_i = Q ,

with the hardness J of each species and the Coulomb matrix C of Gaussian charges
(:mod:`metatrain_lorem.electrostatics.gaussians`).
"""

import math
from functools import partial
from typing import NamedTuple

import ase.data
import torch
from metatomic.torch import unit_conversion_factor

from ..nn.mlp import MLP, Update
from .charge_operator import ChargeOperator, detached, operator_of, product
from .dense_charges import dense_charges
from .gaussians import short_range_weights
from .geometry import batch_geometry, first_atoms, sort_structures
from .interactions import Interactions
from .parameters import SPLINE_ORDER, ewald_parameters
from .solvers import ResponseToResidual, respond, solve_iteratively

COULOMB_CONSTANT = 14.399645
"""1 / (4 pi epsilon_0) in eV Angstrom / e^2."""

LEAST_HARDNESS = 0.2
"""Lower bound of the hardness, 1/Angstrom: softer ones need many more iterations."""

INITIAL_HARDNESS = 1.0
"""Hardness of all species at the start of training, 1/Angstrom (14.4 eV/e^2)."""

LARGEST_DENSE = 1500
"""Atoms of an isolated structure whose matrix is stored: some seconds and 0.3 GB with forces."""

MESH_THRESHOLD = 200_000
"""Atoms times k-vectors above which a periodic structure is solved iteratively, on a mesh. Measured
with energy and forces on one CPU core: half the time of the stored matrix at 440,000 (216 atoms of
NaCl), twice at 40,000 (64 atoms)."""

MESH_POINTS = 1_000_000
"""Mesh points from which on the threshold grows in proportion."""

MAX_TERMS = 2**22
"""Matrix elements or phase factors evaluated at once."""


class Equilibrium(NamedTuple):
    """Charges of a batch with N atoms, and what follows from them.

    ``charges`` [N], e; ``energies`` [N], eV, summing to the energy of the charges;
    ``electronegativity`` [N], eV/e; ``hardness`` [N], eV/e^2. Of structures that were solved
    iteratively: ``constants`` [N], the charges without derivatives; ``residual`` [N],
    electronegativity plus A times charges, e/length; ``operators``, their matrices A, and
    ``structures``, their numbers. ``first``: first atom of each structure.
    """

    charges: torch.Tensor
    energies: torch.Tensor
    electronegativity: torch.Tensor
    hardness: torch.Tensor
    constants: torch.Tensor
    residual: torch.Tensor
    operators: list[ChargeOperator]
    structures: list[int]
    first: list[int]


class ChargeEquilibration(torch.nn.Module):
    r"""Electronegativities, charges, their energy, and the update of the features by the charges.

    :param atomic_types: atomic numbers of the species
    :param num_features: scalar features d
    :param num_species_features: features per species
    :param cutoff: radius of the neighbor list in ``length_unit``
    :param length_unit: of positions and cells
    :param energy: ``"variational"``, the energy above, or ``"celli"``, its Coulomb part alone
    :param learn_widths: whether the widths of the Gaussians are learned
    :param solver: ``"auto"``, ``"dense"`` or ``"iterative"``
    :param accuracy: relative accuracy of sums over periodic images
    :param tolerance: relative residual of the iterative solver, None for 1e-5 in single and 1e-10
        in double precision
    :param max_iterations: of the iterative solver
    :raises ValueError: for a species without covalent radius
    """

    def __init__(
        self,
        atomic_types: list[int],
        num_features: int,
        num_species_features: int,
        cutoff: float,
        length_unit: str,
        energy: str,
        learn_widths: bool,
        solver: str,
        accuracy: float,
        tolerance: float | None,
        max_iterations: int,
    ) -> None:
        super().__init__()
        self.angstrom: float = unit_conversion_factor("angstrom", length_unit or "angstrom")
        self.coulomb_constant: float = COULOMB_CONSTANT * self.angstrom
        self.least_hardness: float = LEAST_HARDNESS
        self.variational: bool = energy == "variational"
        self.solver: str = solver
        self.tolerance: float = 0.0 if tolerance is None else tolerance
        self.max_iterations: int = max_iterations
        radii = [covalent_radius(atomic_type) for atomic_type in atomic_types]
        self.register_buffer("radii", self.angstrom * torch.tensor(radii), persistent=False)

        d = num_features
        self.electronegativity = MLP([d, d, 1])
        # small charges at first, whose energy does not bury that of the data
        self.electronegativity[2].weight.data *= 0.1
        self.species_electronegativity = torch.nn.Parameter(torch.zeros(len(radii)))
        start = math.log(math.expm1(INITIAL_HARDNESS - LEAST_HARDNESS))
        self.raw_hardness = torch.nn.Parameter(torch.full((len(radii),), start))
        # softplus(g) / ln 2 is one where g is zero
        g = torch.zeros(len(radii))
        self.raw_widths = torch.nn.Parameter(g, requires_grad=learn_widths)
        self.update = Update(1 + num_species_features, d)

        parameters = ewald_parameters(cutoff, accuracy)
        self.accuracy: float = accuracy
        self.smearing: float = parameters.smearing
        # charges that are wide from the start need neither a finer mesh nor the neighbor list
        # (less a little, for radii are rounded)
        widest = (1.0 - 1e-6) * math.sqrt(2.0) * self.angstrom * min(radii)
        if not learn_widths and widest > self.smearing:
            parameters = ewald_parameters(cutoff * widest / self.smearing, accuracy)
            self.smearing = widest
        self.uses_pairs: bool = learn_widths or widest < self.smearing
        self.one_width: bool = not learn_widths and (
            math.sqrt(2.0) * self.angstrom * max(radii) <= self.smearing
        )
        self.k_cutoff: float = parameters.k_cutoff
        self.mesh_spacing: float = parameters.mesh_spacing
        self.spline_order: int = SPLINE_ORDER
        self.mesh_threshold: int = MESH_THRESHOLD
        self.mesh_points: int = MESH_POINTS
        self.largest_dense: int = LARGEST_DENSE
        self.max_terms: int = MAX_TERMS
        self.slab_height: float = 0.0
        # images of slabs must not overlap; learned widths may double
        self.slab_vacuum: float = (24.0 if learn_widths else 12.0) * self.angstrom * max(radii)

    def describe(self, length_unit: str) -> str:
        """Solvers and parameters in words, to be logged.

        :param length_unit: of the data
        """
        dense = (
            f"dense up to {self.largest_dense} atoms (isolated) or {self.mesh_threshold} atoms "
            "times k-vectors (periodic), larger ones iteratively"
        )
        solver = dense if self.solver == "auto" else f"always {self.solver} (by choice)"
        mode = "variational" if self.variational else "Coulomb part only (celli)"
        return (
            f"Charge equilibration: energy {mode}; solver {solver}; Coulomb matrix of relative "
            f"accuracy {self.accuracy:g}: smearing {self.smearing:.4f} {length_unit}, k-vectors to "
            f"{self.k_cutoff:.4f} 1/{length_unit}, mesh spacing {self.mesh_spacing:.4f} "
            f"{length_unit}"
        )

    def hardness(self) -> torch.Tensor:
        """Hardness J of the species in 1/length, shape [species]."""
        softplus = torch.nn.functional.softplus(self.raw_hardness)
        return (self.least_hardness + softplus) / self.angstrom

    def widths(self) -> torch.Tensor:
        """Widths of the Gaussians of the species, shape [species]."""
        softplus = torch.nn.functional.softplus(self.raw_widths)
        return self.radii.to(softplus.dtype) * softplus / math.log(2.0)

    def forward(
        self,
        x: torch.Tensor,
        species: torch.Tensor,
        species_features: torch.Tensor,
        total_charge: torch.Tensor,
        positions: torch.Tensor,
        cells: torch.Tensor,
        pbc: torch.Tensor,
        system_index: torch.Tensor,
        centers: torch.Tensor,
        neighbors: torch.Tensor,
        distances: torch.Tensor,
    ) -> tuple[torch.Tensor, Equilibrium]:
        """
        Solve for the charges and update the features.

        :param x: scalar features, shape [N, d]
        :param species: species of each atom, shape [N]
        :param species_features: their features, shape [N, num_species_features]
        :param total_charge: shape [S], e
        :param positions: shape [N, 3]
        :param cells: cell vectors in rows, shape [S, 3, 3]
        :param pbc: periodic directions, bool, shape [S, 3]
        :param system_index: structure of each atom, non-decreasing, shape [N]
        :param centers: first atoms of the pairs of the full neighbor list, shape [P]
        :param neighbors: second atoms of the pairs, shape [P]
        :param distances: shape [P]
        :return: new scalar features, shape [N, d]; the charges and their energy
        :raises ValueError: for one periodic direction, singular cells, and a structure whose
            charges do not converge
        """
        chi = self.electronegativity(x).squeeze(1) + self.species_electronegativity[species]
        equilibrium = self.equilibrate(
            chi / self.angstrom,
            species,
            total_charge,
            positions,
            cells,
            pbc,
            system_index,
            centers,
            neighbors,
            distances,
        )
        # not the total charge: of two distant fragments each must see its own charge only
        q = equilibrium.charges.unsqueeze(1)
        return self.update(x, torch.cat([q, species_features], dim=1)), equilibrium

    def equilibrate(
        self,
        chi: torch.Tensor,
        species: torch.Tensor,
        total_charge: torch.Tensor,
        positions: torch.Tensor,
        cells: torch.Tensor,
        pbc: torch.Tensor,
        system_index: torch.Tensor,
        centers: torch.Tensor,
        neighbors: torch.Tensor,
        distances: torch.Tensor,
    ) -> Equilibrium:
        """
        Charges for given electronegativities.

        :param chi: electronegativities, shape [N], e/length
        :return: the charges and their energy; other parameters: see ``forward``
        """
        geometry = batch_geometry(
            positions, cells, pbc, system_index, self.slab_height, self.slab_vacuum
        )
        first = first_atoms(geometry.counts)
        isolated, small, large = sort_structures(
            geometry, self.k_cutoff, self.mesh_spacing, self.mesh_threshold, self.mesh_points
        )
        dense, iterative = self.choose_solver(isolated, small, large, geometry.counts)

        hardness, variances = self.hardness(), self.widths() ** 2
        pair_weights = torch.zeros_like(distances)
        if self.uses_pairs:
            of_pairs = variances[species[centers]] + variances[species[neighbors]]
            pair_weights = short_range_weights(distances, of_pairs, self.smearing)

        interactions = Interactions(
            geometry,
            first,
            positions,
            system_index,
            species,
            hardness,
            variances,
            centers,
            neighbors,
            pair_weights,
            self.uses_pairs,
            self.one_width,
            self.smearing,
            self.k_cutoff,
            self.mesh_spacing,
            self.spline_order,
            self.max_terms,
            self.angstrom,
        )
        charges, potentials = dense_charges(interactions, dense, chi, total_charge)
        operators: list[ChargeOperator] = []
        starts: list[torch.Tensor] = []
        for s in iterative:
            begin, end = first[s], first[s + 1]
            operator = operator_of(interactions, s)
            operators.append(operator)
            solution, iterations = solve_iteratively(
                detached(operator),
                chi[begin:end].detach(),
                total_charge[s].to(chi.dtype),
                torch.zeros_like(chi[begin:end]),
                self.relative_tolerance(chi),
                self.max_iterations,
                f"structure {s} of the batch",
            )
            starts.append(solution)

        constants = torch.zeros_like(chi)
        residual = torch.zeros_like(chi)
        if len(iterative) > 0:
            where = torch.cat(
                [torch.arange(first[s], first[s + 1], device=chi.device) for s in iterative]
            )
            constants = constants.index_add(0, where, torch.cat(starts).detach())
            q = constants
            if torch.jit.is_scripting():
                # derivatives: see ``response``
                moves = positions.requires_grad or cells.requires_grad
                constants.requires_grad_(moves and torch.is_grad_enabled())
            else:
                q = self.differentiable(constants, operators, iterative, first, chi)
            products: list[torch.Tensor] = []
            for n, s in enumerate(iterative):
                products.append(product(operators[n], q[first[s] : first[s + 1]]))
            of_charges = torch.zeros_like(chi).index_add(0, where, torch.cat(products))
            charges = charges + q
            potentials = potentials + of_charges - hardness[species] * q
            residual = of_charges + torch.zeros_like(chi).index_add(0, where, chi[where])

        charges = exact_sums(charges, total_charge, system_index)
        energies = 0.5 * charges * potentials
        if self.variational:
            energies = energies + (chi + 0.5 * hardness[species] * charges) * charges
        return Equilibrium(
            charges,
            self.coulomb_constant * energies,
            self.coulomb_constant * chi,
            self.coulomb_constant * hardness[species],
            constants,
            residual,
            operators,
            iterative,
            first,
        )

    def choose_solver(
        self, isolated: list[int], small: list[int], large: list[int], counts: list[int]
    ) -> tuple[list[int], list[int]]:
        """
        :param isolated: isolated structures
        :param small: periodic structures with few k-vectors
        :param large: other periodic structures
        :param counts: number of atoms of each structure
        :return: structures to be solved by a stored matrix, and iteratively
        """
        if self.solver == "dense":
            return isolated + small + large, []
        if self.solver == "iterative":
            return [], isolated + small + large
        dense: list[int] = []
        iterative: list[int] = []
        for s in isolated:
            if counts[s] <= self.largest_dense:
                dense.append(s)
            else:
                iterative.append(s)
        return dense + small, iterative + large

    def relative_tolerance(self, like: torch.Tensor) -> float:
        """Tolerance for the floating-point type of a tensor."""
        if self.tolerance > 0.0:
            return self.tolerance
        return 1e-10 if like.dtype == torch.float64 else 1e-5

    def differentiable(
        self,
        q: torch.Tensor,
        operators: list[ChargeOperator],
        structures: list[int],
        first: list[int],
        chi: torch.Tensor,
    ) -> torch.Tensor:
        r"""
        Give solved charges their first and second derivatives.

        One step of Newton's method with the inverse of A held constant,
        :math:`q \leftarrow q - A_0^{-1} (A q + \chi)`, does not change the values, and each step
        makes one more derivative right.

        :param q: charges without derivatives, shape [N]
        :return: the same with derivatives, shape [N]
        """
        results: list[torch.Tensor] = []
        indices: list[torch.Tensor] = []
        for operator, s in zip(operators, structures, strict=True):
            begin, end = first[s], first[s + 1]
            of_structure = q[begin:end]
            solve = partial(
                respond,
                detached(operator),
                tolerance=self.relative_tolerance(chi),
                max_iterations=self.max_iterations,
                name=f"structure {s} of the batch (in a derivative)",
            )
            for _ in range(2):
                r = product(operator, of_structure) + chi[begin:end]
                if r.requires_grad:
                    of_structure = of_structure + ResponseToResidual.apply(r, solve)
            results.append(of_structure)
            indices.append(torch.arange(begin, end, device=q.device))
        return torch.zeros_like(q).index_add(0, torch.cat(indices), torch.cat(results))

    def response(self, energy: torch.Tensor, equilibrium: Equilibrium) -> torch.Tensor:
        r"""
        In TorchScript: what lets the first derivatives of an energy know that charges respond.

        With :math:`\lambda = -A^{-1} \partial E / \partial q` on zero sum and the residual r of the
        charges, :math:`\lambda^T (r - \text{value of } r)` is zero and has the derivative that the
        energy lacks where charges were solved iteratively. Its second derivatives are wrong.

        :param energy: sum over all structures, in any unit, a scalar
        :param equilibrium: the charges it was made of
        :return: per structure, to be added to the energies, shape [S]
        """
        result = torch.zeros(len(equilibrium.first) - 1, dtype=energy.dtype, device=energy.device)
        if not equilibrium.constants.requires_grad:
            return result
        gradient = torch.autograd.grad(
            [energy], [equilibrium.constants], retain_graph=True, allow_unused=True
        )[0]
        if gradient is None:
            return result
        for n, s in enumerate(equilibrium.structures):
            begin, end = equilibrium.first[s], equilibrium.first[s + 1]
            g = gradient[begin:end].detach()
            multiplier = respond(
                detached(equilibrium.operators[n]),
                g,
                self.relative_tolerance(g),
                self.max_iterations,
                f"structure {s} of the batch (response of the charges)",
            )
            r = equilibrium.residual[begin:end]
            index = torch.full([1], s, device=g.device)
            result = result.index_add(0, index, (multiplier * (r - r.detach())).sum().unsqueeze(0))
        return result


def covalent_radius(atomic_type: int) -> float:
    """
    :param atomic_type: atomic number
    :return: covalent radius in Angstrom (Cordero et al., Dalton Trans. 2008, 2832)
    :raises ValueError: where there is none
    """
    if not 1 <= atomic_type <= 96:
        raise ValueError(
            "charge equilibration takes the widths of charges from covalent radii, but atomic "
            f"type {atomic_type} has none (1 to 96 have)"
        )
    return float(ase.data.covalent_radii[atomic_type])


def exact_sums(
    charges: torch.Tensor, total_charge: torch.Tensor, system_index: torch.Tensor
) -> torch.Tensor:
    """
    Remove the rounding error of the sums of charges, in double precision.

    Equal shifts of all charges may be below the resolution of a charge. The first atoms of each
    structure take what they leave, in small equal portions.

    :param charges: shape [N]
    :param total_charge: shape [S]
    :param system_index: structure of each atom, non-decreasing, shape [N]
    :return: shape [N]
    """
    counts = torch.zeros_like(total_charge, dtype=torch.long)
    counts = counts.index_add(0, system_index, torch.ones_like(system_index))
    shift = missing_charge(charges, total_charge, system_index) / counts.clamp(min=1)
    charges = charges + shift[system_index].to(charges.dtype)
    missing = missing_charge(charges, total_charge, system_index)
    # a multiple of the spacing of numbers up to 4
    portion = 2.0**-22 if charges.dtype == torch.float32 else 2.0**-51
    first = counts.cumsum(0) - counts
    rank = torch.arange(charges.size(0), device=charges.device) - first[system_index]
    takes = rank < (missing.abs() / portion).round()[system_index]
    return charges + portion * (missing.sign()[system_index] * takes).to(charges.dtype)


def missing_charge(
    charges: torch.Tensor, total_charge: torch.Tensor, system_index: torch.Tensor
) -> torch.Tensor:
    """Total charge less the sum of the charges of each structure, float64, shape [S]."""
    total = total_charge.to(torch.float64)
    return total.index_add(0, system_index, -charges.detach().to(torch.float64))
