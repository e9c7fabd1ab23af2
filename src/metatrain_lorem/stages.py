"""An evaluation in stages, between which an engine lets its processes communicate.

Each process has the atoms of a part of one periodic structure, and neighbours of these that others
have. It calls the methods ``stage_...`` of the exported model one after the other and, between
them, *exchanges* (sends what its atoms have to the processes that have them as neighbours) and
*reduces* (sums or maxima over all processes). All but the stages themselves, the order of the calls
and the chain of derivatives, is the engine's; see ``engines/lammps/parallel.h``.
"""

from typing import Optional

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorMap
from metatomic.torch import ModelOutput, System

from .electrostatics.boundaries import boundary_table
from .electrostatics.coulomb_sum import slab_heights
from .electrostatics.mesh import (
    Stencil,
    mesh_shape,
    normalized,
    packed,
    spread,
    stencil,
    unpacked,
)
from .electrostatics.slab import slab_moments
from .graph import Graph, Whole
from .heads.readout import Features
from .indexing import occurrences
from .staged_charges import ChargeStages, Part
from .systems import (
    Batch,
    concatenate,
    refuse_spin,
    total_charges,
    warn_of_built_in_charge,
)


class Stages(ChargeStages):
    """Base of the model: methods that the exported file has beside ``forward``."""

    def collected(
        self,
        systems: list[System],
        outputs: dict[str, ModelOutput],
        selected_atoms: Optional[Labels],  # noqa: UP045
        graph: Graph,
        predicted: list[dict[str, list[torch.Tensor]]],
    ) -> dict[str, TensorMap]:
        """
        :param systems: structures
        :param outputs: what to return, per atom or per system
        :param selected_atoms: atoms to return or to sum, all if None
        :param graph: of the structures
        :param predicted: values of the outputs per atom, before scales and baselines, and energies
            in units of their own, whatever the scales of the targets
        :return: the outputs
        """
        dtype = systems[0].positions.dtype
        results = self.readout.labels(predicted[0], graph, outputs, selected_atoms, dtype)
        unscaled = self.readout.labels(predicted[1], graph, outputs, selected_atoms, dtype)
        if self.training:
            # the trainer removes baselines and scales from the targets instead
            unscaled = self.scaler.apply_scales(
                systems, unscaled, remove=True, selected_atoms=selected_atoms
            )
        else:
            results = self.with_baselines(systems, outputs, results, selected_atoms)
        for name, energy in unscaled.items():
            results[name] = mts.add(results[name], energy)
        return results

    @torch.jit.export
    def stage_support(self) -> tuple[bool, bool, bool]:
        """
        :return: whether there is charge equilibration, whether a long-range block, and whether
            the latter comes first
        :raises ValueError: for models that can't be evaluated in stages
        """
        warn_of_built_in_charge(self.built_in_charge)
        if len(self.short_range.message_passing) > 0:
            raise ValueError(
                "features of atoms on other processes are needed: models with message passing and "
                "long range run on one process"
            )
        if self.backbone is not None:
            raise ValueError("models with a backbone and long range run on one process")
        if self.partial_charges is not None:
            raise ValueError(
                "models with partial charges (long_range.energy: charges) run on one process"
            )
        if self.long_range is not None:
            if self.long_range.dispersion is not None:
                raise ValueError("models with dispersion (long_range.exponents) run on one process")
        equilibrates = self.charge_equilibration is not None
        return equilibrates, self.long_range is not None, self.equilibrates_last

    @torch.jit.export
    def stage_sums(self, system: System, own: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param system: own atoms, then neighbours of other processes
        :param own: number of own atoms
        :return: to be summed over the processes: how many own atoms, their positions, how many of
            each species ``[4 + species]``; of which the largest is to be taken: extents ``[6]``
        """
        positions = system.positions[:own]
        index = torch.zeros([own], dtype=torch.long, device=positions.device)
        table = boundary_table(
            positions, system.cell.unsqueeze(0), system.pbc.unsqueeze(0), index
        ).to(positions.dtype)
        species = self.graph.types_to_species[system.types[:own].to(torch.long)]
        counts = occurrences(species, self.graph.num_species + 1).to(positions.dtype)
        count = torch.ones_like(positions[:, :1]).sum(0)
        sums = torch.cat([count, positions.sum(0), counts])
        return sums, torch.cat([-table[0, 12:15], table[0, 15:]])

    @torch.jit.export
    def stage_local(
        self, system: System, own: int, sums: torch.Tensor, extents: torch.Tensor
    ) -> Part:
        """
        :param system: own atoms, then neighbours of other processes, with the neighbour list of
            the own ones, without shifts
        :param own: number of own atoms
        :param sums: over the processes, see :meth:`stage_sums`
        :param extents: largest of the processes
        :return: features of the own atoms
        :raises ValueError: for structures that can't be evaluated, and isolated ones
        """
        systems, known = [system], self.total_charge_range
        refuse_spin(systems)
        total = total_charges(systems, self.conditional, self.total_charge, known.dtype)
        given = concatenate(systems, self.graph.neighbor_list, total)
        batch = Batch(
            positions=given.positions,
            types=given.types,
            cells=given.cells,
            pbc=given.pbc,
            counts=[own],
            pairs=given.pairs,
            total_charge=total,
        )
        limits: list[float] = torch.cat([-extents[:3], extents[3:]]).tolist()
        counts: list[float] = sums[4:].detach().tolist()
        species: list[int] = []
        for s, count in enumerate(counts):
            if count > 0.0:
                species.append(s)
        whole = Whole(mean=sums[1:4] / sums[0], extents=limits, species=species)
        graph = self.graph.build(batch, known, None, None, whole)
        if graph.boundaries.dimensions[0] < 2:
            raise ValueError("isolated structures run on one process")
        stages, spherical = self.short_range(graph, self.conditioning(graph))
        return Part(graph=graph, stages=stages, spherical=spherical, field=None, charges=None)

    @torch.jit.export
    def stage_charges(self, part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        :param part: of the process
        :return: charges of the long-range block, to be exchanged ``[atoms, channels]``, their sums
            and for slabs their moments, to be summed over the processes, and their largest absolute
            values, of which the largest is to be taken ``[channels]``; e
        """
        assert self.long_range is not None
        charges = self.long_range.charges(part.stages[-1], part.spherical)
        moments = charges
        if 2 in part.graph.boundaries.dimensions:
            z, shift = slab_heights(part.graph)
            moments = slab_moments(z, shift, charges)
        return charges, moments.sum(0, keepdim=True), charges.detach().abs().amax(dim=0)

    @torch.jit.export
    def stage_spread(
        self, part: Part, charges: torch.Tensor, sizes: torch.Tensor
    ) -> tuple[Stencil, torch.Tensor]:
        """
        :param part: of the process
        :param charges: of the own atoms ``[atoms, channels]``, e
        :param sizes: largest absolute values in the whole structure ``[channels]``, e
        :return: where the atoms are on the mesh; their charges there, two channels in a row, to be
            summed over the processes, of which each then has some rows ``[rows, *shape, 2]``
        """
        assert self.long_range is not None
        shape = self.mesh_shape(part)
        inverse = torch.linalg.inv_ex(part.graph.boundaries.cells[0])[0]
        order = self.long_range.coulomb.settings.spline_order
        atoms = stencil(part.graph.positions, inverse, shape, order)
        mesh = spread(atoms, normalized(charges, sizes), shape[0] * shape[1] * shape[2])
        rows = packed(mesh.view(shape + [-1]).permute(3, 0, 1, 2))
        return atoms, torch.view_as_real(rows)

    @torch.jit.export
    def stage_filter(self, part: Part, rows: torch.Tensor) -> torch.Tensor:
        """
        :param part: of the process
        :param rows: charges on the mesh that the process has ``[rows, *shape, 2]``
        :return: their potentials, to be sent to all processes ``[rows, *shape, 2]``
        """
        assert self.long_range is not None
        mesh = self.long_range.coulomb.mesh
        mesh.set_cell(part.graph.boundaries.cells[0], self.mesh_shape(part))
        potentials = mesh.filter.filtered(torch.view_as_complex(rows))
        mesh.release()
        return torch.view_as_real(potentials)

    def mesh_shape(self, part: Part) -> list[int]:
        """
        :param part: of a process
        :return: mesh points along the cell vectors
        """
        assert self.long_range is not None
        spacing = self.long_range.coulomb.settings.mesh_spacing
        return mesh_shape(part.graph.boundaries.lengths[0], spacing)

    @torch.jit.export
    def stage_potentials(
        self,
        part: Part,
        charges: torch.Tensor,
        totals: torch.Tensor,
        atoms: Stencil,
        rows: torch.Tensor,
        sizes: torch.Tensor,
    ) -> Part:
        """
        :param part: of the process
        :param charges: of own atoms and neighbours ``[all atoms, channels]``, e
        :param totals: sums over the processes, see :meth:`stage_charges`
        :param atoms: where they are on the mesh
        :param rows: potentials on the mesh, of all processes ``[rows, *shape, 2]``
        :param sizes: see :meth:`stage_spread`
        :return: the part with the features that know the potentials
        """
        assert self.long_range is not None
        graph, coulomb = part.graph, self.long_range.coulomb
        boundaries, own = graph.boundaries, charges[: len(graph.species)]
        potentials = coulomb.self_and_background(own, totals[:, : own.size(1)], graph)
        potentials = coulomb.add_real_space(potentials, charges, graph)
        if 2 in boundaries.dimensions:
            z, shift = slab_heights(graph)
            potentials = potentials + coulomb.slabs(z, shift, totals, graph)
        coulomb.mesh.interpolator.stencil = atoms
        mesh = unpacked(torch.view_as_complex(rows))
        potentials = potentials + coulomb.mesh.potentials(mesh, sizes)
        coulomb.mesh.release()
        x, field = self.long_range.couple(part.stages[-1], part.spherical, [potentials])
        return Part(
            graph=graph,
            stages=part.stages + [x],
            spherical=part.spherical,
            field=field,
            charges=part.charges,
        )

    @torch.jit.export
    def stage_outputs(
        self, system: System, own: int, outputs: dict[str, ModelOutput], part: Part
    ) -> dict[str, TensorMap]:
        """
        :param system: as in :meth:`stage_local`
        :param own: number of own atoms
        :param outputs: what to return, per atom
        :param part: of the process, after all other stages
        :return: the outputs of the own atoms
        """
        requested, outputs = outputs, self.readout.resolve(outputs)
        features = Features(stages=part.stages, spherical=part.spherical, field=part.field)
        values = self.readout(features, part.charges, part.graph, list(outputs.keys()))
        numbers = torch.arange(own, device=system.positions.device)
        atoms = torch.stack([torch.zeros_like(numbers), numbers], dim=1)
        selected = Labels(["system", "atom"], atoms)
        energies: dict[str, torch.Tensor] = {}  # of a backbone
        predicted = [values, self.readout.energies(energies, part.charges, outputs)]
        results = self.collected([system], outputs, selected, part.graph, predicted)
        return self.readout.rename(results, requested)
