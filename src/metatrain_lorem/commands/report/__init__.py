"""``report``: errors of a model on a test set."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    :param parser: of the command line
    """
    parser.description = (
        "Print a table of errors (all, per element, per total charge) of all targets that "
        "model and file have, and write it as report.csv, with a parity plot parity.png."
    )
    parser.add_argument(
        "model",
        help="exported model (.pt) or checkpoint (.ckpt); of a source you trust: a checkpoint can "
        "run any code",
    )
    parser.add_argument(
        "test_set", help="structures with energies (eV), forces (eV/Å) and other labels, e.g. xyz"
    )
    parser.add_argument("-o", "--output", default=".", help="folder for the files (default: here)")
    parser.add_argument("--energy-key", default="energy", help="default: %(default)s")
    parser.add_argument("--forces-key", default="forces", help="default: %(default)s")
    parser.add_argument(
        "--charges-key",
        default="atomic_charge",
        help="atomic charges (e), compared if model and file have them; default: %(default)s",
    )
    parser.add_argument(
        "--stress-key",
        default="stress",
        help="stress (eV/Å³) of structures periodic in three directions; default: %(default)s",
    )
    parser.add_argument(
        "--target-key",
        nargs=2,
        action="append",
        default=[],
        metavar=("TARGET", "KEY"),
        help="name in the file of another target of the model; by default that of the target "
        "without mtt::. May be given several times",
    )
    parser.add_argument(
        "--any-charge",
        action="store_true",
        help="go on with structures of another total charge than the one built into the model",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the report.

    :param arguments: as :func:`add_arguments` names them
    :raises ValueError: if a key is nowhere, nothing can be compared, or structures have other
        total charges than the one built into the model
    :raises OSError: if a file can't be read or written
    """
    from .evaluation import evaluate
    from .labels import Keys
    from .parity_plot import plot_parity
    from .table import errors, format_table, missing_labels, write_csv

    outputs = {"charge": arguments.charges_key}
    outputs.update((target, key) for target, key in arguments.target_key)
    keys = Keys(arguments.energy_key, arguments.forces_key, arguments.stress_key, outputs)
    evaluation = evaluate(arguments.model, arguments.test_set, keys, arguments.any_charge)
    rows = errors(evaluation)
    print(format_table(rows))
    missing = missing_labels(evaluation)
    if missing:
        print(f"Missing labels, left out: {'; '.join(missing)}")
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "report.csv")
    plot_parity({"model": evaluation}, folder / "parity.png")
