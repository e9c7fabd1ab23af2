"""Make the data sets of ``options/``: sodium chloride with GFN2-xTB labels.

Run ``python options/data/generate.py`` (needs ``tblite``; about ten minutes on one core). It
writes beside itself

* ``nacl-clusters-{train,valid,test}.xyz``: hot clusters with charges from 0 to +3 e, many of them
  with one or two ions pulled away beyond the usual cutoff of 5 Å,
* ``nacl-crystal-{train,test}.xyz``: distorted periodic rocksalt cells.

Every label comes from one GFN2-xTB calculation: ``energy`` (eV), ``forces`` (eV/Å),
``atomic_charge`` (Mulliken, e), ``dipole_moment`` (e·Å, about the centre of mass, because the
dipole of an ion depends on the origin; clusters only), ``stress`` (eV/Å³; crystals only) and the
total ``charge`` (e).

Which ions can be pulled away is limited by GFN2-xTB. A bare Na⁺ or Cl⁻ far from its cluster
keeps only 0.4 to 0.7 e, since the empty level of the one part lies below the filled level of the
other. Two parts that are both positive, or a large positive one beside a neutral one, keep their
charges at every distance. Hence the ions here are Na₂Cl⁺ and Na₅Cl₄⁺, and the charge of each part
is checked.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from tblite.ase import TBLite

FOLDER = Path(__file__).parent
SPACING = 2.75  # Å, Na-Cl distance of the starting lattices
TEMPERATURES = (300.0, 500.0)  # K
TIME_STEP = 5.0  # fs
STEPS_BETWEEN_FRAMES = 15
STEPS_TO_EQUILIBRATE = 100
GAP = (5.0, 8.0)  # Å, smallest distance between an atom of an ion and one of the rest
CHARGE_TOLERANCE = 0.05  # e
CURVE = ("curve", "coordinate", "part")  # name, Å, first atom of what is moved

# parts joined by ".." are kept apart; the numbers are structures of each kind
KINDS = (
    "Na8Cl8",
    "Na9Cl8+",
    "Na4Cl4..Na5Cl4+",
    "Na5Cl4+..Na2Cl+",
    "Na5Cl4+..Na2Cl+..Na2Cl+",
)
SUBSETS = {
    "train": (60, 60, 100, 200, 180),
    "valid": (8, 8, 12, 24, 20),
    "test": (15, 15, 25, 50, 45),
}


def lattice_block(*counts: int) -> Atoms:
    """A block of the rocksalt lattice with sodium at its first corner.

    :param counts: number of atoms along the three axes
    """
    sites = np.array(list(np.ndindex(*counts)))
    symbols = np.where(sites.sum(axis=1) % 2 == 0, "Na", "Cl")
    return Atoms(symbols, SPACING * sites)


def starting_clusters() -> dict[str, tuple[Atoms, int]]:
    """Name -> (cluster, total charge in e)."""
    neutral = lattice_block(2, 2, 4)
    # the ninth sodium caps one end of the bar
    charged = neutral + Atoms("Na", [[SPACING / 2, SPACING / 2, -0.9 * SPACING]])
    return {
        "Na8Cl8": (neutral, 0),
        "Na9Cl8+": (charged, 1),
        "Na4Cl4": (lattice_block(2, 2, 2), 0),
        "Na5Cl4+": (lattice_block(3, 3, 1), 1),
        "Na2Cl+": (lattice_block(3, 1, 1), 1),
    }


def xtb(charge: int) -> TBLite:
    return TBLite(method="GFN2-xTB", charge=charge, verbosity=0)


def sample_hot(
    cluster: Atoms, charge: int, count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Positions from Langevin dynamics, an equal share at each temperature.

    :param cluster: starting structure, N atoms
    :param charge: total charge in e
    :param count: number of frames
    :return: ``count`` arrays of positions [N, 3] in Å
    """
    frames = []
    for temperature, share in zip(TEMPERATURES, np.array_split(np.arange(count), 2), strict=True):
        atoms = cluster.copy()
        atoms.rattle(0.02, rng=rng)
        atoms.calc = xtb(charge)
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
        dynamics = Langevin(
            atoms,
            TIME_STEP * units.fs,
            temperature_K=temperature,
            friction=0.01 / units.fs,
            rng=rng,
            fixcm=False,
        )
        dynamics.run(STEPS_TO_EQUILIBRATE)
        for _ in share:
            dynamics.run(STEPS_BETWEEN_FRAMES)
            frames.append(atoms.positions - atoms.positions.mean(axis=0))
    return frames


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniformly distributed rotation matrix [3, 3]."""
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix *= np.sign(np.diag(upper))
    return matrix * np.linalg.det(matrix)


def place_apart(first: np.ndarray, second: np.ndarray, gap: float) -> np.ndarray:
    """Shift ``second`` along x until the smallest distance to ``first`` is ``gap``.

    :param first: positions [N, 3] in Å
    :param second: positions [M, 3] in Å
    :param gap: smallest distance in Å
    :return: shifted positions [M, 3]
    """
    near, far = 0.0, gap + np.ptp(first[:, 0]) + np.ptp(second[:, 0])
    for _ in range(40):
        middle = (near + far) / 2
        shifted = second + [middle, 0.0, 0.0]
        distance = np.linalg.norm(first[:, None] - shifted[None], axis=-1).min()
        near, far = (middle, far) if distance < gap else (near, middle)
    return shifted


def labelled(atoms: Atoms, charge: int, parts: list[tuple[int, int]]) -> Atoms | None:
    """Attach the GFN2-xTB labels, or return None where they make no sense.

    :param atoms: structure
    :param charge: total charge in e
    :param parts: (number of atoms, charge in e) of every part, in the order of the atoms
    """
    atoms.positions = atoms.positions.round(5)  # as written, so that the labels belong to the file
    atoms.calc = xtb(charge)
    atoms.get_potential_energy()
    charges = atoms.get_charges()
    start = 0
    for size, part_charge in parts:
        if abs(charges[start : start + size].sum() - part_charge) > CHARGE_TOLERANCE:
            return None
        start += size
    atoms.info["charge"] = charge
    # tblite gives the dipole about the origin of the coordinates
    atoms.info["dipole_moment"] = atoms.get_dipole_moment() - charge * atoms.get_center_of_mass()
    atoms.arrays["atomic_charge"] = charges
    return atoms


def cluster_set(counts: tuple[int, ...], rng: np.random.Generator) -> list[Atoms]:
    """The structures of one file.

    :param counts: number of structures of each of ``KINDS``
    """
    clusters = starting_clusters()
    structures: list[Atoms] = []
    dropped = 0
    for kind, count in zip(KINDS, counts, strict=True):
        names = kind.split("..")
        pools = [sample_hot(*clusters[name], count, rng) for name in names]
        symbols = sum((clusters[name][0].get_chemical_symbols() for name in names), [])
        parts = [(len(clusters[name][0]), clusters[name][1]) for name in names]
        for frames in zip(*pools, strict=True):
            positions = frames[0]
            for part in frames[1:]:
                # the new part comes along a random direction
                positions = positions @ random_rotation(rng)
                moved = place_apart(positions, part @ random_rotation(rng), rng.uniform(*GAP))
                positions = np.concatenate([positions, moved])
            atoms = labelled(Atoms(symbols, positions), sum(q for _, q in parts), parts)
            if atoms is None:
                dropped += 1
            else:
                structures.append(atoms)
    print(f"{len(structures)} clusters, {dropped} dropped for charges away from integers")
    return [structures[i] for i in rng.permutation(len(structures))]


def crystal_set(spacing: float, rng: np.random.Generator) -> list[Atoms]:
    """Rocksalt cells of 64 atoms, strained and with displaced atoms.

    Their volumes lie around that of zero pressure (24 Å³ per atom for GFN2-xTB), so that a barostat
    does not leave what the model has seen. Labels of larger cells scatter: the stresses of two that
    were alike in volume differed fourfold.

    :param spacing: of the lattice constants between 5.3 and 6.0 Å
    :param rng: for strains and displacements
    """
    structures = []
    for lattice_constant in np.arange(5.3, 6.0, spacing):
        atoms = bulk("NaCl", "rocksalt", a=lattice_constant, cubic=True).repeat(2)
        strain = rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.set_cell(atoms.cell[:].round(5))
        atoms.rattle(0.12, rng=rng)
        try:
            structures.append(labelled(atoms, 0, []))
        except CalculationFailed:
            print(f"a = {lattice_constant:.2f} Å left out: its charges do not converge")
    return structures


def write(path: Path, structures: list[Atoms]) -> None:
    """Extended XYZ with five decimals instead of ASE's eight."""
    lines = []
    for atoms in structures:
        header = [
            "Properties=species:S:1:pos:R:3:forces:R:3:atomic_charge:R:1",
            f"energy={atoms.get_potential_energy():.6f}",
            f"charge={atoms.info['charge']}",
        ]
        if atoms.pbc.all():
            header += [f'Lattice="{decimals(atoms.cell[:].flat)}"']
            if "stress" in atoms.calc.results:
                # seven decimals: stresses are small numbers in eV/Å³
                stress = decimals(atoms.get_stress(voigt=False).flat, 7)
                header += [f'stress="{stress}"']
            header += ['pbc="T T T"']
        else:
            header += [f'dipole_moment="{decimals(atoms.info["dipole_moment"])}"', 'pbc="F F F"']
        header += [f'{key}="{atoms.info[key]}"' for key in CURVE if key in atoms.info]
        lines += [str(len(atoms)), " ".join(header)]
        columns = [atoms.positions, atoms.get_forces(), atoms.arrays["atomic_charge"][:, None]]
        for symbol, row in zip(atoms.symbols, np.hstack(columns), strict=True):
            lines.append(f"{symbol} {decimals(row)}")
    path.write_text("\n".join(lines) + "\n")


def decimals(numbers: Iterable[float], digits: int = 5) -> str:
    return " ".join(f"{number:.{digits}f}" for number in numbers)


if __name__ == "__main__":
    # each file has its own dynamics, so that no test structure has a neighbour in time in training
    for seed, (name, counts) in enumerate(SUBSETS.items()):
        rng = np.random.default_rng(seed)
        write(FOLDER / f"nacl-clusters-{name}.xyz", cluster_set(counts, rng))
    for seed, (name, spacing) in enumerate({"train": 0.9 / 17, "test": 0.225}.items(), start=10):
        rng = np.random.default_rng(seed)
        write(FOLDER / f"nacl-crystal-{name}.xyz", crystal_set(spacing, rng))
