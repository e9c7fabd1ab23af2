"""Runs of LAMMPS with the plugin, models for it, and what it writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase
import ase.data
import numpy as np
from ase.calculators.lammps import Prism
from metatomic_ase import MetatomicCalculator

from .backbones import PACKAGES, section

ELEMENTS = ["H", "C", "N", "O"]
MODELS = {
    "equilibrated": {"charge_equilibration": {"enable": True}},
    "conditional": {"charge_equilibration": {"enable": True}, "conditional": True},
    "conditional-short-range": {"long_range": {"enable": False}, "conditional": True},
    "long-range": {},
    "partial": {"long_range": {"energy": "charges"}, "conditional": True},
    "short-range": {"long_range": {"enable": False}},
    "messages": {"long_range": {"enable": False}, "num_message_passing": 1},
    "backbone": {
        "backbone": section("pet"),
        "charge_equilibration": {"enable": True},
        "conditional": True,
    },
    "backbone-short-range": {"backbone": section("pet"), "long_range": {"enable": False}},
    **{
        name: {"backbone": section(name), "charge_equilibration": {"enable": True}}
        for name in ("lorem", *PACKAGES)
    },
}


def start(plugin: Path, folder: Path, script: str, processes: int) -> subprocess.CompletedProcess:
    """Run an input script, without this package in the environment."""
    (folder / "in.lammps").write_text(script)
    lmp = shutil.which("lmp", path=Path(sys.executable).parent)
    command = [lmp, "-in", "in.lammps", "-log", "none", "-nocite"]
    if processes > 1:
        mpiexec = shutil.which("mpiexec", path=Path(sys.executable).parent)
        command = [mpiexec, "-n", str(processes), *command]
    environment = {"LAMMPS_PLUGIN_PATH": str(plugin), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        command, cwd=folder, env=environment | path, capture_output=True, text=True, timeout=300
    )


def header(
    folder: Path,
    frame: ase.Atoms,
    model: Path,
    keywords: str = "",
    units: str = "metal",
    before: str = "",
) -> str:
    """Write a structure as a data file; return the beginning of a script that reads it.

    :param folder: for the file
    :param frame: structure of hydrogen, carbon, nitrogen and oxygen, in a cell even if isolated
    :param model: exported model
    :param keywords: after the model's path
    :param units: of LAMMPS
    :param before: commands before the structure is read
    """
    prism = Prism(frame.cell.array, pbc=frame.pbc)
    lines = ["structure", "", f"{len(frame)} atoms", f"{len(ELEMENTS)} atom types"]
    xhi, yhi, zhi, xy, xz, yz = prism.get_lammps_prism()
    for axis, length in zip("xyz", (xhi, yhi, zhi), strict=True):
        lines.append(f"0 {length:.17g} {axis}lo {axis}hi")
    if prism.is_skewed():
        lines.append(f"{xy:.17g} {xz:.17g} {yz:.17g} xy xz yz")
    lines += ["", "Masses", ""]
    masses = [ase.data.atomic_masses[ase.data.atomic_numbers[s]] for s in ELEMENTS]
    lines += [f"{i} {mass}" for i, mass in enumerate(masses, 1)]
    lines += ["", "Atoms # atomic", ""]
    positions = prism.vector_to_lammps(frame.positions, wrap=False)
    for i, (symbol, position) in enumerate(zip(frame.symbols, positions, strict=True), 1):
        numbers = " ".join(f"{x:.17g}" for x in position)
        lines.append(f"{i} {ELEMENTS.index(symbol) + 1} {numbers}")
    (folder / "structure.data").write_text("\n".join(lines) + "\n")
    boundary = " ".join("p" if periodic else "f" for periodic in frame.pbc)
    return f"""
units {units}
boundary {boundary}
{before}
read_data structure.data
pair_style metatomic {model} {keywords}
pair_coeff * * 1 6 7 8
"""


def record(thermo: str = "", dump: str = "") -> str:
    """Commands that write every step with all digits.

    :param thermo: columns of the thermodynamic output after step, energy and total energy
    :param dump: columns of the dump after atoms, positions and forces
    """
    return f"""
dump frames all custom 1 out.dump id type x y z fx fy fz {dump}
dump_modify frames format float %.17g
thermo 1
thermo_style custom step pe etotal {thermo}
thermo_modify format float %.17g
"""


def read_dump(path: Path) -> tuple[list[ase.Atoms], list[np.ndarray]]:
    """Frames of a dump in the order of atom numbers, and their columns after x, y, z."""
    lines = path.read_text().splitlines()
    frames, columns = [], []
    while lines:
        count = int(lines[3])
        pbc = [flags == "pp" for flags in lines[4].split()[-3:]]
        bounds = np.array([line.split() for line in lines[5:8]], dtype=float)
        table = np.array([line.split() for line in lines[9 : 9 + count]], dtype=float)
        table = table[np.argsort(table[:, 0])]
        origin, cell = box(bounds)
        symbols = [ELEMENTS[int(i) - 1] for i in table[:, 1]]
        frames.append(ase.Atoms(symbols, table[:, 2:5] - origin, cell=cell, pbc=pbc))
        columns.append(table[:, 5:])
        lines = lines[9 + count :]
    return frames, columns


def box(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origin and cell of the box bounds in a dump (of the bounding box if the cell is tilted)."""
    low, high = bounds[:, 0].copy(), bounds[:, 1].copy()
    xy, xz, yz = bounds[:, 2] if bounds.shape[1] == 3 else (0.0, 0.0, 0.0)
    low[0] -= min(0.0, xy, xz, xy + xz)
    high[0] -= max(0.0, xy, xz, xy + xz)
    low[1] -= min(0.0, yz)
    high[1] -= max(0.0, yz)
    x, y, z = high - low
    return low, np.array([[x, 0, 0], [xy, y, 0], [xz, yz, z]])


def read_thermo(output: str) -> dict[str, np.ndarray]:
    """Columns of the thermodynamic output of all runs, joined."""
    lines = [line.split() for line in output.splitlines()]
    begins = [i for i, words in enumerate(lines) if words[:1] == ["Step"]]
    rows = []
    for begin in begins:
        end = next(i for i in range(begin, len(lines)) if lines[i][:2] == ["Loop", "time"])
        rows += [words for words in lines[begin + 1 : end] if words[0].isdigit()]
    return dict(zip(lines[begins[0]], np.array(rows, dtype=float).T, strict=True))


def calculate(model: Path, frames: list[ase.Atoms], charge: float | None = None) -> list[ase.Atoms]:
    """Attach ASE's calculator, the reference, to copies of structures."""
    calculator = MetatomicCalculator(model)
    copies = []
    for frame in frames:
        copy = frame.copy()
        if charge is not None:
            copy.info["charge"] = charge
        copy.calc = calculator
        copies.append(copy)
    return copies
