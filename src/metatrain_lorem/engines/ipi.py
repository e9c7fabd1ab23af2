"""``ipi-driver``: where the driver for i-PI lies."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    :param parser: of the command line
    """
    parser.description = (
        "Print the path of the driver for i-PI that passes a total charge and returns charges and "
        "dipole moments. It may be copied to an environment without this package."
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the path.

    :param arguments: none
    """
    # not imported, since i-PI need not be installed here
    print(Path(__file__).with_name("ipi_driver.py"))
