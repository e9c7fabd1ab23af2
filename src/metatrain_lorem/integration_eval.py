"""What metatrain gets wrong in evaluations of our models, mended from outside.

``mtt eval``, and the evaluation that ends each training. As in :mod:`metatrain_lorem.integration`,
other models are left to the original, and no PyTorch is imported here.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from . import integration
from .inspection import describe_other_charges, find_modules


def evaluate_with_care(eval_model: Callable) -> Callable:
    """Refuse structures in another unit of length than the model's, which metatrain would take for
    the model's, and read labels as training does: metatrain drops forces or stress of all
    structures when some have none.

    :param eval_model: of ``metatrain.cli.eval``
    """

    def evaluate(model, options, *args, **kwargs):
        if not find_modules(model, "Lorem"):
            return eval_model(model, options, *args, **kwargs)
        from metatrain.cli import eval as evaluation
        from omegaconf import ListConfig

        from .training.file_sections import Section
        from .training.files import read_section

        expand, get_dataset = evaluation.expand_dataset_config, evaluation.get_dataset
        sections = []

        def expand_and_check(config):
            several = isinstance(config, ListConfig)
            written = list(deepcopy(config)) if several else [deepcopy(config)]
            expanded = expand(config)
            for number, section in enumerate(expanded):
                _check_unit(section["systems"], model.capabilities().length_unit)
                if "targets" in section:
                    place = number if several else None
                    sections.append(Section("evaluation", place, written[number]))
            return expanded

        def read(options):
            return read_section(get_dataset, sections.pop(0), options)

        with _replaced(expand_dataset_config=expand_and_check, get_dataset=read):
            return eval_model(model, options, *args, **kwargs)

    return evaluate


@contextmanager
def _replaced(**functions: Callable) -> Iterator[None]:
    """
    :param functions: by the name under which ``metatrain.cli.eval`` looks them up
    """
    from metatrain.cli import eval as evaluation

    originals = {name: getattr(evaluation, name) for name in functions}
    vars(evaluation).update(functions)
    try:
        yield
    finally:
        vars(evaluation).update(originals)


def _check_unit(systems, expected: str) -> None:
    """
    :param systems: section of the options, with defaults
    :param expected: unit of length of the model, empty if it has none
    :raises ValueError: for structures in another one
    """
    from metatomic.torch import unit_conversion_factor

    unit = systems["length_unit"]
    if not unit or not expected:
        return  # metatrain's default is no unit
    try:
        factor = unit_conversion_factor(unit, expected)
    except ValueError:
        factor = None  # no unit of length
    if factor != 1:
        raise ValueError(
            f"systems.length_unit: {systems['read_from']} is in {unit!r}, but the model takes "
            f"lengths in {expected!r}, and metatrain does not convert them. Write positions and "
            f"cells, and derivatives of the energy, in {expected!r}, and this unit in the options."
        )


def tell_inputs_from_labels(eval_targets: Callable) -> Callable:
    """Keep extra data that are no labels out of the labels of an evaluation, and survive data of
    which all labels are missing (NaN). After training, missing total charges count as 0, as there.
    Structures and labels are given in the precision that the model asks for.

    metatrain takes all data that share a name with an output of the model for its labels. Our
    models have the output ``charge``, charges of atoms, and the input ``charge``, total charges.
    And it takes the type of the parameters, which may be single, for that of the structures, which
    is double.

    :param eval_targets: of ``metatrain.cli.eval``
    """

    def evaluate(model, dataset, options, *args, **kwargs):
        if not find_modules(model, "Lorem"):
            return eval_targets(model, dataset, options, *args, **kwargs)
        different = describe_other_charges(model, dataset)
        if different is not None:
            logging.warning(different)
        from metatrain.cli import eval as evaluation

        collate, to_device = evaluation.CollateFn, evaluation.batch_to
        evaluate_model = evaluation.evaluate_model
        dtype = _precision(model)
        inputs = model.requested_inputs(use_new_names=True)

        def labels_only(target_keys, callables):
            labels = [key for key in target_keys if key in options and key not in inputs]
            if integration.trains_lorem() and "charge" in inputs:
                from .training.total_charges import fill_missing

                callables = [fill_missing, *callables]
            return collate(labels, callables=callables)

        def in_precision(*batch, **options):
            return to_device(*batch, **{**options, "dtype": dtype})

        def evaluate_in_precision(model, systems, *arguments, **options):
            systems = [system.to(dtype=dtype) for system in systems]
            return evaluate_model(model, systems, *arguments, **options)

        errors = {name: _without_empty(getattr(evaluation, name)) for name in _ERRORS}
        with _replaced(
            CollateFn=labels_only,
            batch_to=in_precision,
            evaluate_model=evaluate_in_precision,
            **errors,
        ):
            return eval_targets(model, dataset, options, *args, **kwargs)

    return evaluate


def _precision(model):
    """
    :param model: exported
    :return: floating-point type of the structures that it takes
    """
    import torch

    return getattr(torch, model.capabilities().dtype)


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
