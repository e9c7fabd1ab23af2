"""Make the benchmark's own data sets with GFN2-xTB labels.

Run ``python benchmarks/accuracy/sets/make_sets.py`` (needs ``tblite``; some minutes on one core).
Labels and format are those of ``options/data/generate.py``. It writes beside itself

* ``dimers-{train,valid,near,far}.xyz``: pairs of hot NH₄⁺, HCOO⁻ and H₂O with total charges from
  −2 to +2 e. The parts are 1.8 to 5 Å apart, and 7 to 12 Å in the last file, where a cutoff of 5 Å
  sees two separate molecules.
* ``sn2-{train,valid,near,far}.xyz``: Cl⁻ + CH₃Br → CH₃Cl + Br⁻, displaced structures along the
  reaction. The halogen that is not bound is at most 6 Å from the carbon, and 7 to 12 Å in the last
  file.
* ``water-{train,valid,small,large}.xyz``: hot clusters of two to five molecules, and of eight in
  the last file.
* ``rotation-{train,valid,same,longer}.xyz``: cumulenes, CₙH₄, whose ends are turned against each
  other; n is 4, 6, 8 and 10, and 12 in the last file. From eight on no atom sees both ends
  within a cutoff of 5 Å.
* ``{dimers,sn2,nacl,rotation}-curves.xyz``: parts pulled apart, the reaction, and ends turned, in
  steps. A quarter of a turn is left out: levels cross there, and energies have a cusp.

Parts of a dimer must keep the charge they have alone, within 0.02 e. NH₄⁺ and HCOO⁻ beside each
other do not: GFN2-xTB lets charge flow between opposite ions that are far apart, so that this pair
is left out.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parents[2] / "options" / "data"))
import generate  # noqa: E402

TEMPERATURE = 300.0  # K
CHARGE_TOLERANCE = 0.02  # e
LARGEST_FORCE = 15.0  # eV/Å
NEAR, FAR = (1.8, 5.0), (7.0, 12.0)  # Å, smallest distance between atoms of the two parts
STEPS = np.round(np.geomspace(2.5, 20.0, 18), 2)  # Å, smallest distance of parts pulled apart
BOUND = {"Cl": 1.80, "Br": 1.95}  # Å, halogens to carbon
CHAINS = (4, 6, 8, 10)  # carbon atoms
LONGER = 12
ANGLES = np.arange(0.0, 76.0, 7.5)  # degrees
REACTION, APART = (1.8, 6.0), (7.0, 12.0)  # Å, from carbon to the halogen that is not bound

PAIRS = (
    ("NH4+", "NH4+"),
    ("HCOO-", "HCOO-"),
    ("NH4+", "H2O"),
    ("HCOO-", "H2O"),
    ("H2O", "H2O"),
)
TETRAHEDRON = np.array([[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1]]) / 3**0.5
MOLECULES = {
    "NH4+": (Atoms("NH4", np.vstack([np.zeros(3), 1.03 * TETRAHEDRON])), 1),
    "HCOO-": (Atoms("HCO2", [[0, 0, 1.1], [0, 0, 0], [1.1, 0, -0.55], [-1.1, 0, -0.55]]), -1),
    "H2O": (molecule("H2O"), 0),
}


def hot(atoms: Atoms, charge: int, count: int, rng: np.random.Generator) -> list[Atoms]:
    """Structures from Langevin dynamics, about their centres.

    :param atoms: starting structure
    :param charge: total charge in e
    :param count: number of structures
    """
    atoms = atoms.copy()
    atoms.calc = generate.xtb(charge)
    BFGS(atoms, logfile=None).run(fmax=0.3, steps=60)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * TEMPERATURE, rng=rng)
    dynamics = Langevin(
        atoms, units.fs, temperature_K=TEMPERATURE, friction=0.02 / units.fs, rng=rng, fixcm=False
    )
    dynamics.run(100)
    frames = []
    for _ in range(count):
        dynamics.run(10)
        frame = Atoms(atoms.symbols, atoms.positions - atoms.positions.mean(axis=0))
        frames.append(frame)
    return frames


def labelled(atoms: Atoms, charge: int) -> Atoms | None:
    """The structure with its labels; None where they do not converge or forces are huge."""
    try:
        atoms = generate.labelled(atoms, charge, [])
    except CalculationFailed:
        return None
    return atoms if np.abs(atoms.get_forces()).max() < LARGEST_FORCE else None


def dimers(each: int, gap: tuple[float, float], rng: np.random.Generator) -> list[Atoms]:
    """
    :param each: number of every pair
    :param gap: smallest and largest distance between the parts, Å
    """
    structures = []
    for first, second in PAIRS:
        charges = MOLECULES[first][1], MOLECULES[second][1]
        pools = [hot(*MOLECULES[name], each, rng) for name in (first, second)]
        for one, other in zip(*pools, strict=True):
            one.positions = one.positions @ generate.random_rotation(rng)
            turned = other.positions @ generate.random_rotation(rng)
            other.positions = generate.place_apart(one.positions, turned, rng.uniform(*gap))
            atoms = one + other
            # the pair's axis in all directions
            atoms.positions = atoms.positions @ generate.random_rotation(rng)
            atoms.positions -= atoms.positions.mean(axis=0)
            atoms = labelled(atoms, sum(charges))
            if atoms is None:
                continue
            moved = atoms.arrays["atomic_charge"][: len(one)].sum() - charges[0]
            if abs(moved) < CHARGE_TOLERANCE:
                structures.append(atoms)
    return structures


def along_reaction(
    inner: str, leaving: str, distance: float, stretch: float = 0.0, angle: float = 0.0
) -> Atoms:
    """CH₃ between two halogens.

    :param inner: the halogen that is bound
    :param leaving: the other one
    :param distance: from carbon to that, Å
    :param stretch: of the bond, Å
    :param angle: of the other one with the bond's axis
    """
    # the bond of the transition state is longer, for both halogens
    near = BOUND[inner] + 0.5 * np.exp(-(((distance - 2.3) / 0.4) ** 2)) + stretch
    distance = max(distance, near)
    flat = np.clip((distance - near) / 0.8, 0.0, 1.0)
    hydrogens = [[np.cos(a), np.sin(a), 0] for a in 2 * np.pi * np.arange(3) / 3]
    positions = [[0, 0, 0], [0, 0, near]]
    positions += [[distance * np.sin(angle), 0, -distance * np.cos(angle)]]
    positions += [[1.03 * x, 1.03 * y, -0.35 * flat] for x, y, _ in hydrogens]
    return Atoms(["C", inner, leaving, "H", "H", "H"], positions)


def reaction(count: int, outer: tuple[float, float], rng: np.random.Generator) -> list[Atoms]:
    """Cl⁻ + CH₃Br, half of it with the one and half with the other halogen bound.

    :param count: number of structures
    :param outer: smallest and largest distance of the halogen that is not bound, Å
    """
    structures: list[Atoms] = []
    while len(structures) < count:
        inner, leaving = ("Cl", "Br") if len(structures) % 2 else ("Br", "Cl")
        distance = rng.uniform(*outer)
        atoms = along_reaction(inner, leaving, distance, rng.normal(0, 0.08), rng.normal(0, 0.25))
        atoms.rattle(0.06, rng=rng)
        atoms.positions = atoms.positions @ generate.random_rotation(rng)
        atoms.positions -= atoms.positions.mean(axis=0)
        atoms = labelled(atoms, -1)
        if atoms is not None:
            structures.append(atoms)
    return structures


def water(each: int, sizes: tuple[int, ...], rng: np.random.Generator) -> list[Atoms]:
    """
    :param each: number of structures of every size
    :param sizes: numbers of molecules
    """
    structures = []
    for size in sizes:
        for _ in range(max(each // 6, 1)):
            cluster = molecule("H2O")
            while len(cluster) < 3 * size:
                positions = cluster.positions @ generate.random_rotation(rng)
                turned = molecule("H2O").positions @ generate.random_rotation(rng)
                moved = generate.place_apart(positions, turned, 1.9)
                cluster = Atoms(cluster.symbols, positions) + Atoms("OH2", moved)
            for frame in hot(cluster, 0, min(each, 6), rng):
                structures.append(labelled(frame, 0))
    return [atoms for atoms in structures if atoms is not None]


def pulled_apart(names: tuple[str, str], parts: dict[str, tuple[Atoms, int]]) -> list[Atoms]:
    """Two relaxed molecules, their distance, and where the second one starts.

    :param names: of the parts
    :param parts: name -> structure and charge
    """
    relaxed = []
    for name in names:
        atoms, charge = parts[name]
        atoms = atoms.copy()
        atoms.calc = generate.xtb(charge)
        BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
        relaxed.append((atoms.positions - atoms.positions.mean(axis=0), charge))
    (first, charge), (second, moved) = relaxed
    symbols = sum((parts[name][0].get_chemical_symbols() for name in names), [])
    curve = []
    for step in STEPS:
        positions = np.vstack([first, generate.place_apart(first, second, step)])
        atoms = labelled(Atoms(symbols, positions), charge + moved)
        if atoms is not None:
            atoms.info |= {"curve": " and ".join(names), "coordinate": step, "part": len(first)}
            curve.append(atoms)
    return curve


def reaction_path() -> list[Atoms]:
    """Cl⁻ + CH₃Br → CH₃Cl + Br⁻ in steps, with bromine as the last atom."""
    path = []
    for inner, leaving in (("Br", "Cl"), ("Cl", "Br")):
        for distance in np.concatenate([np.arange(2.5, 4.0, 0.2), np.arange(4.0, 12.1)]):
            atoms = along_reaction(inner, leaving, distance)
            bromine = 1 if inner == "Br" else 2
            atoms = labelled(atoms[[0, 3 - bromine, 3, 4, 5, bromine]], -1)
            if atoms is not None:
                far, near = atoms.get_distances(0, [5, 1])
                atoms.info |= {
                    "curve": "Cl- and CH3Br",
                    "coordinate": round(far - near, 3),
                    "part": 5,
                }
                path.append(atoms)
    return sorted(path, key=lambda atoms: atoms.info["coordinate"])


def cumulene(carbons: int, angle: float, bond: float = 1.28) -> Atoms:
    """A straight chain of carbon atoms with two hydrogen atoms at each end.

    :param carbons: number of carbon atoms
    :param angle: of the plane of the last two hydrogen atoms with that of the first two, degrees
    :param bond: between carbon atoms, Å
    """
    chain = [[0.0, 0.0, bond * i] for i in range(carbons)]
    ends = []
    for height, turn in ((-0.55, 0.0), (chain[-1][2] + 0.55, np.radians(angle))):
        x, y = 0.93 * np.cos(turn), 0.93 * np.sin(turn)
        ends += [[x, y, height], [-x, -y, height]]
    return Atoms(f"C{carbons}H4", chain + ends)


def turned(each: int, chains: tuple[int, ...], rng: np.random.Generator) -> list[Atoms]:
    """
    :param each: number of displaced structures of every length
    :param chains: numbers of carbon atoms
    """
    structures = []
    for carbons in chains:
        for _ in range(each):
            atoms = cumulene(carbons, rng.uniform(0.0, 180.0), rng.normal(1.28, 0.01))
            atoms.rattle(0.04, rng=rng)
            atoms.positions = atoms.positions @ generate.random_rotation(rng)
            atoms.positions -= atoms.positions.mean(axis=0)
            structures.append(labelled(atoms, 0))
    return [atoms for atoms in structures if atoms is not None]


def turned_in_steps(carbons: int) -> list[Atoms]:
    """Undisplaced chains, their angle, and where the end that is turned starts.

    :param carbons: number of carbon atoms
    """
    steps = []
    for angle in ANGLES:
        atoms = labelled(cumulene(carbons, angle), 0)
        assert atoms is not None
        atoms.info |= {"curve": f"C{carbons}H4", "coordinate": angle, "part": carbons + 2}
        steps.append(atoms)
    return steps


def write_set(name: str, make: Callable, files: dict[str, tuple]) -> None:
    """Write the files of a set, each from dynamics and random numbers of its own."""
    for seed, (file, arguments) in enumerate(files.items()):
        rng = np.random.default_rng(seed)
        structures = make(*arguments, rng)
        structures = [structures[i] for i in rng.permutation(len(structures))]
        generate.write(FOLDER / f"{name}-{file}.xyz", structures)
        print(f"{name}-{file}: {len(structures)} structures", flush=True)


if __name__ == "__main__":
    write_set(
        "dimers",
        dimers,
        {"train": (50, NEAR), "valid": (8, NEAR), "near": (16, NEAR), "far": (16, FAR)},
    )
    write_set(
        "sn2",
        reaction,
        {
            "train": (200, REACTION),
            "valid": (30, REACTION),
            "near": (60, REACTION),
            "far": (40, APART),
        },
    )
    sizes = (2, 3, 4, 5)
    write_set(
        "water",
        water,
        {"train": (48, sizes), "valid": (6, sizes), "small": (12, sizes), "large": (24, (8,))},
    )
    write_set(
        "rotation",
        turned,
        {
            "train": (50, CHAINS),
            "valid": (8, CHAINS),
            "same": (15, CHAINS),
            "longer": (30, (LONGER,)),
        },
    )
    pairs = (("NH4+", "NH4+"), ("HCOO-", "HCOO-"))
    curves = {
        "dimers": sum((pulled_apart(pair, MOLECULES) for pair in pairs), []),
        "sn2": reaction_path(),
        "nacl": pulled_apart(("Na5Cl4+", "Na2Cl+"), generate.starting_clusters()),
        "rotation": sum((turned_in_steps(carbons) for carbons in (6, 10, LONGER)), []),
    }
    for name, frames in curves.items():
        generate.write(FOLDER / f"{name}-curves.xyz", frames)
