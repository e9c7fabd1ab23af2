"""Loss of a batch that is spread over several processes and may lack labels."""

import math

import torch
from metatensor.torch import TensorMap
from metatrain.utils.data import TargetInfo
from metatrain.utils.loss import (
    BaseTensorMapLoss,
    LossAggregator,
    LossInterface,
    MaskedTensorMapLoss,
)


class GlobalLoss(LossAggregator):
    r"""Weighted sum of loss terms, each averaged over all labels of the global batch.

    Term t with weight :math:`w_t` has the mean :math:`L_t^r` over the :math:`n_t^r` labels that
    process r holds. The global mean is :math:`\sum_r n_t^r L_t^r / \sum_r n_t^r`, which the mean
    of the processes' means is only if all hold equally many labels. So process r uses the loss

    .. math:: L^r = \sum_t w_t \frac{n_t^r}{\sum_{r'} n_t^{r'}} L_t^r

    and the sum of the gradients over processes is the gradient of the global loss.
    """

    def energy_factors(self, targets: dict[str, TargetInfo], factor: float) -> torch.Tensor:
        """
        :param targets: what the losses are of
        :param factor: for the terms of energies; forces and stress are not among them
        :return: what to multiply each term by ``[terms]``
        """
        of_energies = [
            term.gradient is None and targets[term.target].quantity == "energy"
            for term in self.losses.values()
        ]
        return torch.where(torch.tensor(of_energies), factor, 1.0)

    def values_and_counts(
        self,
        predictions: dict[str, TensorMap],
        targets: dict[str, TensorMap],
        extra_data: dict[str, TensorMap] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param predictions: predictions of this process, per target
        :param targets: labels of this process, per target; some may be absent
        :param extra_data: masks of masked losses
        :return: the value of each term ``[terms]`` and its number of labels ``[terms]`` (float64)
        """
        first = next(iter(predictions.values())).block(0).values
        values, counts = [], []
        for term in self.losses.values():
            count = _count_labels(term, targets, extra_data)
            if count > 0:
                values.append(term.compute(predictions, targets, extra_data).to(first.dtype))
            else:
                values.append(first.new_zeros(()))
            counts.append(count)
        counts = torch.tensor(counts, device=first.device, dtype=torch.float64)
        return torch.stack(values), counts

    def combine(
        self, values: torch.Tensor, counts: torch.Tensor, total_counts: torch.Tensor
    ) -> torch.Tensor:
        """
        :param values: value of each term over some labels ``[terms]``
        :param counts: numbers of these labels ``[terms]``
        :param total_counts: numbers of labels in the global batch ``[terms]``
        :return: share of these labels in the global loss, a scalar
        """
        terms = self.losses.values()
        weights = torch.tensor([term.weight for term in terms]).to(counts)
        averaged = torch.tensor([term.reduction == "mean" for term in terms], device=counts.device)
        share = torch.where(averaged, counts / total_counts.clamp(min=1), 1.0)
        return (values * (weights * share).to(values.dtype)).sum()


class MeanLoss:
    """Loss over many batches: as if all their labels were in one batch.

    :param loss: the loss function
    :param device: device of the sums
    """

    def __init__(self, loss: GlobalLoss, device: torch.device) -> None:
        self.loss = loss
        self.sums = torch.zeros(2, len(loss.losses), dtype=torch.float64, device=device)
        averaged = [term.reduction == "mean" for term in loss.losses.values()]
        self.averaged = torch.tensor(averaged, device=device)

    def update(self, values: torch.Tensor, counts: torch.Tensor) -> None:
        """
        :param values: value of each term in a batch ``[terms]``
        :param counts: number of labels of each term ``[terms]``
        """
        values = values.detach().to(counts.dtype)
        self.sums[0] += torch.where(self.averaged, values * counts, values)
        self.sums[1] += counts

    def value(self, sums: torch.Tensor) -> float:
        """
        :param sums: :attr:`sums`, summed over all processes
        :return: the loss
        """
        counts = sums[1].clamp(min=1)
        values = torch.where(self.averaged, sums[0] / counts, sums[0])
        return self.loss.combine(values, sums[1], sums[1]).item()


def check_energy_factor(factor: float) -> None:
    """
    :param factor: of the loss weights of energies in the last epochs
    :raises ValueError: if it is not a positive number
    """
    if not 0.0 < factor < math.inf:
        raise ValueError(f"`final_energy_factor` is {factor:g}: it has to be a positive number")


def _count_labels(
    term: LossInterface,
    targets: dict[str, TensorMap],
    extra_data: dict[str, TensorMap] | None,
) -> int:
    """Number of labels over which the term takes its mean."""
    if term.target not in targets:
        return 0
    count = 0
    for key, block in targets[term.target].items():
        if term.gradient is not None:
            if term.gradient not in block.gradients_list():
                return 0
            block = block.gradient(term.gradient)
        if not isinstance(term, BaseTensorMapLoss):
            # e.g. the shift-agnostic loss: a mean over samples
            count += len(block.samples)
            continue
        known = ~torch.isnan(block.values)
        if isinstance(term, MaskedTensorMapLoss) and extra_data is not None:
            mask = extra_data[f"{term.target}_mask"].block(key)
            known &= (mask if term.gradient is None else mask.gradient(term.gradient)).values.bool()
        count += int(known.sum())
    return count
