"""One pass over the training or the validation set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from metatomic.torch import System
from metatrain.utils.abc import ModelInterface
from metatrain.utils.evaluate_model import evaluate_model
from metatrain.utils.per_atom import average_by_num_atoms
from metatrain.utils.transfer import batch_to

from .batches import Batch, Batches, ValidationBatches
from .distributed import Processes
from .loss import GlobalLoss, MeanLoss
from .metrics import ErrorSums, TensorMaps, differences


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
        # metatrain's scaler copies all of its tables at each call: it has the rest
        scaler = model.scaler.model
        self.many_properties = set(scaler.multi_property_target_names)
        self.scaled_by_atoms: set[str] = set()
        self.scales: dict[str, float] = {}
        for name, scales in scaler.per_target_scales.items():
            if scaler.sample_kinds[name] == "per_structure":
                # rounded as the scaler does it, before a restart and after
                self.scales[name] = scales.block(0).values[0, 0].to(dtype).item()
            elif any((block.values != 1.0).any() for block in scales.blocks()):
                self.scaled_by_atoms.add(name)

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
        scaled = self._scale(systems, predictions, self.many_properties, per_target=False)
        predictions.update(scaled)
        return Predicted(systems, predictions, targets, extra_data)

    def errors(self, predicted: Predicted) -> TensorMaps:
        """
        :param predicted: see :meth:`predict`
        :return: predictions less labels, NaN where there is no label; times :attr:`scales` they
            are in the units of the data set
        """
        errors = differences(predicted.predictions, predicted.targets, predicted.extra_data)
        scaled = self._scale(predicted.systems, errors, self.scaled_by_atoms, per_target=True)
        return {**errors, **scaled}

    def _scale(
        self, systems: list[System], values: TensorMaps, names: set[str], per_target: bool
    ) -> TensorMaps:
        return self.model.scaler.apply_scales(
            systems,
            {name: x for name, x in values.items() if name in names},
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
        self.sums = ErrorSums()

    def update(self, predicted: Predicted, values: torch.Tensor, counts: torch.Tensor) -> None:
        """Add a batch.

        :param predicted: see :meth:`Evaluator.predict`
        :param values: losses of the batch
        :param counts: numbers of labels that they are means of
        """
        self.loss.update(values, counts)
        with torch.no_grad():
            self.sums.update(self.evaluator.errors(predicted))

    def finalize(self) -> dict[str, float]:
        """
        :return: the loss and all errors over the batches of all processes
        """
        processes = self.evaluator.processes
        metrics = {"loss": self.loss.value(processes.sum(self.loss.sums))}
        not_per_atom = ["positions_gradients", *self.evaluator.per_structure_targets]
        metrics.update(self.sums.finalize(self.evaluator.scales, not_per_atom, processes))
        return metrics


def train_epoch(
    evaluator: Evaluator,
    batches: Batches,
    optimizers: list[torch.optim.Optimizer],
    grad_clip_norm: float,
    energy_factor: float,
    before_step: Callable[[int], None],
) -> dict[str, float]:
    """
    :param evaluator: model and loss
    :param batches: training batches with the indices of their structures
    :param optimizers: they have all parameters of the model
    :param grad_clip_norm: largest norm of the gradient
    :param energy_factor: of the loss weights of energies; the loss that is returned is without it
    :param before_step: called with the number of the step in the epoch, sets the learning rate
    :return: loss and errors, of the parameters before each step
    :raises FloatingPointError: if a loss or gradient is NaN or infinite
    """
    metrics = Metrics(evaluator)
    processes = evaluator.processes
    factors = evaluator.loss.energy_factors(evaluator.model.dataset_info.targets, energy_factor)
    factors = factors.to(processes.device)
    parameters = [p for p in evaluator.model.parameters() if p.requires_grad]
    for step, (indices, batch) in enumerate(batches):
        before_step(step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with naming_structures(indices, "training"):
            predicted = evaluator.predict(batch, is_training=True)
        values, counts = evaluator.loss.values_and_counts(*predicted[1:])
        total_counts = _total_counts(values, counts, processes, indices)
        loss = evaluator.loss.combine(factors.to(values) * values, counts, total_counts)
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
