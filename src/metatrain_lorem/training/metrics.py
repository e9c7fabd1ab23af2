"""Errors of an epoch, summed on the device that has them, so that the host reads them once."""

import torch
from metatensor.torch import TensorBlock, TensorMap
from metatrain.utils.metrics import MAEAccumulator, RMSEAccumulator

from .distributed import Processes

TensorMaps = dict[str, TensorMap]


def differences(predictions: TensorMaps, targets: TensorMaps, masks: TensorMaps) -> TensorMaps:
    """
    :param predictions: predictions, per target
    :param targets: labels, per target; some may be absent, some NaN
    :param masks: whether there is a label, ``<target>_mask``, for targets that have holes by design
    :return: predictions less labels, NaN where there is no label, per target
    """
    result: TensorMaps = {}
    for name, labels in targets.items():
        mask = masks.get(f"{name}_mask")
        blocks = []
        for key, label in labels.items():
            prediction = predictions[name].block(key)
            known = None if mask is None else mask.block(key).values
            block = _difference(prediction, label, known)
            for parameter, gradient in label.gradients():
                known = None if mask is None else mask.block(key).gradient(parameter).values
                difference = _difference(prediction.gradient(parameter), gradient, known)
                block.add_gradient(parameter, difference)
            blocks.append(block)
        result[name] = TensorMap(labels.keys, blocks)
    return result


def _difference(
    prediction: TensorBlock, label: TensorBlock, known: torch.Tensor | None
) -> TensorBlock:
    values = prediction.values - label.values
    if known is not None:
        values = values.masked_fill(~known.bool(), torch.nan)
    return TensorBlock(values, label.samples, label.components, label.properties)


class ErrorSums:
    """Sums of squares and of absolute values of differences, per target and gradient."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], torch.Tensor] = {}  # of target and quantity

    def update(self, differences: TensorMaps) -> None:
        """Add a batch.

        :param differences: see :func:`differences`
        """
        for name, difference in differences.items():
            for block in difference.blocks():
                self._add((name, name), block.values)
                for parameter, gradient in block.gradients():
                    self._add((name, f"{name}_{parameter}_gradients"), gradient.values)

    def _add(self, name: tuple[str, str], values: torch.Tensor) -> None:
        missing = torch.isnan(values)
        errors = values.masked_fill(missing, 0.0).to(torch.float64).abs()
        count = missing.numel() - missing.sum()
        sums = torch.stack([(errors * errors).sum(), errors.sum(), count.to(torch.float64)])
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def finalize(
        self, scales: dict[str, float], not_per_atom: list[str], processes: Processes
    ) -> dict[str, float]:
        """
        :param scales: of targets whose differences are to be multiplied by a number
        :param not_per_atom: parts of the names of quantities that are not errors per atom
        :param processes: processes that have more of the batches
        :return: RMSE and MAE of everything that has labels, by metatrain's names
        """
        names = list(self.sums)
        rows = torch.stack([self.sums[name] for name in names]).tolist() if names else []
        metrics: dict[str, float] = {}
        for column, accumulator in enumerate([RMSEAccumulator(), MAEAccumulator()]):
            for (target, quantity), row in zip(names, rows, strict=True):
                if row[2] > 0:
                    factor = scales.get(target, 1.0) ** (2 - column)
                    accumulator.information[quantity] = (factor * row[column], row[2])
            metrics.update(
                accumulator.finalize(
                    not_per_atom=not_per_atom,
                    is_distributed=processes.is_distributed,
                    device=processes.device,
                )
            )
        return metrics
