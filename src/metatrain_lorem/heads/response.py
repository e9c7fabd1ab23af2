r"""How polarisation answers to displacements and fields, where it is made of charges.

With the charges :math:`q_j` and, where they are learned, the dipole moments :math:`\mu_j` of atoms,

.. math::
    P = \sum_j q_j (r_j - r_0) + \sum_j \mu_j , \qquad
    Z^*_{i,\beta\alpha} = \frac{\partial P_\alpha}{\partial r_{i\beta}} , \qquad
    \alpha_{\alpha\beta} = \frac{\partial P_\alpha}{\partial E_\beta}

for isolated structures. The first index of Born charges is that of the displacement, so that the
force in a field E is :math:`Z^*_i E`, as in i-PI and lorem-jax. They are derivatives about a fixed
origin :math:`r_0`: those of all atoms sum to the total charge. Along periodic directions, with
fractional coordinates s and cell vectors a, what the charges of other atoms do counts by the phases
between the atoms,

.. math::
    Z^*_i = q_i + \frac{1}{2\pi} \sum_{ja} \sin\bigl(2\pi (s_{ja} - s_{ia})\bigr)
    \frac{\partial q_j}{\partial r_i} \otimes a + \sum_j \frac{\partial \mu_j}{\partial r_i} ,

which is latent Ewald summation's (arXiv 2504.05169) for cells of any shape; directions that are not
periodic keep the open form.
"""

import math
from typing import Final

import ase.data
import torch
from metatomic.torch import ModelOutput, unit_conversion_factor
from metatrain.utils.data import DatasetInfo, TargetInfo

from ..blocks.charge_equilibration import Charges
from ..electrostatics.equilibration.equilibrium import response
from ..graph import Graph
from ..indexing import join, of_systems, sum_systems

POLARIZATION = "mtt::polarization"
"""Dipole moment of isolated structures, from charges."""

BORN_CHARGE = "mtt::born_effective_charge"
"""Derivative by the position of an atom (first index) of the polarisation (second index)."""

BORN_EXCESS = "mtt::aux::born_effective_charge_excess"
"""What the sum rule takes from the Born charge of each atom."""

POLARIZABILITY = "mtt::polarizability"
"""Derivative of the polarisation (first index) by a uniform field (second index)."""

COMPONENTS = {
    POLARIZATION: ["xyz"],
    BORN_CHARGE: ["displacement", "polarization"],
    BORN_EXCESS: ["displacement", "polarization"],
    POLARIZABILITY: ["polarization", "field"],
}
"""Names of the Cartesian indices of outputs. Where Born charges are a target, metatrain names
theirs, ``xyz_1`` and ``xyz_2``; the order is the same."""


def check_born_target(name: str, target: TargetInfo) -> None:
    """
    :param name: of the target, ``mtt::born_effective_charge`` or a variant of it
    :param target: its description
    :raises ValueError: if it is no matrix per atom in e, and for variants, which nothing would
        derive from charges or make obey the sum rule
    """
    if name != BORN_CHARGE:
        raise ValueError(
            f"target '{name}': there are no variants of Born charges, as a structure has one set "
            f"of them. Call the target '{BORN_CHARGE}', also in fine-tuning, and train on one kind "
            "of labels"
        )
    block = target.layout.block(0)
    shape = [len(component) for component in block.components]
    if (
        not target.is_cartesian
        or target.sample_kind != "atom"
        or shape != [3, 3]
        or len(block.properties) != 1
        or target.unit not in ("", "e")
    ):
        raise ValueError(
            f"target '{BORN_CHARGE}' must be one matrix per atom in e: `type: cartesian: rank: 2`, "
            "`sample_kind: atom`, `unit: e`"
        )


def check_polarizability_target(target: TargetInfo, length_unit: str) -> None:
    """
    :param target: description of ``mtt::polarizability``, where it trains charges
    :param length_unit: of positions
    :raises ValueError: if it is no matrix per structure in the third power of this unit
    """
    block = target.layout.block(0)
    shape = [len(component) for component in block.components]
    unit = f"{length_unit or 'angstrom'}^3"
    try:
        factor = unit_conversion_factor(unit, target.unit or unit)
    except (RuntimeError, ValueError):
        factor = 0.0
    if (
        not target.is_cartesian
        or target.sample_kind != "system"
        or shape != [3, 3]
        or len(block.properties) != 1
        or factor != 1.0
    ):
        raise ValueError(
            f"target '{POLARIZABILITY}' must be one matrix per structure in {unit}: `type: "
            f"cartesian: rank: 2`, `sample_kind: system`, `unit: {unit}`"
        )


def check_derived(
    outputs: dict[str, ModelOutput], derived: list[str], dataset_info: DatasetInfo
) -> None:
    """Refuse to train targets that the model derives from its charges, and variants of them.
    Models of older versions that were trained on such a target keep it.

    :param outputs: that follow from charges
    :param derived: those that do so although they are targets, and train the charges
    :param dataset_info: targets of the model
    :raises ValueError: for any other such target but Born charges, which train charges or a head
    """
    for name in dataset_info.targets:
        base = name.split("/")[0]
        if base in outputs and base != BORN_CHARGE and name not in derived:
            raise ValueError(
                f"target '{name}': models with charges derive '{base}' from them, so that it can't "
                "be a target. Labels of dipole moments go to 'mtt::dipole_moment', of Born charges "
                f"to '{BORN_CHARGE}', with long_range.energy: charges those of polarisabilities to "
                f"'{POLARIZABILITY}'; what is to be learned beside it needs another name"
            )


def response_outputs(answering: bool, length_unit: str) -> dict[str, ModelOutput]:
    """
    :param answering: whether charges answer to fields
    :param length_unit: of positions
    :return: outputs of a model with charges
    """
    length = length_unit or "angstrom"
    outputs = {
        POLARIZATION: ModelOutput(
            unit=f"e*{length}",
            sample_kind="atom",
            description="dipole moment about the centre of mass, NaN for periodic structures",
        ),
        **born_outputs(),
    }
    if answering:
        outputs[POLARIZABILITY] = ModelOutput(
            unit=f"{length}^3",
            sample_kind="atom",
            description="derivative of the polarisation by a uniform field, over 4 pi epsilon_0; "
            "NaN for periodic structures",
        )
    return outputs


def born_outputs() -> dict[str, ModelOutput]:
    """:return: Born charges, and what the sum rule took from them"""
    return {
        BORN_CHARGE: ModelOutput(
            unit="e",
            sample_kind="atom",
            description="derivative by the position of the atom (first index) of the polarisation "
            "(second index)",
        ),
        BORN_EXCESS: ModelOutput(
            unit="e", sample_kind="atom", description="what the sum rule took from Born charges"
        ),
    }


def obey_sum_rule(born: torch.Tensor, graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The acoustic sum rule, :math:`\sum_i Z^*_i = Q`: no current when all atoms move as one.

    In the precision of the structures, since engines check the sum.

    :param born: Born charges ``[atoms, 3, 3]``, e
    :param graph: of the batch
    :return: Born charges that obey it; what was taken from each atom, evenly in each structure;
        both ``[atoms, 3, 3]``, e
    """
    num_systems, born = graph.pbc.shape[0], born.to(graph.given[0].dtype)
    unit = torch.eye(3, dtype=born.dtype, device=born.device)
    counts = sum_systems(torch.ones_like(born[:, :1, :1]), graph.system_index, num_systems)
    excess = sum_systems(born, graph.system_index, num_systems)
    excess = (excess - graph.total_charge.to(born.dtype).view(-1, 1, 1) * unit) / counts
    excess = excess[graph.system_index]
    return born - excess, excess


def from_center_of_mass(masses: torch.Tensor, graph: Graph) -> torch.Tensor:
    """
    :param masses: of the species
    :param graph: of the batch
    :return: positions about the centre of mass of each structure ``[atoms, 3]``
    """
    positions, index = graph.positions, graph.system_index
    masses = masses.to(positions.dtype)[graph.species].unsqueeze(1)
    weighted = torch.cat([masses * positions, masses], dim=1)
    zeros = torch.zeros([graph.pbc.shape[0], 4], dtype=positions.dtype, device=index.device)
    sums = zeros.index_add(0, index, weighted)
    centers = sums[:, :3] / sums[:, 3:]
    return positions - centers[index]


class ChargeResponse(torch.nn.Module):
    r"""Polarisation, Born charges and polarisability from charges.

    :param atomic_types: atomic numbers of the species
    :param epsilon_infinity: dielectric constant of the electrons in periodic structures; what
        energies show of charges is screened by it, so that Born charges are larger by its root
    """

    polarization: Final[str]  # TorchScript knows no strings of other modules
    born_charge: Final[str]
    born_excess: Final[str]
    polarizability: Final[str]

    def __init__(self, atomic_types: list[int], epsilon_infinity: float = 1.0) -> None:
        super().__init__()
        self.screening: float = math.sqrt(epsilon_infinity)
        self.polarization = POLARIZATION
        self.born_charge = BORN_CHARGE
        self.born_excess = BORN_EXCESS
        self.polarizability = POLARIZABILITY
        known = dict(enumerate(ase.data.atomic_masses))
        masses = torch.tensor([known.get(number, 1.0) for number in atomic_types])
        self.register_buffer("masses", masses, persistent=False)

    def forward(
        self,
        q: torch.Tensor,
        dipoles: torch.Tensor | None,
        charges: Charges | None,
        graph: Graph,
        outputs: list[str],
    ) -> dict[str, list[torch.Tensor]]:
        """
        :param q: charges ``[atoms]``, e
        :param dipoles: of the atoms ``[atoms, 3]``, e length, where they are learned
        :param charges: of a block, if they are its
        :param graph: of the batch
        :param outputs: names of what to evaluate
        :return: per output one array ``[atoms, components ..., 1]``
        """
        values: dict[str, list[torch.Tensor]] = {}
        offsets = from_center_of_mass(self.masses, graph)
        periodic = graph.pbc.any(dim=1)[graph.system_index].view(-1, 1, 1)
        # training has no labels there
        undefined = 0.0 if self.training else math.nan
        if self.polarization in outputs:
            polarization = q.unsqueeze(1) * offsets
            if dipoles is not None:
                polarization = polarization + dipoles
            polarization = polarization.unsqueeze(2).masked_fill(periodic, undefined)
            values[self.polarization] = [polarization]
        field = self.polarizability in outputs and charges is not None
        if self.born_charge in outputs or self.born_excess in outputs or field:
            unit = torch.eye(3, dtype=q.dtype, device=q.device)
            born = q.view(-1, 1, 1) * unit
            polarizability = torch.zeros_like(born)
            offsets = offsets.detach()
            for weights, directions, along in waves(offsets, graph, dipoles is not None):
                change = (q * weights).sum()
                if along >= 0 and dipoles is not None:
                    change = change + dipoles[:, along].sum()
                by_position, by_potential = self.derivatives(change, charges, graph)
                by_position = by_position.to(born.dtype)
                born = born + by_position.unsqueeze(2) * directions.unsqueeze(1)
                if along >= 0:
                    # the potential of a field along an axis is minus the position
                    rows = -by_potential.unsqueeze(1) * offsets
                    polarizability = polarizability + unit[along].view(1, 3, 1) * rows.unsqueeze(1)
            if not self.training:
                # no derivatives at all rather than a part of them
                born, polarizability = born.detach(), polarizability.detach()
            if self.screening != 1.0:
                born = torch.where(periodic, self.screening * born, born)
            born, excess = obey_sum_rule(born, graph)
            if self.born_charge in outputs:
                values[self.born_charge] = [born.unsqueeze(3)]
            if self.born_excess in outputs:
                values[self.born_excess] = [excess.unsqueeze(3)]
            if field:
                polarizability = polarizability.masked_fill(periodic, undefined)
                values[self.polarizability] = [polarizability.unsqueeze(3)]
        return values

    def derivatives(
        self, change: torch.Tensor, charges: Charges | None, graph: Graph
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param change: a function of the charges, summed over all structures
        :param charges: of a block, if they are its
        :param graph: of the batch
        :return: derivatives by positions ``[atoms, 3]`` and by potentials ``[atoms]``
        """
        variables = list(graph.given)
        if charges is not None:
            variables.append(charges.potentials)
            equilibrium = charges.equilibrium
            if torch.jit.is_scripting() and equilibrium is not None:
                if len(equilibrium.structures) > 0:
                    first = graph.boundaries.first
                    change = change + response(change, equilibrium, first).sum()
        derivatives: list[torch.Tensor] = []
        if change.requires_grad:
            found = torch.autograd.grad(
                [change],
                variables,
                retain_graph=True,
                create_graph=self.training,
                allow_unused=True,
            )
            for variable, derivative in zip(variables, found):  # noqa: B905
                if derivative is None:
                    derivative = torch.zeros_like(variable)
                derivatives.append(derivative)
        else:
            for variable in variables:
                derivatives.append(torch.zeros_like(variable))
        by_position = join(derivatives[: len(graph.given)])
        if charges is None:
            return by_position, torch.zeros_like(by_position[:, 0])
        return by_position, derivatives[-1]


def waves(
    offsets: torch.Tensor, graph: Graph, open_too: bool
) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    r"""
    What the response of the charges is weighted with: for :math:`w` and :math:`v` here, the Born
    charge of atom i has the part :math:`\partial_i (\sum_j w_j q_j) \otimes v_i`.

    :param offsets: positions about a fixed point ``[atoms, 3]``
    :param graph: of the batch
    :param open_too: whether to return open parts even where all structures are fully periodic
    :return: w ``[atoms]``, v ``[atoms, 3]``, and the Cartesian direction of open parts, -1 for
        the phases along periodic directions
    """
    found: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    index = graph.system_index
    cells = graph.cells.detach()
    # vectors of directions that are not periodic are zero
    inverse = torch.linalg.pinv(cells)
    fractions = torch.matmul(offsets.unsqueeze(1), of_systems(inverse, index))
    phases = 2.0 * math.pi * fractions.squeeze(1)
    periodic: list[bool] = graph.pbc.any(dim=0).tolist()
    for a in range(3):
        if periodic[a]:
            vectors = of_systems(cells[:, a], index) / (2.0 * math.pi)
            sin, cos = torch.sin(phases[:, a]), torch.cos(phases[:, a])
            found.append((sin, cos.unsqueeze(1) * vectors, -1))
            found.append((cos, -sin.unsqueeze(1) * vectors, -1))
    if open_too or not bool(graph.pbc.all()):
        inside = torch.matmul(fractions, of_systems(cells, index)).squeeze(1)
        for along in range(3):
            directions = torch.zeros_like(offsets)
            directions[:, along] = 1.0
            found.append((offsets[:, along] - inside[:, along], directions, along))
    return found
