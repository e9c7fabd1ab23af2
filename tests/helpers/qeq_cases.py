"""What the tests of charge equilibration share: three species, modules, batches."""

import copy

import numpy as np
import torch
from metatrain.utils.architectures import get_default_hypers

from metatrain_lorem.blocks.charge_equilibration import ChargeEquilibration
from metatrain_lorem.electrostatics.equilibration.equilibrium import response
from metatrain_lorem.graph import Graph

K_E = 14.399645
TYPES = [1, 8, 11]
HARDNESS = [1.2, 0.9, 0.4]
BOUNDARIES = [
    [False] * 3,
    [True, True, False],
    [True, False, True],
    [False, True, True],
    [True] * 3,
]
NAMES = ["FFF", "TTF", "TFT", "FTT", "TTT"]
# the mesh of the iterative solver would be huge at 1e-12; a longer cutoff makes it coarser
CUTOFF = 9.0
ACCURACY = {"dense": 1e-12, "iterative": 1e-10}


def make_module(
    solver="dense",
    energy="variational",
    cutoff=CUTOFF,
    types=TYPES,
    length_unit="angstrom",
    known_hardness=True,
    **options,
):
    """The block in double precision.

    :param known_hardness: whether the species have ``HARDNESS``
    :param options: hypers ``charge_equilibration`` that differ from tight ones
    """
    hypers = copy.deepcopy(get_default_hypers("lorem")["model"])
    hypers.update(num_features=8, num_species_features=2, cutoff=cutoff)
    block = hypers["charge_equilibration"]
    block.update(solver=solver, energy=energy, tolerance=1e-12)
    block["accuracy"] = ACCURACY.get(solver, block["accuracy"])
    block.update(options)
    torch.manual_seed(0)
    module = ChargeEquilibration(hypers, types, length_unit).double()
    if known_hardness:
        with torch.no_grad():
            values = torch.tensor([HARDNESS[TYPES.index(number)] for number in types])
            module.raw_hardness.copy_(torch.log(torch.expm1(values - 0.2)))
    return module


class Energy(torch.nn.Module):
    """Sum of the energies, with all its first derivatives in TorchScript too."""

    def __init__(self, module):
        super().__init__()
        self.charge_equilibration = module

    def forward(self, chi: torch.Tensor, graph: Graph) -> torch.Tensor:
        block = self.charge_equilibration
        result = block.equilibrate(chi, block.hardness()[graph.species], graph)
        energy = result.energies.sum()
        if torch.jit.is_scripting():
            equilibrium = result.equilibrium
            assert equilibrium is not None
            energy = energy + response(energy, equilibrium, graph.boundaries.first).sum()
        return energy


class Structures:
    """A batch with electronegativities and total charges."""

    def __init__(self, batch, structures, total_charges, cutoff=CUTOFF, seed=1, chi=None):
        rng = np.random.default_rng(seed)
        if chi is None:
            chi = [rng.normal(size=len(atoms), scale=0.3) for atoms in structures]
        self.structures, self.chi, self.total_charges = structures, chi, total_charges
        self.data = batch(structures, [values[:, None] for values in chi], cutoff)
        numbers = np.concatenate([atoms.numbers for atoms in structures])
        self.species = torch.tensor([TYPES.index(number) for number in numbers])
        self.hardness: torch.Tensor | None = None
        """Of each atom, where it is not that of the species."""

    def arguments(self, positions=None, strain=None, chi=None, dtype=torch.float64):
        """Of ``equilibrate``."""
        data = self.data.to(dtype)
        graph = data.graph(
            None if positions is None else positions.to(dtype),
            strain,
            least_vacuum=40.0,
            species=self.species,
            total_charge=torch.tensor(self.total_charges, dtype=torch.float64),
        )
        chi = data.charges[:, 0] if chi is None else chi
        return chi.to(dtype), graph

    def solve(self, module, **changes):
        chi, graph = self.arguments(**changes)
        hardness = module.hardness()[graph.species] if self.hardness is None else self.hardness
        return module.equilibrate(chi, hardness.to(chi.dtype), graph)

    def expected(self, module, number):
        """Arguments of the oracle for one structure."""
        atoms = self.structures[number]
        species = [TYPES.index(n) for n in atoms.numbers]
        hardness = module.hardness()[species]
        if self.hardness is not None:
            first = sum(len(atoms) for atoms in self.structures[:number])
            hardness = self.hardness[first : first + len(species)]
        return (
            atoms.positions,
            np.array(atoms.cell) * atoms.pbc[:, None],
            atoms.pbc,
            module.widths().detach().numpy()[species],
            hardness.detach().numpy(),
            self.chi[number],
            self.total_charges[number],
        )
