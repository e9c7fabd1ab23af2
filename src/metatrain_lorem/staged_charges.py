"""Stages of charge equilibration, for several processes that share a structure (:mod:`.stages`).

The conjugate gradients themselves are the engine's (``engines/lammps/conjugate_gradients.h``): sums
over all processes are a part of each iteration.
"""

from typing import NamedTuple

import torch
from metatomic.torch import System

from .blocks.charge_equilibration import Charges
from .electrostatics.equilibration.equilibrium import Equilibrium, charge_energies, limits_of
from .electrostatics.equilibration.operator import (
    ChargeOperator,
    crystal_operator,
    places_among,
    product_from,
    product_moments,
)
from .electrostatics.equilibration.preconditioner import precondition_from, precondition_on_mesh
from .electrostatics.equilibration.species_mesh import Crystal, on_mesh
from .graph import Graph
from .safe import exact_sums


class Part(NamedTuple):
    """What a process knows of its atoms between two stages."""

    graph: Graph
    stages: list[torch.Tensor]  # scalar features after each stage, each [atoms, d]
    spherical: torch.Tensor  # [atoms, (L + 1)**2, s]
    field: torch.Tensor | None  # of the long-range block, the same shape
    charges: Charges | None  # of charge equilibration


class ChargeStages:
    """Base of the model: stages of charge equilibration."""

    @torch.jit.export
    def stage_operator(
        self, system: System, part: Part, sums: torch.Tensor
    ) -> tuple[ChargeOperator, torch.Tensor]:
        """
        :param system: own atoms, then neighbours of other processes
        :param part: of the process
        :param sums: over the processes, see :meth:`.stages.Stages.stage_sums`
        :return: the rows of the own atoms of the matrix A of the charges; electronegativities of
            the own atoms ``[atoms]``, e/length
        """
        assert self.charge_equilibration is not None
        if self.equilibrates_last and part.field is None:
            raise ValueError(
                "charges of this model are equilibrated after the long range (after_long_range), "
                "which the plugin does not know: build it again, python -m metatrain_lorem "
                "build-lammps-plugin"
            )
        graph = part.graph
        boundaries = graph.boundaries
        all_species = self.graph.types_to_species[system.types.to(torch.long)]
        hardness = self.charge_equilibration.hardness_of(part.stages[-1], graph.species)
        interactions = self.charge_equilibration.interactions(graph, all_species, hardness)
        present = torch.tensor(graph.structure_species[0], device=sums.device)
        crystal = Crystal(
            positions=graph.positions,
            present=present,
            counts=sums[4:].detach()[present].to(graph.positions.dtype),
            species=places_among(present, interactions)[graph.species],
            cell=boundaries.cells[0],
            volume=boundaries.volumes[0],
            lengths=boundaries.lengths[0],
        )
        pairs = torch.zeros([2, 0], dtype=torch.long, device=sums.device)
        weights = interactions.pair_weights[:0]
        if interactions.uses_pairs:
            pairs = torch.stack([graph.centers, graph.neighbors])
            weights = interactions.pair_weights
        operator = crystal_operator(interactions, 0, crystal, hardness, pairs, weights)
        return operator, self.charge_equilibration.chi(part.stages[-1], graph)

    @torch.jit.export
    def stage_limits(self, part: Part) -> tuple[float, float, int]:
        """
        :param part: of the process
        :return: total charge in e; relative residual at which the iterations stop, and their
            largest number
        """
        assert self.charge_equilibration is not None
        limits = limits_of(self.charge_equilibration.solver, part.spherical)
        return float(part.graph.total_charge[0]), limits.tolerance, limits.max_iterations

    @torch.jit.export
    def stage_product_spread(
        self, operator: ChargeOperator, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param operator: A
        :param v: of the own atoms ``[atoms]``
        :return: what a product with A needs of all processes, both to be summed over them
        """
        return on_mesh(operator.mesh, v), product_moments(operator, v)

    @torch.jit.export
    def stage_product(
        self,
        operator: ChargeOperator,
        v: torch.Tensor,
        values: torch.Tensor,
        moments: torch.Tensor,
    ) -> torch.Tensor:
        """
        :param operator: A
        :param v: of own atoms and neighbours ``[all atoms]``
        :param values: sums over the processes, see :meth:`stage_product_spread`
        :param moments: likewise
        :return: A v of the own atoms ``[atoms]``
        """
        return product_from(operator, v, values, moments)

    @torch.jit.export
    def stage_precondition_spread(self, operator: ChargeOperator, v: torch.Tensor) -> torch.Tensor:
        """
        :param operator: A
        :param v: of the own atoms ``[atoms]``
        :return: what the preconditioner needs of all processes, to be summed over them
        """
        return precondition_on_mesh(operator.preconditioner, v)

    @torch.jit.export
    def stage_precondition(
        self, operator: ChargeOperator, v: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """
        :param operator: A
        :param v: of the own atoms ``[atoms]``
        :param values: sum over the processes, see :meth:`stage_precondition_spread`
        :return: the preconditioner times v ``[atoms]``
        """
        return precondition_from(operator.preconditioner, v, values)

    @torch.jit.export
    def stage_jacobi(self, operator: ChargeOperator, v: torch.Tensor) -> torch.Tensor:
        """
        :param operator: A
        :param v: of the own atoms ``[atoms]``
        :return: v over the diagonal of A, where the preconditioner turns out indefinite
        """
        return operator.preconditioner.jacobi * v

    @torch.jit.export
    def stage_equilibrated(
        self,
        part: Part,
        chi: torch.Tensor,
        charges: torch.Tensor,
        products: torch.Tensor,
        own_total: torch.Tensor,
    ) -> Part:
        """
        :param part: of the process
        :param chi: electronegativities of the own atoms ``[atoms]``, e/length
        :param charges: of the own atoms ``[atoms]``, e
        :param products: A times the charges ``[atoms]``, e/length
        :param own_total: what the charges of the own atoms are to sum to ``[1]``, in double
            precision, e
        :return: the part with charges and features that know them
        """
        block = self.charge_equilibration
        assert block is not None
        graph, species = part.graph, part.graph.species
        hardness = block.hardness_of(part.stages[-1], species)
        potentials = products - hardness * charges
        exact = exact_sums(charges, own_total, graph.system_index)
        energies = charge_energies(exact, potentials, chi, hardness, block.variational)
        operators: list[ChargeOperator] = []
        structures: list[int] = []
        equilibrium = Equilibrium(
            charges=exact,
            energies=energies,
            constants=charges,
            residual=products + chi,
            operators=operators,
            structures=structures,
            chi=chi,
            solver=block.solver,
        )
        energies = block.coulomb_constant * energies
        known = block.charges(chi, energies, equilibrium, hardness)
        x = block.respond(part.stages[-1], self.short_range.embedding(species), known)
        return Part(
            graph=graph,
            stages=part.stages + [x],
            spherical=part.spherical,
            field=part.field,
            charges=known,
        )
