"""What metatrain gets wrong in runs of this architecture, mended from outside.

When metatrain imports certain modules, in whatever run, the registration replaces one function of
each by what a function here makes of it. The replacement asks, whenever it is called, whether the
run or the model is one of ours, and leaves all others to the original. No PyTorch is imported here,
so that other architectures' runs pay next to nothing.
"""

import argparse
import logging
import os
import sys
import zlib
from collections.abc import Callable
from functools import cache

from .inspection import built_in_charge, find_modules, other_charges

_architecture: str | None = None
"""of the run of ``mtt train`` in this process, once metatrain has read its options"""


def begin_run(check_architecture_options: Callable) -> Callable:
    """Notice which architecture is trained, and give the processes of a distributed run of ours one
    default seed, hence one split of the data.

    metatrain draws a seed in each process, for options that set none.

    :param check_architecture_options: of ``metatrain.cli.train``, which each run calls once, before
        it uses the seed
    """

    def check(name, options):
        global _architecture
        _architecture = name
        seed = _shared_seed() if name == "lorem" else None
        if seed is not None:
            from metatrain.utils import omegaconf

            omegaconf.RANDOM_SEED = seed
        return check_architecture_options(name, options)

    return check


def write_from_one_process(is_main_process: Callable) -> Callable:
    """Let ``mtt train`` write its folder, log and model from one process of ``torchrun``.

    :param is_main_process: of ``metatrain.utils.distributed.logging``, which knows the ranks of
        SLURM only
    """

    def is_main():
        # within a SLURM job, torchrun's processes share the rank that SLURM gave to their launcher
        if "TORCHELASTIC_RUN_ID" in os.environ:
            if (_architecture or _architecture_on_command_line()) == "lorem":
                return os.environ.get("RANK", "0") == "0"
        return is_main_process()

    return is_main


def tell_inputs_from_labels(eval_targets: Callable) -> Callable:
    """Keep extra data that are no labels out of the labels of an evaluation.

    metatrain takes all data that share a name with an output of the model for its labels. Our
    models have the output ``charge``, charges of atoms, and the input ``charge``, total charges.

    :param eval_targets: of ``metatrain.cli.eval``
    """

    def evaluate(model, dataset, options, *args, **kwargs):
        if not find_modules(model, "Lorem"):
            return eval_targets(model, dataset, options, *args, **kwargs)
        _warn_of_other_charges(model, dataset)
        from metatrain.cli import eval as evaluation

        collate = evaluation.CollateFn
        inputs = model.requested_inputs(use_new_names=True)

        def labels_only(target_keys, *others, **more):
            labels = [key for key in target_keys if key in options and key not in inputs]
            return collate(labels, *others, **more)

        evaluation.CollateFn = labels_only
        try:
            return eval_targets(model, dataset, options, *args, **kwargs)
        finally:
            evaluation.CollateFn = collate

    return evaluate


def _shared_seed() -> int | None:
    """A number that the processes of this run have in common, if there are several."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        run = os.environ["TORCHELASTIC_RUN_ID"] + os.environ.get("MASTER_PORT", "")
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        run = os.environ.get("SLURM_JOB_ID", "")
    else:
        return None
    return zlib.crc32(run.encode())


class _QuietParser(argparse.ArgumentParser):
    """Raises where others print and end the process."""

    def error(self, message):
        raise ValueError(message)


@cache
def _architecture_on_command_line() -> str | None:
    """Architecture in the options of ``mtt train``.

    metatrain makes the folder and the log of a run before it reads them itself.

    :return: None if this process is no ``mtt train``, or its arguments are wrong
    """
    if "train" not in sys.argv[1:]:
        return None
    try:
        from metatrain.cli.train import _add_train_model_parser, _prepare_train_model_args

        parser = _QuietParser(add_help=False)
        _add_train_model_parser(parser.add_subparsers())
        arguments, _ = parser.parse_known_args(sys.argv[1:])
        _prepare_train_model_args(arguments)
        return arguments.options["architecture"]["name"]
    except Exception:
        return None  # metatrain will stumble over it, too, and say so


def _warn_of_other_charges(model, dataset) -> None:
    """Compare the total charges of a data set with the one that is built into a model.

    :param model: of ours
    :param dataset: structures, which have total charges if the options ask for them
    """
    built_in = built_in_charge(model)
    if built_in is None or len(dataset) == 0 or not hasattr(dataset[0], "charge"):
        return
    charges = [float(dataset[i].charge.block().values) for i in range(len(dataset))]
    different = other_charges(charges, built_in)
    if different:
        logging.warning(
            f"{len(different)} of {len(dataset)} structures have another total charge than "
            f"{built_in:+g} e, which the model takes all of them to have; the first is structure "
            f"{different[0]}, of {charges[different[0]]:+g} e"
        )
