r"""Charge equilibration as a block: electronegativities from the features, charges back into them.

The charges and their energy are those of :mod:`..electrostatics.equilibration`, as in CELLI (Fuchs,
Sanocki, Zavadlav, npj Comput. Mater. 2025, arXiv 2501.19179).
"""

import math
from typing import NamedTuple

import ase.data
import torch
from metatomic.torch import unit_conversion_factor

from ..documentation import ModelHypers
from ..electrostatics.equilibration.equilibrium import Equilibrium, Solver, equilibrate
from ..electrostatics.equilibration.gaussians import Interactions, short_range_weights
from ..electrostatics.parameters import SumParameters, ewald_parameters
from ..graph import Graph
from ..indexing import join, of_systems, sum_systems
from ..nn.mlp import MLP, Update

COULOMB_CONSTANT = 14.399645
"""1 / (4 pi epsilon_0) in eV Å / e²."""

LEAST_HARDNESS = 0.2
"""Lower bound of the hardness, 1/Å: softer ones need many more iterations. It is not stored in
checkpoints: another bound changes trained models and needs an upgrade of theirs."""

INITIAL_HARDNESS = 1.0
"""Hardness of all species at the start of training, 1/Å (14.4 eV/e²)."""

MESH_THRESHOLD = 200_000
"""Atoms times k-vectors above which a periodic structure is solved iteratively, on a mesh. Measured
with energy and forces on one CPU core: half the time of the stored matrix at 440,000 (216 atoms of
NaCl), twice at 40,000 (64 atoms)."""


class Charges(NamedTuple):
    """Charges of a batch, what they follow from, and how they were found."""

    charges: torch.Tensor  # [atoms] e
    energies: torch.Tensor  # [atoms] eV, summing to the energy of the charges
    potentials: torch.Tensor  # [atoms] what they answer to, a field's among it, e/length
    # of charge equilibration:
    electronegativity: torch.Tensor | None = None  # [atoms] eV/e
    hardness: torch.Tensor | None = None  # [atoms] eV/e²
    equilibrium: Equilibrium | None = None


class ChargeEquilibration(torch.nn.Module):
    r"""Electronegativities, charges, their energy, and the update of the features by the charges.

    :param hypers: of the model
    :param atomic_types: atomic numbers of the species
    :param length_unit: of positions and cells
    :raises ValueError: for a species without covalent radius
    """

    settings: SumParameters  # TorchScript needs the types
    solver: Solver

    def __init__(self, hypers: ModelHypers, atomic_types: list[int], length_unit: str) -> None:
        super().__init__()
        options, d = hypers["charge_equilibration"], int(hypers["num_features"])
        learn_widths = options["learn_widths"]
        self.angstrom: float = unit_conversion_factor("angstrom", length_unit or "angstrom")
        self.coulomb_constant: float = COULOMB_CONSTANT * self.angstrom
        self.least_hardness: float = LEAST_HARDNESS
        self.variational: bool = options["energy"] == "variational"
        self.set_solver(options)
        radii = [self.angstrom * covalent_radius(atomic_type) for atomic_type in atomic_types]
        self.register_buffer("radii", torch.tensor(radii), persistent=False)

        self.electronegativity = MLP([d, d, 1])
        # small charges at first, whose energy does not bury that of the data
        self.electronegativity[2].weight.data *= 0.1
        self.species_electronegativity = torch.nn.Parameter(torch.zeros(len(radii)))
        self.local_hardness: torch.nn.Module | None = None
        if options["hardness"] == "features":
            self.local_hardness = MLP([d, d, 1])
            # that of the species at first
            self.local_hardness[2].weight.data *= 0.1
        start = math.log(math.expm1(INITIAL_HARDNESS - LEAST_HARDNESS))
        self.raw_hardness = torch.nn.Parameter(torch.full((len(radii),), start))
        # softplus(g) / ln 2 is one where g is zero
        g = torch.zeros(len(radii))
        self.raw_widths = torch.nn.Parameter(g, requires_grad=learn_widths)
        self.update = Update(1 + int(hypers["num_species_features"]), d)

        cutoff = float(hypers["cutoff"])
        self.accuracy: float = float(options["accuracy"])
        settings = ewald_parameters(cutoff, self.accuracy, self.angstrom)
        # charges that are wide from the start need neither a finer mesh nor the neighbour list
        # (less a little, for radii are rounded)
        widest = (1.0 - 1e-6) * math.sqrt(2.0) * min(radii)
        self.uses_pairs: bool = learn_widths or widest < settings.smearing
        if not learn_widths and widest > settings.smearing:
            reach = cutoff * widest / settings.smearing
            settings = ewald_parameters(reach, self.accuracy, self.angstrom)
            settings = settings._replace(smearing=widest)
        self.settings = settings._replace(mesh_threshold=MESH_THRESHOLD)
        self.one_width: bool = not learn_widths and math.sqrt(2.0) * max(radii) <= settings.smearing
        # images of slabs must not overlap; learned widths may double
        self.least_vacuum: float = (24.0 if learn_widths else 12.0) * max(radii)

    def set_solver(self, options: dict) -> None:
        """Choose how charges are solved for, which no weight depends on.

        :param options: the hypers ``solver``, ``tolerance`` and ``max_iterations``
        """
        self.solver = Solver(
            method=options["solver"],
            tolerance=float(options["tolerance"] or 0.0),
            max_iterations=int(options["max_iterations"]),
        )

    def describe(self, length_unit: str) -> str:
        """Solvers and parameters in words, to be logged.

        :param length_unit: of the data
        """
        dense = (
            f"dense up to {self.solver.largest_dense} atoms (isolated) or "
            f"{self.settings.mesh_threshold} atoms times k-vectors (periodic), larger ones "
            "iteratively"
        )
        method = self.solver.method
        solver = dense if method == "auto" else f"always {method} (by choice)"
        mode = "variational" if self.variational else "Coulomb part only (celli)"
        return (
            f"Charge equilibration: energy {mode}; solver {solver}; Coulomb matrix of relative "
            f"accuracy {self.accuracy:g}: smearing {self.settings.smearing:.4f} {length_unit}, "
            f"k-vectors to {self.settings.k_cutoff:.4f} 1/{length_unit}, mesh spacing "
            f"{self.settings.mesh_spacing:.4f} {length_unit}"
        )

    def hardness(self) -> torch.Tensor:
        """Hardness J of the species in 1/length ``[species]``; where it depends on the features,
        what they change it from."""
        return self.as_hardness(self.raw_hardness)

    def as_hardness(self, raw: torch.Tensor) -> torch.Tensor:
        """
        :param raw: any numbers
        :return: hardness in 1/length, above a limit that keeps the matrix of the charges positive
            definite
        """
        return (self.least_hardness + torch.nn.functional.softplus(raw)) / self.angstrom

    def hardness_of(self, x: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
        """
        :param x: scalar features ``[atoms, d]``
        :param species: of the atoms ``[atoms]``
        :return: hardness of the atoms ``[atoms]``, 1/length
        """
        raw = self.raw_hardness[species]
        if self.local_hardness is not None:
            raw = raw + self.local_hardness(x).squeeze(1)
        return self.as_hardness(raw)

    def widths(self) -> torch.Tensor:
        """Widths of the Gaussians of the species ``[species]``."""
        softplus = torch.nn.functional.softplus(self.raw_widths)
        return self.radii.to(softplus.dtype) * softplus / math.log(2.0)

    def forward(
        self, x: torch.Tensor, species_features: torch.Tensor, graph: Graph
    ) -> tuple[torch.Tensor, Charges]:
        """
        Solve for the charges and update the features.

        :param x: scalar features ``[atoms, d]``
        :param species_features: features of the atoms' species ``[atoms, num_species_features]``
        :param graph: of the batch, with total charges
        :return: new scalar features ``[atoms, d]``; the charges and their energy
        :raises ValueError: for a structure whose charges do not converge
        """
        hardness = self.hardness_of(x, graph.species)
        charges = self.equilibrate(self.chi(x, graph), hardness, graph)
        return self.respond(x, species_features, charges), charges

    def chi(self, x: torch.Tensor, graph: Graph) -> torch.Tensor:
        """
        :param x: scalar features ``[atoms, d]``
        :param graph: of the batch
        :return: electronegativities ``[atoms]``, e/length
        """
        chi = self.electronegativity(x).squeeze(1) + self.species_electronegativity[graph.species]
        return chi / self.angstrom

    def respond(
        self, x: torch.Tensor, species_features: torch.Tensor, charges: Charges
    ) -> torch.Tensor:
        """
        :param x: scalar features ``[atoms, d]``
        :param species_features: features of the atoms' species ``[atoms, num_species_features]``
        :param charges: of the atoms
        :return: new scalar features ``[atoms, d]``
        """
        # not the total charge: of two distant fragments each must see its own charge only
        q = charges.charges.unsqueeze(1)
        return self.update(x, torch.cat([q, species_features], dim=1))

    def equilibrate(self, chi: torch.Tensor, hardness: torch.Tensor, graph: Graph) -> Charges:
        """
        Charges for given electronegativities and hardnesses.

        :param chi: electronegativities ``[atoms]``, e/length
        :param hardness: ``[atoms]``, 1/length
        :param graph: of the batch, with total charges
        :return: the charges and their energy
        """
        interactions = self.interactions(graph, graph.species, hardness)
        acting, shift = chi, chi
        field = graph.field
        if field is not None:
            potentials, means = field_potentials(field, graph)
            # whose mean acts on the total charge alone, and may be large
            acting = chi + (potentials - means).to(chi.dtype) / (
                self.angstrom * self.coulomb_constant
            )
            shift = ((means if self.variational else potentials) / self.angstrom).to(chi.dtype)
        equilibrium = equilibrate(acting, interactions, self.solver, self.variational)
        energies = self.coulomb_constant * equilibrium.energies
        if field is not None:
            energies = energies + shift * equilibrium.charges
        return self.charges(chi, energies, equilibrium, hardness)

    def interactions(
        self, graph: Graph, species: torch.Tensor, hardness: torch.Tensor
    ) -> Interactions:
        """
        :param graph: of the batch
        :param species: of the atoms, and of neighbours of other processes ``[all atoms]``
        :param hardness: of the atoms ``[atoms]``, 1/length
        :return: what the energy of the charges depends on besides these
        """
        variances = self.widths() ** 2
        pair_weights = torch.zeros_like(graph.distances)
        if self.uses_pairs:
            atoms = variances[species]
            pair_variances = atoms[graph.centers] + atoms[graph.neighbors]
            pair_weights = short_range_weights(
                graph.distances, pair_variances, self.settings.smearing
            )
        return Interactions(
            graph=graph,
            hardness=hardness,
            species_hardness=self.hardness(),
            variances=variances,
            pair_weights=pair_weights,
            uses_pairs=self.uses_pairs,
            one_width=self.one_width,
            parameters=self.settings,
            angstrom=self.angstrom,
        )

    def charges(
        self,
        chi: torch.Tensor,
        energies: torch.Tensor,
        equilibrium: Equilibrium,
        hardness: torch.Tensor,
    ) -> Charges:
        """
        :param chi: electronegativities ``[atoms]``, e/length
        :param energies: ``[atoms]``, eV
        :param equilibrium: the charges
        :param hardness: of the atoms ``[atoms]``, 1/length
        :return: the same in the units of the outputs
        """
        return Charges(
            charges=equilibrium.charges,
            energies=energies,
            potentials=equilibrium.chi,
            electronegativity=self.coulomb_constant * chi,
            hardness=self.coulomb_constant * hardness,
            equilibrium=equilibrium,
        )


def field_potentials(field: torch.Tensor, graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param field: electric field on each structure ``[systems, 3]``, V/Å
    :param graph: of the batch
    :return: potential at each atom, zero at the origin of the coordinates, and its mean over the
        structure, in the precision of the structures ``[atoms]``, V/Å times length
    :raises ValueError: for periodic structures in a field
    """
    for i, dimension in enumerate(graph.boundaries.dimensions):
        if dimension > 0 and bool((field[i] != 0.0).any()):
            raise ValueError(
                f"structure {i} of the batch is periodic: it has no energy in an electric field. "
                "To first order the forces are its Born charges times the field"
            )
    positions, num_systems = join(graph.given), field.shape[0]
    potentials = -(positions * of_systems(field, graph.system_index)).sum(dim=1)
    counts = torch.tensor(graph.boundaries.counts, device=positions.device)
    means = sum_systems(potentials, graph.system_index, num_systems) / counts
    return potentials, of_systems(means, graph.system_index)


def covalent_radius(atomic_type: int) -> float:
    """
    :param atomic_type: atomic number
    :return: covalent radius in Å (Cordero et al., Dalton Trans. 2008, 2832)
    :raises ValueError: where there is none
    """
    if not 1 <= atomic_type <= 96:
        raise ValueError(
            "charge equilibration takes the widths of charges from covalent radii, but atomic "
            f"type {atomic_type} has none (1 to 96 have)"
        )
    return float(ase.data.covalent_radii[atomic_type])
