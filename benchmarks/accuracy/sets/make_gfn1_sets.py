"""Make data sets with GFN1-xTB labels: a pulled ion, and gold on doped magnesium oxide.

Run ``python benchmarks/accuracy/sets/make_gfn1_sets.py`` (needs ``tblite``; twenty minutes on one
core). GFN1-xTB's older dispersion energy has none of the steps that disturb GFN2-xTB's labels of
sodium chloride: ``label_steps.py`` finds one in none of the 60 structures of ``pulled-near.xyz`` by
GFN1-xTB, and in 27 by GFN2-xTB. It writes beside itself

* ``pulled-{train,valid,near,far,curves}.xyz``: hot Na₉Cl₈⁺ and Na₈Cl₈, one sodium ion of them
  pulled away by at most 4 Å, by 4 to 8 Å in ``far``, and in steps. Farther away GFN1-xTB gives
  electrons of the neutral cluster to the ion: ions in ``far`` have at least 0.9 e, and the curve
  of Na₈Cl₈ ends where labels do not converge any more, at 7 Å.
* ``gold-{train,valid,test,curves}.xyz``: Au₂ on four layers of MgO(001), lying or upright or
  between these, half of them with three aluminium atoms in the lowest layer, 8.8 Å or more from
  the gold; in steps from lying to upright. The gold and the upper layer are displaced, the three
  lower layers, aluminium among them, are the same in all. Three periodic directions, with vacuum.

Energies of a periodic slab depend on its vacuum in ``tblite``, by 2 eV of 74 atoms from 14 to 20 Å:
all structures with gold have the same cell. What aluminium changes, upright less lying, depends
little, -0.19, -0.17 and -0.15 eV with 14, 20 and 28 Å.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from tblite.ase import TBLite

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parents[2] / "options" / "data"))
import generate  # noqa: E402

LARGEST_FORCE = 15.0  # eV/Å
PULLED, FAR = (0.0, 4.0), (4.0, 8.0)  # Å, from where the ion is bound
ION_CHARGE = 0.9  # e, less where GFN1-xTB takes electrons from the anion far away
OXIDE = 4.21  # Å, lattice constant of MgO
LAYERS, WIDTH, VACUUM = 4, 3, 14.0  # of the oxide: layers, cells across, Å
ALUMINIUM = 3


def xtb(charge: int) -> TBLite:
    # levels of slabs with aluminium are partly filled
    return TBLite(method="GFN1-xTB", charge=charge, electronic_temperature=600.0, verbosity=0)


def labelled(atoms: Atoms, charge: int) -> Atoms | None:
    """The structure with its labels; None where they do not converge or forces are huge.

    :param charge: total charge in e
    """
    atoms = atoms.copy()
    atoms.set_constraint()
    atoms.positions = atoms.positions.round(5)
    atoms.calc = xtb(charge)
    try:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    except CalculationFailed:
        return None
    if np.abs(forces).max() > LARGEST_FORCE:
        return None
    charges = atoms.get_charges()
    dipole = atoms.get_dipole_moment() - charge * atoms.get_center_of_mass()
    if not atoms.pbc.any():
        atoms.info["dipole_moment"] = dipole
    atoms.info["charge"] = charge
    atoms.arrays["atomic_charge"] = charges
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def write(name: str, structures: list[Atoms]) -> None:
    generate.write(FOLDER / f"{name}.xyz", structures)
    print(f"{name}: {len(structures)} structures", flush=True)


def write_set(name: str, make: Callable, files: dict[str, tuple]) -> None:
    """Write the files of a set, each from random numbers of its own."""
    for seed, (file, arguments) in enumerate(files.items()):
        rng = np.random.default_rng(seed)
        structures = make(*arguments, rng)
        write(f"{name}-{file}", [structures[i] for i in rng.permutation(len(structures))])


def relaxed(atoms: Atoms, charge: int, steps: int = 200) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = xtb(charge)
    BFGS(atoms, logfile=None).run(fmax=0.03, steps=steps)
    return atoms


def clusters() -> list[tuple[Atoms, int, int, np.ndarray]]:
    """Relaxed cluster, total charge, the ion that is pulled, and its direction."""
    found = []
    for name in ("Na9Cl8+", "Na8Cl8"):
        cluster, charge = generate.starting_clusters()[name]
        cluster.rattle(0.01)
        cluster = relaxed(cluster, charge)
        sodium = np.flatnonzero(cluster.numbers == 11)
        away = np.linalg.norm(cluster.positions - cluster.positions.mean(axis=0), axis=1)
        # the one that caps the bar, or a corner
        ion = 16 if charge else sodium[np.argmax(away[sodium])]
        axis = cluster.positions[ion] - np.delete(cluster.positions, ion, axis=0).mean(axis=0)
        found.append((cluster, charge, int(ion), axis / np.linalg.norm(axis)))
    return found


def pulled(each: int, distance: tuple[float, float], rng: np.random.Generator) -> list[Atoms]:
    """
    :param each: number of structures of each cluster
    :param distance: smallest and largest one of the ion, Å
    """
    structures = []
    for cluster, charge, ion, axis in clusters():
        cluster.calc = xtb(charge)
        MaxwellBoltzmannDistribution(cluster, temperature_K=600.0, rng=rng)
        dynamics = Langevin(
            cluster, 5 * units.fs, temperature_K=300.0, friction=0.01 / units.fs, rng=rng
        )
        dynamics.run(100)
        kept = 0
        while kept < each:
            dynamics.run(10)
            moved = Atoms(cluster.symbols, cluster.positions)
            moved.positions[ion] += rng.uniform(*distance) * axis
            moved.positions = moved.positions @ generate.random_rotation(rng)
            moved.positions -= moved.positions.mean(axis=0)
            moved = labelled(moved, charge)
            if moved is None or (
                distance == FAR and moved.arrays["atomic_charge"][ion] < ION_CHARGE
            ):
                continue
            structures.append(moved)
            kept += 1
    return structures


def pulled_in_steps() -> list[Atoms]:
    """The relaxed clusters, the ion as the last atom."""
    frames = []
    for cluster, charge, ion, axis in clusters():
        order = [*(i for i in range(len(cluster)) if i != ion), ion]
        for step in (*np.arange(-0.25, 4.0, 0.25), *np.arange(4.0, 8.1, 0.5)):
            moved = Atoms(cluster.symbols, cluster.positions)[order]
            moved.positions[-1] += step * axis
            moved = labelled(moved, charge)
            if moved is None or step > 2.0 and moved.arrays["atomic_charge"][-1] < 0.75:
                break
            name = "Na9Cl8+" if charge else "Na8Cl8"
            moved.info |= {"curve": name, "coordinate": step, "part": len(moved) - 1}
            frames.append(moved)
    return frames


def oxide() -> Atoms:
    """Layers of MgO(001), the lowest one at height zero."""
    across = OXIDE / 2**0.5
    sites = []
    for layer in range(LAYERS):
        for i, j in np.ndindex(WIDTH, WIDTH):
            # metal above oxygen
            for symbol, shift in (("Mg", 0.5 * (layer % 2)), ("O", 0.5 * (1 + layer % 2))):
                sites.append((symbol, (i + shift, j + shift, layer)))
    height = OXIDE / 2
    positions = np.array([site for _, site in sites]) * [across, across, height]
    cell = [WIDTH * across, WIDTH * across, (LAYERS - 1) * height + VACUUM]
    atoms = Atoms([symbol for symbol, _ in sites], positions, cell=cell, pbc=True)
    atoms.positions[:, :2] %= WIDTH * across
    return atoms


def with_gold(doped: bool) -> tuple[Atoms, Atoms]:
    """Relaxed Au₂, lying and upright; of the oxide the upper layer is relaxed, too."""
    slab = oxide()
    if doped:
        lowest = np.flatnonzero((slab.numbers == 12) & (slab.positions[:, 2] < 0.1))
        slab.symbols[lowest[:ALUMINIUM]] = "Al"
    top = slab.positions[:, 2].max()
    oxygen = slab.positions[(slab.numbers == 8) & (slab.positions[:, 2] > top - 0.1)]
    middle = slab.cell.lengths()[0] / 2
    one, other = oxygen[np.argsort(np.linalg.norm(oxygen[:, :2] - middle, axis=1))[:2]]
    along = (other - one) / np.linalg.norm(other - one)
    centre = (one + other) / 2 + [0, 0, 2.6]
    found = []
    for gold in (
        [centre - 1.31 * along, centre + 1.31 * along],
        [one + [0, 0, 2.35], one + [0, 0, 4.89]],
    ):
        atoms = slab + Atoms("Au2", gold)
        atoms.set_constraint(FixAtoms(mask=atoms.positions[:, 2] < top - 0.1))
        found.append(relaxed(atoms, 0, steps=60))
    return found[0], found[1]


def between(lying: Atoms, upright: Atoms, share: float) -> Atoms:
    """
    :param share: 0 is lying and 1 upright; the bond, of mean length, turns
    """
    atoms = lying.copy()
    atoms.positions = (1 - share) * lying.positions + share * upright.positions
    bonds = [x.positions[-1] - x.positions[-2] for x in (lying, upright)]
    lengths = [np.linalg.norm(bond) for bond in bonds]
    angle = share * np.pi / 2
    bond = np.cos(angle) * bonds[0] / lengths[0] + np.sin(angle) * bonds[1] / lengths[1]
    bond *= ((1 - share) * lengths[0] + share * lengths[1]) / np.linalg.norm(bond)
    centre = atoms.positions[-2:].mean(axis=0)
    atoms.positions[-2:] = centre - bond / 2, centre + bond / 2
    return atoms


def gold(each: int, rng: np.random.Generator, ends: dict[bool, tuple[Atoms, Atoms]]) -> list[Atoms]:
    """
    :param each: number of structures with and without aluminium
    :param ends: relaxed ones, see :func:`with_gold`
    """
    structures = []
    for pair in ends.values():
        for _ in range(each):
            # a third of each kind
            share = rng.choice([0.0, 1.0, rng.uniform()])
            atoms = between(*pair, share)
            atoms.rattle(0.04, rng=rng)
            atoms.positions[-2:] += rng.normal(0, [0.1, 0.1, 0.15], 3)
            structures.append(labelled(atoms, 0))
    return [atoms for atoms in structures if atoms is not None]


def gold_in_steps(ends: dict[bool, tuple[Atoms, Atoms]]) -> list[Atoms]:
    frames = []
    for doped, pair in ends.items():
        for share in np.linspace(0, 1, 10):
            atoms = labelled(between(*pair, share), 0)
            assert atoms is not None
            atoms.info |= {
                "curve": "Au2 on MgO with Al" if doped else "Au2 on MgO",
                "coordinate": round(90 * share),
                "part": len(atoms) - 2,
            }
            frames.append(atoms)
    return frames


def main() -> None:
    files = {
        "train": (100, PULLED),
        "valid": (15, PULLED),
        "near": (30, PULLED),
        "far": (20, FAR),
    }
    write_set("pulled", pulled, files)
    write("pulled-curves", pulled_in_steps())
    ends = {doped: with_gold(doped) for doped in (False, True)}
    write_set(
        "gold",
        lambda each, rng: gold(each, rng, ends),
        {"train": (90,), "valid": (12,), "test": (24,)},
    )
    write("gold-curves", gold_in_steps(ends))


if __name__ == "__main__":
    main()
