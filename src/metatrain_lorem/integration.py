"""What metatrain gets wrong in runs of this architecture, mended from outside.

When metatrain imports certain modules, in whatever run, the registration replaces functions of
these by what a function here makes of them. The replacements ask, whenever they are called, whether
the run or the model is one of ours, and leave all others to the original. No PyTorch is imported
here, so that other architectures' runs pay next to nothing.
"""

import argparse
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .inspection import describe_other_charges, find_modules

_architecture: str | None = None
"""of the run of ``mtt train`` in this process, once metatrain has read its options"""


def trains_lorem() -> bool:
    """Whether this process is a run of ``mtt train`` of ours, which has read its options."""
    return _architecture == "lorem"


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
        if trains_lorem():
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
        if not trains_lorem():
            return get_dataset(options)
        from .training import files

        return files.read(get_dataset, options)

    return read


def start_from_own_checkpoints(train_model: Callable) -> Callable:
    """Let runs of ours continue only what is ours.

    metatrain takes the newest checkpoint for ``--restart auto``, whichever architecture it is of,
    e.g. that of an uncertainty made of our model, and fails on it with a KeyError. It opens the
    checkpoints that the options name after it has read the data.

    :param train_model: of ``metatrain.cli.train``
    """

    def train(options, *args, **kwargs):
        # a plain dictionary or one of OmegaConf; metatrain judges options without architecture
        architecture = options.get("architecture") or {}
        if architecture.get("name") == "lorem":
            from metatrain.utils.architectures import get_default_hypers

            defaults = get_default_hypers("lorem")["model"]
            _require_sections(architecture.get("model"), defaults, "architecture.model")
            training = architecture.get("training") or {}
            source = (training.get("finetune") or {}).get("read_from")
            restart = kwargs.get("restart_from")
            backbone = (architecture.get("model") or {}).get("backbone") or {}
            checkpoint = backbone.get("checkpoint")
            new = restart is None and source is None
            _require_files(
                {
                    "--restart": restart,
                    "architecture.model.backbone.checkpoint": os.path.expanduser(checkpoint)
                    if new and isinstance(checkpoint, str)
                    else None,
                    "architecture.training.finetune.read_from": None if restart else source,
                    "architecture.training.atomic_baseline": training.get("atomic_baseline"),
                    "architecture.training.fixed_scaling_weights": training.get(
                        "fixed_scaling_weights"
                    ),
                }
            )
            if restart is not None:
                kwargs["restart_from"] = _own_checkpoint(restart)
            elif source is not None:
                _own_checkpoint(source)
        return train_model(options, *args, **kwargs)

    return train


def _require_sections(options, defaults: dict, path: str) -> None:
    """
    :param options: options of a section
    :param defaults: their defaults
    :param path: of the section, for errors
    :raises ValueError: for a value where options of their own belong, which metatrain would put
        together with the defaults
    """
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ValueError(f"{path}: {options!r} is no section: options belong there, `key: value`")
    for key, default in defaults.items():
        if isinstance(default, Mapping):
            _require_sections(options.get(key), default, f"{path}.{key}")


def _require_files(paths: dict) -> None:
    """
    :param paths: by option, those that are no path (None, a dictionary, a URL) are passed over
    :raises FileNotFoundError: for a file that does not exist, naming the option
    """
    for key, path in paths.items():
        if isinstance(path, (str, Path)) and "://" not in str(path) and not Path(path).is_file():
            reason = f"there is no file {path} (in {Path.cwd()})"
            if str(path) == "":
                reason = "the path is empty"
            elif Path(path).is_dir():
                reason = f"{path} is a folder, no file"
            raise FileNotFoundError(f"{key}: {reason}")


def _own_checkpoint(path: str | Path) -> str | Path:
    """
    :param path: checkpoint to start from; a Path where metatrain looked for the newest one
    :return: the same, or the newest one of this architecture
    :raises ValueError: if that is none of ours
    """
    if str(path).endswith(".pt"):
        raise ValueError(f"{path} is an exported model: give the checkpoint (.ckpt) it came from")
    name = _architecture_of_checkpoint(path)
    if name in (None, "lorem"):
        return path  # metatrain says what is wrong with a file that can't be read
    if isinstance(path, Path):
        others = sorted(
            Path("outputs").glob("*/*/*.ckpt"), key=lambda other: -other.stat().st_mtime
        )
        for other in others:
            if _architecture_of_checkpoint(other) == "lorem":
                logging.info(f"{path}, the newest checkpoint, is of '{name}': {other} is taken")
                return other
    raise ValueError(
        f"{path} is a checkpoint of '{name}', which 'lorem' can't continue"
        + (", and there is none of 'lorem' in outputs/" if isinstance(path, Path) else "")
        + ". Give a checkpoint of 'lorem', for an uncertainty model (llpr) the one it was made from"
    )


def _architecture_of_checkpoint(path: str | Path) -> str | None:
    """Whose checkpoint a file is, None where it can't be told."""
    import torch

    try:
        checkpoint = torch.load(path, weights_only=False, map_location="cpu", mmap=True)
        return checkpoint["architecture_name"]
    except Exception:
        return None


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


def offer_calibrated_uncertainties(set_wrapped_model: Callable) -> Callable:
    """Let LLPR offer the uncertainties of those targets only that it is calibrated for.

    metatrain's offers one for every output of the wrapped model, also for those without last-layer
    features, such as charges, whose uncertainty raises an error, and for targets without data,
    whose uncertainty is a number that means nothing.

    :param set_wrapped_model: of ``metatrain.llpr.model.LLPRUncertaintyModel``
    """

    def set_model(llpr, model):
        if not find_modules(model, "Lorem"):
            return set_wrapped_model(llpr, model)
        # LLPR evaluates everything in the precision of its own buffers, which it takes from here
        model.exports_double = False
        names = {name: name.replace("mtt::", "") for name in llpr.dataset_info.targets}
        for name, short in names.items():
            if f"mtt::aux::{short}_last_layer_features" not in model.supported_outputs():
                raise ValueError(
                    f"LLPR has no uncertainty of {name!r}, since the model has no last-layer "
                    "features of it (charges make it): remove it from the targets of "
                    "all data sets in the options"
                )
        set_wrapped_model(llpr, model)
        from metatomic.torch import ModelCapabilities

        old = llpr.capabilities
        kept = {f"mtt::aux::{short}_uncertainty" for short in names.values()}
        kept.add("energy_uncertainty" if "energy" in names else "")
        llpr.capabilities = ModelCapabilities(
            outputs={
                name: output
                for name, output in old.outputs.items()
                if name in kept or not name.endswith("_uncertainty")
            },
            atomic_types=old.atomic_types,
            interaction_range=old.interaction_range,
            length_unit=old.length_unit,
            supported_devices=old.supported_devices,
            dtype=old.dtype,
        )

    return set_model


def calibrate_with_charges(get_dataloader: Callable) -> Callable:
    """Hand total charges to the wrapped model while LLPR looks at its features.

    :param get_dataloader: ``_get_dataloader`` of ``metatrain.llpr.model.LLPRUncertaintyModel``
    """

    def dataloader(llpr, datasets, *args, **kwargs):
        for dataset in datasets:
            different = describe_other_charges(llpr, dataset)
            if different is not None:
                raise ValueError(
                    f"{different}: LLPR would take the errors that come of it for uncertainty. "
                    "Wrap the model that takes total charges as an input, and build the charge "
                    "into the result (python -m metatrain_lorem set-charge)"
                )
        for dataset in datasets if _takes_charges(llpr) else ():
            if not hasattr(dataset[0], "charge"):
                raise ValueError(
                    "the model that LLPR wraps takes total charges as an input: give all data sets "
                    "in the options `extra_data: charge`, as in its own training"
                )
        with _collating_charges("metatrain.llpr.model", llpr):
            return get_dataloader(llpr, datasets, *args, **kwargs)

    return dataloader


def train_ensemble_with_charges(train: Callable) -> Callable:
    """Hand total charges to the wrapped model while LLPR trains the ensemble, and say what single
    precision costs.

    :param train: of ``metatrain.llpr.trainer.Trainer``
    """

    def train_ensemble(trainer, model, *args, **kwargs):
        with _collating_charges("metatrain.llpr.trainer", model):
            result = train(trainer, model, *args, **kwargs)
        if find_modules(model, "Lorem") and next(model.parameters()).element_size() < 8:
            logging.info(
                "The uncertainty model is exported in single precision throughout, unlike the "
                "model that it wraps, whose structures and energies are in double: energies are "
                "rounded to about 1e-7 of their size, 2e5 eV to multiples of 1/64 eV. Where that "
                "counts, train both with `base_precision: 64`."
            )
        return result

    return train_ensemble


def _takes_charges(model) -> bool:
    """Whether a model is one of ours, or wraps one, that asks for total charges."""
    return any(lorem.conditional for lorem in find_modules(model, "Lorem"))


@contextmanager
def _collating_charges(module_name: str, model) -> Iterator[None]:
    """Batches that are made in a module of metatrain have total charges, if the model asks for
    them when the first batch is described.

    :param module_name: where ``CollateFn`` is looked up
    :param model: of LLPR, which may get its wrapped model later
    """
    module = sys.modules[module_name]
    collate = module.CollateFn

    def with_charges(target_keys, callables, **kwargs):
        if _takes_charges(model):
            from metatrain.utils.system_data import get_system_data_transform

            from .training.total_charges import TOTAL_CHARGE, fill_missing

            attach = get_system_data_transform([TOTAL_CHARGE])
            callables = [*callables, fill_missing, attach]
        return collate(target_keys, callables, **kwargs)

    module.CollateFn = with_charges
    try:
        yield
    finally:
        module.CollateFn = collate


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
