"""``convert-lorem-jax``: a checkpoint of lorem-jax as one of metatrain."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command.

    :param parser: of the command line
    """
    parser.description = (
        "Read a lorem-jax checkpoint folder and write a checkpoint for `mtt export`."
    )
    parser.add_argument("folder", help="folder with model.yaml, baseline.yaml and model.msgpack")
    parser.add_argument("-o", "--output", required=True, help="checkpoint to write (.ckpt)")
    parser.add_argument(
        "--full-isolated-potentials",
        action="store_true",
        help="the checkpoint was trained with potentials of isolated structures that lack the "
        "factor 1/2, as those of the LOREM paper's non-periodic sets",
    )


def run(arguments: argparse.Namespace) -> None:
    """Convert a checkpoint.

    :param arguments: as :func:`add_arguments` names them
    :raises ValueError: if the folder holds another kind of model
    :raises OSError: if a file can't be read or written
    """
    from .conversion import convert

    convert(
        arguments.folder,
        arguments.output,
        full_isolated_potentials=arguments.full_isolated_potentials,
    )
