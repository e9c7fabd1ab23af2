"""The data sets: where their files lie, and how they are given to trainings."""

from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

HERE = Path(__file__).resolve().parent
CLUSTERS = HERE.parents[1] / "options" / "data"
OWN = HERE / "sets"
CURVES = "curves"
"""File of structures in steps; ``info`` has the name of the curve, the coordinate in Å or
degrees, and the first atom of the part whose charge is of interest."""
CURVE_KEYS = ("curve", "coordinate", "part")


@dataclass(frozen=True)
class Dataset:
    """Files of a set: names that start with ``data:`` lie in the folder of ``--data``."""

    label: str
    files: dict[str, str]
    """``train``, ``valid``, and tests under names of their own"""
    source: str
    only: dict[str, tuple[str, str]] | None = None
    """Test -> key of ``info`` and how its value begins in these structures"""

    @property
    def tests(self) -> list[str]:
        return [name for name in self.files if name not in ("train", "valid", CURVES)]


def _own(name: str, label: str, *tests: str, method: str = "GFN2-xTB") -> Dataset:
    files = {key: str(OWN / f"{name}-{key}.xyz") for key in ("train", "valid", *tests)}
    return Dataset(label, files, f"{method}, benchmarks/accuracy/sets")


def _foreign(label: str, source: str, stem: str, *keys: str) -> Dataset:
    keys = keys or ("train", "valid", "test")
    return Dataset(label, {key: f"data:{stem}{key}.xyz" for key in keys}, source)


IN_OUT = {
    "in-domain": ("config_type", "in-domain"),
    "out-of-domain": ("config_type", "out-domain-nc-"),
}
KO = "DFT, subset of Ko et al. 2021"
DATASETS: dict[str, Dataset] = {
    "nacl-clusters": Dataset(
        "NaCl clusters, ions beyond the cutoff",
        {key: str(CLUSTERS / f"nacl-clusters-{key}.xyz") for key in ("train", "valid", "test")}
        | {CURVES: str(OWN / "nacl-curves.xyz")},
        "GFN2-xTB, options/data",
    ),
    "dimers": _own("dimers", "Pairs of NH₄⁺, HCOO⁻, H₂O", "near", "far", CURVES),
    "sn2": _own("sn2", "Cl⁻ + CH₃Br → CH₃Cl + Br⁻", "near", "far", CURVES),
    "water-clusters": _own("water", "Water clusters", "small", "large"),
    "rotation": _own("rotation", "Cumulenes whose ends are turned", "same", "longer", CURVES),
    "pulled": _own(
        "pulled", "Na₉Cl₈⁺ and Na₈Cl₈, an ion pulled", "near", "far", CURVES, method="GFN1-xTB"
    ),
    "gold": _own("gold", "Au₂ on MgO, pure and with Al", "test", CURVES, method="GFN1-xTB"),
    "ag3": _foreign("Ag₃⁺ and Ag₃⁻", KO, "4g_hdnnp/ag3_"),
    "carbon-chain": _foreign("C₁₀H₂ and C₁₀H₃⁺", KO, "4g_hdnnp/carbon_chain_"),
    "dipeptides": _foreign("Dipeptides", "DFT, SPICE, split of cace-lr-fit", "spice_dipeptides/"),
    "cumulenes": Dataset(
        "Cumulenes",
        {"train": "data:cumulene/gnl_v02_train.xyz", "valid": "data:cumulene/gnl_v02_valid.xyz"}
        | dict.fromkeys(IN_OUT, "data:cumulene/gnl_v02_test.xyz"),
        "DFT, GNL v0.2",
        IN_OUT,
    ),
    "nacl-water": _foreign("NaCl(aq)", "DFT, O'Neill et al. 2023", "nacl_water/revpbe0d3_"),
    "water": Dataset(
        "Water",
        {
            "train": "data:water/deepmd_pbe0ts_train.xyz",
            # the source has no third part
            "valid": "data:water/deepmd_pbe0ts_test.xyz",
            "test": "data:water/deepmd_pbe0ts_test.xyz",
        },
        "DFT, DeePMD-kit",
    ),
}


def missing(dataset: Dataset, data: Path) -> str:
    """The first file that is not there; empty if all are."""
    paths = [locate(name, data) for name in dataset.files.values()]
    return next((f"no file {path}" for path in paths if not path.is_file()), "")


def locate(name: str, data: Path) -> Path:
    return data / name.removeprefix("data:") if name.startswith("data:") else Path(name)


def load(dataset: Dataset, data: Path, share: float = 1.0) -> dict[str, list[ase.Atoms]]:
    """Structures of all files, their energies less a constant per element.

    Those constants are a least-squares fit to the training structures. Single precision, in which
    all models calculate, has steps of 0.03 eV at a total energy of three silver atoms.

    :param dataset: set
    :param data: folder of foreign sets
    :param share: of the training structures that is kept, always the same ones; smaller shares are
        parts of larger ones
    :raises ValueError: if an element of other structures is not among those that are kept
    """
    frames = {}
    for name, file in dataset.files.items():
        frames[name] = ase.io.read(locate(file, data), ":")
        if dataset.only and name in dataset.only:
            key, value = dataset.only[name]
            frames[name] = [
                atoms for atoms in frames[name] if str(atoms.info.get(key, "")).startswith(value)
            ]
            if not frames[name]:
                raise ValueError(f"{file}: no structure whose {key} begins with {value}")
    if share < 1.0:
        order = np.random.default_rng(0).permutation(len(frames["train"]))
        frames["train"] = [frames["train"][i] for i in order[: max(1, round(share * len(order)))]]
    elements = sorted({z for atoms in frames["train"] for z in atoms.numbers.tolist()})
    for name, structures in frames.items():
        unknown = {x for atoms in structures for x in atoms.symbols} - {
            chemical_symbols[z] for z in elements
        }
        if unknown:
            raise ValueError(
                f"{name}: {', '.join(sorted(unknown))} not in the {len(frames['train'])} training "
                f"structures of a share of {share:g}: take a larger one"
            )

    def counts(structures: list[ase.Atoms]) -> np.ndarray:
        return np.array([[(atoms.numbers == z).sum() for z in elements] for atoms in structures])

    def energies(structures: list[ase.Atoms]) -> np.ndarray:
        return np.array([atoms.get_potential_energy() for atoms in structures])

    train = frames["train"]
    constants = np.linalg.lstsq(counts(train).astype(float), energies(train), rcond=None)[0]
    for name, structures in frames.items():
        shifted = energies(structures) - counts(structures) @ constants
        frames[name] = [labelled(*pair) for pair in zip(structures, shifted, strict=True)]
    return frames


def labelled(source: ase.Atoms, energy: float) -> ase.Atoms:
    """A copy with the labels that trainings read, and no others."""
    atoms = ase.Atoms(source.numbers, source.positions, cell=source.cell, pbc=source.pbc)
    forces = source.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    # PET's conditioning wants the spin multiplicity, too: all sets are closed shells
    atoms.info |= {"charge": int(source.info["charge"]), "spin_multiplicity": 1}
    atoms.info |= {key: source.info[key] for key in CURVE_KEYS if key in source.info}
    if "dipole_moment" in source.info:
        atoms.info["dipole_moment"] = source.info["dipole_moment"]
    if "atomic_charge" in source.arrays:
        atoms.arrays["atomic_charge"] = source.arrays["atomic_charge"]
    return atoms


def is_charged(frames: dict[str, list[ase.Atoms]]) -> bool:
    return any(atoms.info["charge"] != 0 for atoms in frames["train"])


def share_of_forces(structures: list[ase.Atoms], by_forces: bool) -> float:
    """What the weight of charges is multiplied by so that they count beside forces, as lorem's log
    advises: the loss of energies at first, or a share of that of forces where this is more.

    :param structures: of training
    :param by_forces: whether forces enter the scale of energies
    """
    # lorem_jax.py reads sets where there is no metatrain
    from metatrain_lorem.training.label_spread import SHARE

    of_forces = np.mean(np.concatenate([atoms.get_forces().ravel() for atoms in structures]) ** 2)
    energies = [atoms.get_potential_energy() / len(atoms) for atoms in structures]
    of_energies = np.mean(np.square(energies))
    scale = of_energies + of_forces if by_forces else of_energies
    return float(max(of_energies, SHARE * of_forces) / scale)


def charge_variance(structures: list[ase.Atoms]) -> float | None:
    """Mean variance of the charges of an element, e²; None without charges."""
    if "atomic_charge" not in structures[0].arrays:
        return None
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    charges = np.concatenate([atoms.arrays["atomic_charge"] for atoms in structures])
    variances = np.zeros(len(charges))
    for z in set(numbers.tolist()):
        variances[numbers == z] = charges[numbers == z].var()
    return float(variances.mean())


def dipole_variance(structures: list[ase.Atoms]) -> float | None:
    """Mean square of a component of the dipole moment, (e Å)²; None without dipole moments."""
    if "dipole_moment" not in structures[0].info:
        return None
    return float(np.mean([atoms.info["dipole_moment"] ** 2 for atoms in structures]))
