"""Weights with which charges count in the loss beside forces."""

import logging
from typing import Any

import torch
from metatrain.utils.abc import ModelInterface
from metatrain.utils.loss import (
    LossInterface,
    TensorMapMaskedMSELoss,
    TensorMapMSELoss,
)

from ..heads.charges import ATOMIC_CHARGE, DIPOLE_MOMENT
from .distributed import Processes
from .loss import GlobalLoss
from .unscaled import unscaled_targets

SHARE = 0.05
"""Of the loss of forces that are all zero, which that of charges at their mean is to have
(docs/src/choosing.rst, "Weight of charges")."""

LEAST = 0.01
"""Of the weight that follows; below, charges get worse while forces are learnt."""


class LabelSpread:
    """How far labels without scale are from their mean, for atoms that of their element, and what
    forces there are beside them.

    :param model: the model
    """

    def __init__(self, model: ModelInterface) -> None:
        # number, sum and sum of squares of the labels of each element
        names = unscaled_targets(model)
        self.sums = {name: torch.zeros(256, 3, dtype=torch.float64) for name in names}
        # number and sum of squares of the components of forces
        self.forces = {
            name: torch.zeros(2, dtype=torch.float64)
            for name, info in model.dataset_info.targets.items()
            if "positions" in info.layout.block(0).gradients_list()
            # a potential of a backbone leaves smaller ones to be learnt
            and (model.backbone is None or name not in model.backbone.energies)
        }
        # what energies have of the square of their scale, where forces have the rest
        self.energies: dict[str, float] = {}

    def add(self, fields: dict[str, Any]) -> None:
        """
        :param fields: structure and labels
        """
        for name, sums in self.sums.items():
            if name not in fields:
                continue
            values = fields[name].block().values.to("cpu", torch.float64)
            types = torch.zeros(values.shape[0], dtype=torch.int64)
            if "atom" in fields[name].block().samples.names:
                types = fields["system"].types.to("cpu", torch.int64)
            types = types.repeat_interleave(values[0].numel())
            values = values.flatten()
            known = torch.isfinite(values)
            powers = torch.stack([torch.ones_like(values), values, values**2], dim=1)
            sums.index_add_(0, types[known], powers[known])
        for name, sums in self.forces.items():
            if name in fields and "positions" in fields[name].block().gradients_list():
                values = fields[name].block().gradient("positions").values
                values = values[torch.isfinite(values)].to("cpu", torch.float64)
                sums += torch.stack([torch.ones_like(values), values**2]).sum(dim=1)

    def mean_square_forces(self, processes: Processes) -> dict[str, float]:
        """
        :param processes: each has added its share
        :return: mean square of the components, by energy target; none without labels
        """
        means = {}
        for name, sums in self.forces.items():
            # a copy: the sum over the processes overwrites it, and there are two calls
            count, squares = processes.sum(sums.to(processes.device, copy=True)).tolist()
            if count > 0:
                means[name] = squares / count
        return means

    def report(self, model: ModelInterface, loss: GlobalLoss, processes: Processes) -> None:
        """Log a weight for the loss of each target whose loss is a mean square, and warn where that
        of charges or dipole moments is far below.

        :param model: with its final scales
        :param loss: with the weights
        :param processes: each has added its share
        """
        terms = {(x.target, x.gradient): x for x in loss.losses.values() if is_mean_square(x)}
        # loss of an error as large as the spread: that of other targets
        scaled = [name for name in model.dataset_info.targets if name not in self.sums]
        value = max((self.energies.get(name, 1.0) for name in scaled), default=1.0)
        described = "counts like other targets" + (" with weight 1" if value < 1.0 else "")
        for name, square in self.mean_square_forces(processes).items():
            # a model that has forces already starts with smaller errors
            if model.finetunes or (name, "positions") not in terms:
                continue
            scale = float(model.scaler.model.scales[name].block().values.mean())
            of_forces = terms[name, "positions"].weight * square / scale**2
            if SHARE * of_forces > value:
                value = SHARE * of_forces
                described = f"costs {SHARE:.0%} of what the forces of '{name}' cost at first"
        for name, sums in self.sums.items():
            count, total, squares = processes.sum(sums.to(processes.device)).cpu().unbind(dim=1)
            variance = float((squares - total**2 / count.clamp(min=1)).sum() / count.sum())
            if not variance > 0.0 or (name, None) not in terms:
                continue
            weight, given = value / variance, terms[name, None].weight
            logging.info(
                f"Target '{name}' has neither baseline nor scale. Its training labels deviate by "
                f"{variance**0.5:.3g} from their mean (of each element, for atoms): with a weight "
                f"of {weight:.2g} in the loss an error as large {described}. Its weight is "
                f"{given:g}"
            )
            if name in (ATOMIC_CHARGE, DIPOLE_MOMENT) and 0.0 < given < LEAST * weight:
                logging.warning(
                    f"The weight of '{name}' in the loss, {given:g}, is less than a hundredth of "
                    f"{weight:.2g}, with which an error as large as their spread {described}: it "
                    "will hardly be learnt"
                )


def is_mean_square(term: LossInterface) -> bool:
    """
    :param term: of the loss
    :return: whether it is the mean of squared errors
    """
    mean_square = isinstance(term, (TensorMapMSELoss, TensorMapMaskedMSELoss))
    return mean_square and term.reduction == "mean"
