"""``report``: errors of a model on a test set."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    :param parser: of the command line
    """
    parser.description = (
        "Print a table of errors (all, per element, per total charge) and write it as "
        "report.csv, with a parity plot parity.png."
    )
    parser.add_argument(
        "model",
        help="exported model (.pt) or checkpoint (.ckpt); of a source you trust: a checkpoint can "
        "run any code",
    )
    parser.add_argument(
        "test_set", help="structures with energies (eV) and forces (eV/Å), e.g. xyz"
    )
    parser.add_argument("-o", "--output", default=".", help="folder for the files (default: here)")
    parser.add_argument("--energy-key", default="energy", help="default: %(default)s")
    parser.add_argument("--forces-key", default="forces", help="default: %(default)s")
    parser.add_argument(
        "--charges-key",
        default="atomic_charge",
        help="atomic charges (e), compared if model and file have them; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the report.

    :param arguments: as :func:`add_arguments` names them
    :raises ValueError: if the model predicts no energy or labels are missing
    :raises OSError: if a file can't be read or written
    """
    from .evaluation import evaluate
    from .parity_plot import plot_parity
    from .table import errors, format_table, write_csv

    evaluation = evaluate(
        arguments.model,
        arguments.test_set,
        arguments.energy_key,
        arguments.forces_key,
        arguments.charges_key,
    )
    rows = errors(evaluation)
    print(format_table(rows))
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "report.csv")
    plot_parity({"model": evaluation}, folder / "parity.png")
