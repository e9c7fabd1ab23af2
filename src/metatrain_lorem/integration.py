"""What metatrain gets wrong in runs of this architecture, mended from outside.

When metatrain imports certain modules, in whatever run, the registration replaces functions of
these by what a function here makes of them. The replacements ask, whenever they are called, whether
the run or the model is one of ours, and leave all others to the original. No PyTorch is imported
here, so that other architectures' runs pay next to nothing.
"""

import argparse
import os
import sys
import zlib
from collections.abc import Callable
from functools import cache

_architecture: str | None = None
"""of the run of ``mtt train`` in this process, once metatrain has read its options"""


def begin_run(validate_base_options: Callable) -> Callable:
    """Notice which architecture is trained, on what data, and give the processes of a distributed
    run of ours one default seed, hence one split of the data.

    metatrain draws a seed in each process, for options that set none.

    :param validate_base_options: of ``metatrain.cli.train``, which each run calls once, before it
        looks at the options for anything else
    """

    def validate(options):
        global _architecture
        validated = validate_base_options(options)
        _architecture = validated["architecture"]["name"]
        if _architecture == "lorem":
            from .training import files

            files.begin_run(validated)
            seed = _shared_seed()
            if seed is not None:
                from metatrain.utils import omegaconf

                omegaconf.RANDOM_SEED = seed
        return validated

    return validate


def read_with_care(get_dataset: Callable) -> Callable:
    """Name file, structure and key where data cannot be read, and keep what metatrain would drop.

    :param get_dataset: of ``metatrain.cli.train``, called for each section of files
    """

    def read(options):
        if _architecture != "lorem":
            return get_dataset(options)
        from .training import files

        return files.read(get_dataset, options)

    return read


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
    """Keep extra data that are no labels out of the labels of an evaluation, and survive data of
    which all labels are missing (NaN). After training, missing total charges count as 0, as there.

    metatrain takes all data that share a name with an output of the model for its labels. Our
    models have the output ``charge``, charges of atoms, and the input ``charge``, total charges.

    :param eval_targets: of ``metatrain.cli.eval``
    """

    def evaluate(model, dataset, options, *args, **kwargs):
        if not _contains_lorem(model):
            return eval_targets(model, dataset, options, *args, **kwargs)
        from metatrain.cli import eval as evaluation

        originals = {name: getattr(evaluation, name) for name in ("CollateFn", *_ERRORS)}
        inputs = model.requested_inputs(use_new_names=True)

        def labels_only(target_keys, callables):
            labels = [key for key in target_keys if key in options and key not in inputs]
            if _architecture == "lorem" and "charge" in inputs:
                from .training.total_charges import fill_missing

                callables = [fill_missing, *callables]
            return originals["CollateFn"](labels, callables=callables)

        evaluation.CollateFn = labels_only
        for name in _ERRORS:
            setattr(evaluation, name, _without_empty(originals[name]))
        try:
            return eval_targets(model, dataset, options, *args, **kwargs)
        finally:
            for name, original in originals.items():
                setattr(evaluation, name, original)

    return evaluate


_ERRORS = ("RMSEAccumulator", "MAEAccumulator")


def _without_empty(accumulator: type) -> type:
    """Errors over no labels at all are left out, instead of a division by zero.

    :param accumulator: class of metatrain
    """

    class Accumulator(accumulator):
        def finalize(self, *args, **kwargs):
            self.information = {
                name: (error, count)
                for name, (error, count) in self.information.items()
                if count > 0
            }
            return super().finalize(*args, **kwargs)

    return Accumulator


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


def _contains_lorem(model) -> bool:
    """Whether a model is one of ours, or has one inside as those of LLPR.

    :param model: a module of Python or, as in exported models, of TorchScript
    """
    return any(
        getattr(module, "original_name", type(module).__name__) == "Lorem"
        for module in model.modules()
    )
