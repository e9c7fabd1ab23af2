r"""Invariant readout: one MLP per stage of the features, summed."""

import torch

from ..nn.mlp import linear


class InvariantHead(torch.nn.Module):
    r"""Sum over the stages of ``MLP_[d, d, outputs](x_stage)``: the residual energies of LOREM
    (arXiv 2507.19382), and the invariant coefficients of any other target.

    The last linear layers of all stages are kept as one linear map of their concatenated hidden
    features, in the order of the stages: density, message passing (each step), long range. These
    hidden features are the target's last-layer features.

    :param num_features: scalar features d
    :param num_stages: number of stages
    :param num_outputs: number of outputs
    """

    def __init__(self, num_features: int, num_stages: int, num_outputs: int) -> None:
        super().__init__()
        d = num_features
        self.stages = torch.nn.ModuleList(
            torch.nn.Sequential(linear(d, d), torch.nn.SiLU(), linear(d, d), torch.nn.SiLU())
            for _ in range(num_stages)
        )
        self.last_layer = linear(num_stages * d, num_outputs)

    def last_layer_features(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """
        :param stages: scalar features after each stage, each ``[atoms, d]``
        :return: ``[atoms, num_stages * d]``
        """
        hidden: list[torch.Tensor] = []
        for i, mlp in enumerate(self.stages):
            hidden.append(mlp(stages[i]))
        return torch.cat(hidden, dim=1)

    def forward(self, last_layer_features: torch.Tensor) -> torch.Tensor:
        """
        :param last_layer_features: ``[atoms, num_stages * d]``
        :return: ``[atoms, num_outputs]``
        """
        return self.last_layer(last_layer_features)
