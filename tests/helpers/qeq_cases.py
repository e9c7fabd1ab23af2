"""What the tests of charge equilibration share: three species, modules, batches."""

import numpy as np
import torch

from metatrain_lorem.electrostatics.charge_equilibration import ChargeEquilibration

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
    accuracy=None,
    learn_widths=False,
    tolerance=1e-12,
    max_iterations=100,
    types=TYPES,
):
    torch.manual_seed(0)
    module = ChargeEquilibration(
        types,
        8,
        2,
        cutoff,
        "angstrom",
        energy,
        learn_widths,
        solver,
        ACCURACY[solver] if accuracy is None else accuracy,
        tolerance,
        max_iterations,
    ).double()
    with torch.no_grad():
        hardness = torch.tensor([HARDNESS[TYPES.index(number)] for number in types])
        module.raw_hardness.copy_(torch.log(torch.expm1(hardness - 0.2)))
    return module


class Energy(torch.nn.Module):
    """Sum of the energies, with all its first derivatives in TorchScript too."""

    def __init__(self, module):
        super().__init__()
        self.charge_equilibration = module

    def forward(
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
    ) -> torch.Tensor:
        result = self.charge_equilibration.equilibrate(
            chi,
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
        energy = result.energies.sum()
        if torch.jit.is_scripting():
            if len(result.structures) > 0:
                energy = energy + self.charge_equilibration.response(energy, result).sum()
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

    def arguments(self, positions=None, cells=None, chi=None, dtype=torch.float64):
        data = self.data
        positions = data.positions if positions is None else positions
        cells = data.cells if cells is None else cells
        chi = data.charges[:, 0] if chi is None else chi
        of_pairs = cells[data.system_index[data.centers]]
        shifts = (data.shifts.unsqueeze(1) @ of_pairs).squeeze(1)
        vectors = positions[data.neighbors] - positions[data.centers] + shifts
        return (
            chi.to(dtype),
            self.species,
            torch.tensor(self.total_charges, dtype=torch.float64),
            positions.to(dtype),
            cells.to(dtype),
            data.pbc,
            data.system_index,
            data.centers,
            data.neighbors,
            torch.linalg.vector_norm(vectors, dim=-1).to(dtype),
        )

    def solve(self, module, **changes):
        return module.equilibrate(*self.arguments(**changes))

    def expected(self, module, number):
        """Arguments of the oracle for one structure."""
        atoms = self.structures[number]
        species = [TYPES.index(n) for n in atoms.numbers]
        return (
            atoms.positions,
            np.array(atoms.cell) * atoms.pbc[:, None],
            atoms.pbc,
            module.widths().detach().numpy()[species],
            module.hardness().detach().numpy()[species],
            self.chi[number],
            self.total_charges[number],
        )
