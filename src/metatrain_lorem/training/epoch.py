"""One pass over the training or the validation set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from metatensor.torch import TensorMap
from metatomic.torch import System
from metatrain.utils.abc import ModelInterface
from metatrain.utils.evaluate_model import evaluate_model
from metatrain.utils.metrics import MAEAccumulator, RMSEAccumulator
from metatrain.utils.per_atom import average_by_num_atoms
from metatrain.utils.transfer import batch_to

from .batches import Batch, Batches, ValidationBatches
from .distributed import Processes
from .loss import GlobalLoss, MeanLoss

TensorMaps = dict[str, TensorMap]


class Predicted(NamedTuple):
    """A batch beside its labels."""

    systems: list[System]
    predictions: TensorMaps  # per atom where that makes sense, and divided by the target's scale
    targets: TensorMaps  # the same of the labels
    extra_data: TensorMaps


class Evaluator:
    """Compares the predictions for a batch with its labels.

    :param model: model in training mode: no baseline, no scales
    :param loss: loss function
    :param per_structure_targets: targets that are not divided by the number of atoms
    :param dtype: floating-point type of the model
    :param processes: processes among which the batch is spread
    """

    def __init__(
        self,
        model: ModelInterface,
        loss: GlobalLoss,
        per_structure_targets: list[str],
        dtype: torch.dtype,
        processes: Processes,
    ) -> None:
        self.model = model
        self.loss = loss
        self.per_structure_targets = per_structure_targets
        self.dtype = dtype
        self.processes = processes

    def predict(self, batch: Batch, is_training: bool) -> Predicted:
        """
        :param batch: structures, labels and masks of labels
        :param is_training: whether to keep what the gradient of the loss needs
        :return: predictions and labels
        """
        systems, targets, extra_data = batch_to(
            *batch, dtype=self.dtype, device=self.processes.device
        )
        infos = self.model.dataset_info.targets
        predictions = evaluate_model(
            self.model, systems, {name: infos[name] for name in targets}, is_training=is_training
        )
        predictions = average_by_num_atoms(predictions, systems, self.per_structure_targets)
        targets = average_by_num_atoms(targets, systems, self.per_structure_targets)
        # Labels still carry the scales of single properties: the loss weighs properties by them
        predictions = self._scale(systems, predictions, per_target=False)
        return Predicted(systems, predictions, targets, extra_data)

    def in_units(self, predicted: Predicted) -> tuple[TensorMaps, TensorMaps]:
        """
        :param predicted: see :meth:`predict`
        :return: predictions and labels in the units of the data set
        """
        return (
            self._scale(predicted.systems, predicted.predictions, per_target=True),
            self._scale(predicted.systems, predicted.targets, per_target=True),
        )

    def _scale(self, systems: list[System], values: TensorMaps, per_target: bool) -> TensorMaps:
        return self.model.scaler.apply_scales(
            systems,
            values,
            remove=False,
            use_per_target_scales=per_target,
            use_per_property_scales=not per_target,
        )


class Metrics:
    """Loss, RMSE and MAE of an epoch.

    :param evaluator: source of the errors
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.loss = MeanLoss(evaluator.loss, evaluator.processes.device)
        self.accumulators = [RMSEAccumulator(), MAEAccumulator()]

    def update(self, predicted: Predicted, values: torch.Tensor, counts: torch.Tensor) -> None:
        """Add a batch.

        :param predicted: see :meth:`Evaluator.predict`
        :param values: losses of the batch
        :param counts: numbers of labels that they are means of
        """
        self.loss.update(values, counts)
        with torch.no_grad():
            predictions, targets = self.evaluator.in_units(predicted)
            for accumulator in self.accumulators:
                accumulator.update(predictions, targets, predicted.extra_data)

    def finalize(self) -> dict[str, float]:
        """
        :return: the loss and all errors over the batches of all processes
        """
        processes = self.evaluator.processes
        metrics = {"loss": self.loss.value(processes.sum(self.loss.sums))}
        for accumulator in self.accumulators:
            # a quantity without labels has no error
            accumulator.information = {
                name: (error, count)
                for name, (error, count) in accumulator.information.items()
                if count > 0
            }
            metrics.update(
                accumulator.finalize(
                    not_per_atom=["positions_gradients", *self.evaluator.per_structure_targets],
                    is_distributed=processes.is_distributed,
                    device=processes.device,
                )
            )
        return metrics


def train_epoch(
    evaluator: Evaluator,
    batches: Batches,
    optimizers: list[torch.optim.Optimizer],
    grad_clip_norm: float,
    before_step: Callable[[int], None],
) -> dict[str, float]:
    """
    :param evaluator: model and loss
    :param batches: training batches with the indices of their structures
    :param optimizers: they have all parameters of the model
    :param grad_clip_norm: largest norm of the gradient
    :param before_step: called with the number of the step in the epoch, sets the learning rate
    :return: loss and errors, of the parameters before each step
    :raises FloatingPointError: if a loss or gradient is NaN or infinite
    """
    metrics = Metrics(evaluator)
    processes = evaluator.processes
    parameters = [p for p in evaluator.model.parameters() if p.requires_grad]
    for step, (indices, batch) in enumerate(batches):
        before_step(step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with naming_structures(indices, "training"):
            predicted = evaluator.predict(batch, is_training=True)
        values, counts = evaluator.loss.values_and_counts(*predicted[1:])
        total_counts = _total_counts(values, counts, processes, indices)
        loss = evaluator.loss.combine(values, counts, total_counts)
        if loss.requires_grad:
            # not on to the positions, which are leaves as well
            loss.backward(inputs=parameters)
        if total_counts.sum() > 0:
            processes.sum_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip_norm)
            if not torch.isfinite(norm):
                raise FloatingPointError(_not_finite("gradient of the loss", indices, processes))
            for optimizer in optimizers:
                optimizer.step()
        metrics.update(predicted, values, counts)
    return metrics.finalize()


def validation_epoch(evaluator: Evaluator, batches: ValidationBatches) -> dict[str, float]:
    """
    :param evaluator: model and loss
    :param batches: validation batches with the indices of their structures
    :return: loss and errors
    :raises FloatingPointError: if a loss is NaN or infinite
    """
    metrics = Metrics(evaluator)
    infos = evaluator.model.dataset_info.targets
    with torch.set_grad_enabled(any(info.gradients for info in infos.values())):
        for indices, batch in batches:
            with naming_structures(indices, "validation"):
                predicted = evaluator.predict(batch, is_training=False)
            values, counts = evaluator.loss.values_and_counts(*predicted[1:])
            if not torch.isfinite(values).all():
                raise FloatingPointError(
                    _not_finite("validation loss", indices, evaluator.processes)
                )
            metrics.update(predicted, values, counts)
    return metrics.finalize()


@contextmanager
def naming_structures(indices: list[int], split: str) -> Iterator[None]:
    """Errors of the model, which knows positions in the batch only, say what the batch is.

    :param indices: indices of the structures in the data file, in the order of the batch
    :param split: ``"training"`` or ``"validation"``
    :raises ValueError: for a ValueError or an error in TorchScript
    """
    try:
        yield
    except (ValueError, torch.jit.Error) as error:
        raise ValueError(
            f"In a batch of the structures {indices} of the {split} set (indices in the data "
            f"file; structure 0 of the batch is the first of these): {error}"
        ) from error


def _total_counts(
    values: torch.Tensor, counts: torch.Tensor, processes: Processes, indices: list[int]
) -> torch.Tensor:
    """Numbers of labels over all processes, which also learn of a loss that is not finite."""
    bad = (~torch.isfinite(values)).sum().to(counts)
    totals = processes.sum(torch.cat([counts, bad.unsqueeze(0)]))
    if totals[-1] > 0:
        raise FloatingPointError(
            _not_finite("loss", indices, processes)
            if bad > 0
            else "The loss of another process is NaN or infinite; see its message."
        )
    return totals[:-1]


def _not_finite(what: str, indices: list[int], processes: Processes) -> str:
    where = f" of process {processes.rank}" if processes.is_distributed else ""
    return (
        f"The {what} is NaN or infinite for the batch{where} with structures "
        f"{sorted(indices)} (indices in the data file). The last checkpoint is kept; check these "
        "structures, or restart from it with a lower `learning_rate` or `grad_clip_norm`."
    )
