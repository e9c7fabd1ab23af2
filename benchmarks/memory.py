"""Peak memory of energy and forces, and the largest structure that runs.

    python benchmarks/memory.py
    python benchmarks/memory.py --atoms 8000 32768 64000 100000 --limit 24 --timeout 1800

Each size runs in a process of its own, which is ended when it takes more than the limit. Bytes per
atom are those of the evaluation: what the process took before, for libraries, the model and the
structure, is not in them, but it is in the limit.
"""

import argparse
import json
import tempfile
from pathlib import Path

from common import GIB, add_arguments, describe, digits, format_table, hardware, number_of_atoms
from speed import measure_one
from torch_models import no_such_model, write_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--models", nargs="+", default=["lorem-exported"], metavar="MODEL")
    parser.add_argument(
        "--atoms", type=number_of_atoms, nargs="+", default=[216, 1000, 8000, 32768]
    )
    parser.add_argument("--precision", type=int, choices=(32, 64), default=32)
    parser.add_argument("--json", type=Path, help="file for all results")
    # a second evaluation: the compiler of exported models keeps other arrays than in the first
    parser.set_defaults(repetitions=1, warm_ups=1, save=False)
    arguments = parser.parse_args()
    no_such_model(arguments.models)

    machine = hardware(arguments.threads)
    print(describe(machine))
    rows, cells = [], []
    largest = {name: 0 for name in arguments.models}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        limit = arguments.limit * GIB
        paths, skipped = write_models(
            arguments.models, folder, arguments.jax_python, arguments.threads, limit
        )
        for name, reason in skipped.items():
            print(f"skipped {name}: {reason}")
        for name in [name for name in arguments.models if name in paths]:
            for atoms in sorted(arguments.atoms):
                result = measure_one(arguments, name, paths[name], atoms, folder)
                rows.append({"model": name, "atoms": atoms, **result})
                if "failed" in result:
                    cells.append([name, str(atoms), result["failed"].split(":")[0], ""])
                    break
                largest[name] = atoms
                cells.append(
                    [
                        name,
                        str(atoms),
                        digits(result["bytes"] / atoms / 1e3),
                        digits(result["bytes"] / GIB),
                    ]
                )
    print(f"\npeak memory of energy and forces, float{arguments.precision}")
    print(format_table(["model", "atoms", "kB/atom", "peak (GiB)"], cells))
    for name, atoms in largest.items():
        print(f"{name}: largest that ran within {arguments.limit:g} GiB: {atoms} atoms")
    if arguments.json:
        record = {"benchmark": "memory", "hardware": machine, "limit_gib": arguments.limit}
        record["results"] = rows
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
