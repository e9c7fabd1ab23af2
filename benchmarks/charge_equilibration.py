"""How charge equilibration scales: iterations of its solver, time and memory of a model.

    python benchmarks/charge_equilibration.py iterations
    python benchmarks/charge_equilibration.py model
    python benchmarks/charge_equilibration.py model --tiny --short-range --repeats 5 10 20 24

Both use perturbed rocksalt NaCl. ``iterations`` counts products with the matrix until the residual
is small, in double precision. ``model`` measures energy and forces of an exported model with random
weights, with and without charge equilibration, each size in a process of its own, and prints the
exponent of the time. One thread if OMP_NUM_THREADS is 1.
"""

import argparse
import copy
import os
import tempfile
import time
import warnings
from pathlib import Path

import ase
import numpy as np
import torch
from common import exponent, rocksalt, run_worker
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info

from metatrain_lorem.blocks.charge_equilibration import ChargeEquilibration
from metatrain_lorem.electrostatics.boundaries import Vacuum
from metatrain_lorem.electrostatics.equilibration import iterative
from metatrain_lorem.electrostatics.equilibration.gaussians import Interactions
from metatrain_lorem.electrostatics.equilibration.iterative import Limits, solve_iteratively
from metatrain_lorem.electrostatics.equilibration.operator import periodic_operator
from metatrain_lorem.graph import GraphBuilder
from metatrain_lorem.model import Lorem
from metatrain_lorem.systems import Batch

TOLERANCES = (1e-4, 1e-6, 1e-8)


def rocksalt_interactions(atoms: ase.Atoms, hardness: float) -> Interactions:
    """Interactions of the charges of one crystal, with default hypers.

    :param atoms: rocksalt, whose Gaussians are wide enough to need no pairs
    :param hardness: of both species, 1/Å
    """
    hypers = get_default_hypers("lorem")["model"]
    block = ChargeEquilibration(hypers, [11, 17], "angstrom").double()
    assert not block.uses_pairs
    batch = Batch(
        positions=torch.tensor(atoms.positions),
        types=torch.tensor(atoms.numbers),
        cells=torch.tensor(atoms.cell.array).unsqueeze(0),
        pbc=torch.tensor([[True, True, True]]),
        counts=[len(atoms)],
        pairs=torch.zeros([0, 5], dtype=torch.long),
        total_charge=torch.zeros(1, dtype=torch.float64),
    )
    builder = GraphBuilder([11, 17], None, Vacuum(least=0.0, angstrom=1.0))
    graph = builder.build(batch, batch.positions.new_tensor([torch.inf, -torch.inf]))
    return Interactions(
        graph=graph,
        hardness=torch.full((len(atoms),), hardness, dtype=torch.float64),
        species_hardness=torch.full((2,), hardness, dtype=torch.float64),
        variances=block.widths() ** 2,
        pair_weights=graph.distances,
        uses_pairs=False,
        one_width=block.one_width,
        parameters=block.settings,
        angstrom=1.0,
    )


def iterations(repeats: list[int], hardness: float) -> None:
    """Print a table of iterations.

    :param repeats: sizes, 8 repeat³ atoms
    :param hardness: of both species, 1/Å
    """
    print(f"hardness {hardness} 1/Å; iterations to a residual of {TOLERANCES}")
    print(f"{'atoms':>8} {'Kerker':>14} {'diagonal':>14} {'time of one product':>22}")
    product, products = iterative.product, []

    def counted(operator, v):
        products.append(1)
        return product(operator, v)

    iterative.product = counted
    for repeat in repeats:
        atoms = rocksalt(8 * repeat**3)
        chi = torch.tensor(np.random.default_rng(1).normal(scale=0.05, size=len(atoms)))
        chi = chi + 0.6 * torch.tensor((atoms.numbers == 17).astype(int))
        zero = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            operator = periodic_operator(rocksalt_interactions(atoms, hardness), 0)
            diagonal = operator._replace(
                preconditioner=operator.preconditioner._replace(kerker=False)
            )
            counts = []
            for preconditioned in (operator, diagonal) if len(atoms) < 10000 else (operator,):
                numbers = []
                start = time.perf_counter()
                for tolerance in TOLERANCES:
                    products.clear()
                    limits = Limits(tolerance=tolerance, max_iterations=200)
                    solve_iteratively(preconditioned, chi, zero, limits, "rocksalt")
                    # two before the first iteration
                    numbers.append(len(products) - 2)
                seconds = (time.perf_counter() - start) / (sum(numbers) + 6)
                counts.append("/".join(map(str, numbers)))
        counts += [""] * (2 - len(counts))
        print(f"{len(atoms):8d} {counts[0]:>14} {counts[1]:>14} {seconds:20.3f} s", flush=True)
    iterative.product = product


def exported(path: Path, equilibrate: bool, short_range: bool, tiny: bool) -> None:
    """Write a model with default hypers, or ones as small as possible, and random weights."""
    hypers = copy.deepcopy(get_default_hypers("lorem")["model"])
    hypers["charge_equilibration"]["enable"] = equilibrate
    hypers["long_range"]["enable"] = not short_range
    if tiny:
        hypers.update(num_features=4, num_radial=4, num_spherical_features=1, max_degree=0)
        hypers["long_range"]["max_degree"] = 0
    torch.manual_seed(0)
    targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    model = Lorem(hypers, DatasetInfo("angstrom", [11, 17], targets)).eval()
    if equilibrate:
        # charges around 0.6 e
        bias = model.charge_equilibration.species_electronegativity
        bias.data = torch.tensor([-0.6, 0.6])
    model.export().save(str(path))


def scaling(
    repeats: list[int], repetitions: int, short_range: bool, tiny: bool, precision: int
) -> None:
    """Print a table of times and memory, and the exponents."""
    print(f"{'atoms':>8} {'without (s)':>12} {'with (s)':>10} {'ratio':>6} {'kB/atom':>9}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "without.pt", Path(folder) / "with.pt"]
        for path, equilibrate in zip(paths, (False, True), strict=True):
            exported(path, equilibrate, short_range, tiny)
        for repeat in repeats:
            task = {
                "task": "energy",
                "atoms": 8 * repeat**3,
                "precision": precision,
                "device": "cpu",
                "threads": torch.get_num_threads(),
                "repetitions": repetitions,
                "warm_ups": 6,
                "save": "",
            }
            results = [
                run_worker("torch_worker.py", {**task, "model": str(path)}, 3600.0, np.inf)
                for path in paths
            ]
            failed = [result["failed"] for result in results if "failed" in result]
            if failed:
                print(f"{8 * repeat**3:8d} {failed[0]}")
                continue
            without, with_charges = (float(np.median(result["times"])) for result in results)
            rows.append((8 * repeat**3, without, with_charges))
            print(
                f"{rows[-1][0]:8d} {without:12.3f} {with_charges:10.3f} "
                f"{with_charges / without:6.2f} {results[1]['bytes'] / rows[-1][0] / 1e3:9.1f}",
                flush=True,
            )
    atoms = [row[0] for row in rows]
    without, with_charges = (exponent(atoms, [row[i] for row in rows]) for i in (1, 2))
    if without is not None:
        print(f"exponent from 1000 atoms: without {without:.2f}, with {with_charges:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    count = commands.add_parser("iterations")
    count.add_argument("--repeats", type=int, nargs="+", default=[3, 5, 10, 20])
    count.add_argument("--hardness", type=float, default=1.0)
    model = commands.add_parser("model")
    model.add_argument("--repeats", type=int, nargs="+", default=[3, 5, 6, 10])
    model.add_argument("--repetitions", type=int, default=3)
    model.add_argument("--short-range", action="store_true", help="no long-range block")
    model.add_argument("--tiny", action="store_true", help="little but the charges costs time")
    model.add_argument("--precision", type=int, choices=(32, 64), default=32)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if arguments.command == "iterations":
        iterations(arguments.repeats, arguments.hardness)
    else:
        scaling(
            arguments.repeats,
            arguments.repetitions,
            arguments.short_range,
            arguments.tiny,
            arguments.precision,
        )


if __name__ == "__main__":
    main()
