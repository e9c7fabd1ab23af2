"""Steps of LAMMPS on several MPI processes and on several threads: time.

NaCl at constant energy, models of random weights. By turns, so that all meet the same machine; the
medians of the rounds are shown. A plugin that was compiled with ``CXX="g++ -DSTAGE_TIMES"`` says at
the end of each run where the time went.

    pip install ".[lammps,tests]" && python -m metatrain_lorem build-lammps-plugin
    python benchmarks/lammps_ranks.py --atoms 1728 8000 --runs 1x1 1x2 2x1
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

from common import number_of_atoms, rocksalt
from metatrain.utils.data.target_info import get_energy_target_info
from torch_models import CHLORINE, SODIUM, new_model, no_such_model
from torch_worker import DTYPES


def script(model: Path, atoms: int, warm_up: int, steps: int) -> str:
    """Input of LAMMPS; the structure is a file beside it."""
    return f"""
units metal
read_data {atoms}.data
pair_style metatomic {model} device cpu
pair_coeff * * {SODIUM} {CHLORINE}
velocity all create 300 1
fix integrate all nve
timestep 0.0005
thermo_style custom step pe
run {warm_up}
run {steps}
"""


def run(folder: Path, processes: int, threads: int) -> tuple[float, float, list[str]]:
    """Seconds of a step, GB of the largest process, and lines of the plugin's own times."""
    binaries = Path(sys.executable).parent
    command = [shutil.which("lmp", path=binaries), "-in", "in.lammps", "-log", "none", "-nocite"]
    if processes > 1:
        command = [shutil.which("mpiexec", path=binaries), "-n", str(processes), *command]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output = folder / "output"
    with output.open("w") as file:
        started = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        # with the processes that it started
        _, status, usage = os.wait4(started.pid, 0)
    text = output.read_text()
    if status != 0:
        sys.exit(text)
    seconds, steps = re.findall(r"Loop time of (\S+) on .* for (\d+) steps", text)[-1]
    # of the second run
    times = [line for line in text.splitlines() if line.startswith("time of process")]
    times = times[len(times) // 2 :]
    return float(seconds) / int(steps), usage.ru_maxrss / 2**20, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["lorem-exported", "lorem-qeq-exported"])
    parser.add_argument("--atoms", type=number_of_atoms, nargs="+", default=[1728])
    parser.add_argument("--precision", type=int, choices=(32, 64), default=32)
    parser.add_argument(
        "--warm-up", type=int, default=5, help="steps before the others: TorchScript compiles"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plugin", help="folder that holds it (default: where it is built)")
    parser.add_argument(
        "--runs", nargs="+", default=["1x1", "1x2", "2x1"], help="processes x threads of each"
    )
    options = parser.parse_args()
    no_such_model(options.models)
    plugin = options.plugin or Path(sys.prefix) / "lib" / "lammps-plugins"
    os.environ["LAMMPS_PLUGIN_PATH"] = str(plugin)
    warnings.simplefilter("ignore")
    energy = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    print(f"{'model':>20} {'atoms':>6}" + "".join(f" {name:>9}" for name in options.runs))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in options.models:
            model = new_model(name, [SODIUM, CHLORINE], energy)
            model.to(DTYPES[options.precision]).eval().export().save(folder / f"{name}.pt")
            for atoms in options.atoms:
                rocksalt(atoms).write(
                    folder / f"{atoms}.data",
                    format="lammps-data",
                    specorder=["Na", "Cl"],
                    masses=True,
                )
                (folder / "in.lammps").write_text(
                    script(f"{name}.pt", atoms, options.warm_up, options.steps)
                )
                steps, memory, shares = defaultdict(list), {}, {}
                for _ in range(options.rounds):
                    for kind in options.runs:
                        processes, threads = (int(part) for part in kind.split("x"))
                        step, memory[kind], shares[kind] = run(folder, processes, threads)
                        steps[kind].append(step)
                row = "".join(f" {statistics.median(steps[kind]):>9.4f}" for kind in options.runs)
                print(f"{name:>20} {atoms:>6}{row} s", flush=True)
                row = "".join(f" {memory[kind]:>9.2f}" for kind in options.runs)
                print(f"{'':>27}{row} GB", flush=True)
                for kind, lines in shares.items():
                    print("".join(f"    {kind} {line}\n" for line in lines), end="")


if __name__ == "__main__":
    main()
