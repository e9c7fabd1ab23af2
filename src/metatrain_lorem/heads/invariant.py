r"""Invariant readout: one MLP per stage of the features, summed."""

import torch

from ..nn.mlp import linear


class InvariantHead(torch.nn.Module):
    r"""Sum over the stages of ``MLP_[d, d, outputs](x_stage)``: the residual energies of LOREM
    (arXiv 2507.19382), and the invariant coefficients of any other target.

    The last linear layers of all stages are kept as one linear map of their concatenated hidden
    features, in the order of the stages: density, message passing (each step), charges, long range
    (the last two may change places). These hidden features are the target's last-layer features.

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
        self.register_buffer("weights", torch.zeros(0, num_stages, d, d), persistent=False)
        self.register_buffer("biases", torch.zeros(0, num_stages, 1, d), persistent=False)

    def fold(self) -> None:
        """Stack the weights of all stages: for evaluation only, later changes have no effect."""
        layers = [[mlp[i] for mlp in self.stages] for i in (0, 2)]
        weights = [torch.stack([layer.weight.T for layer in stages]) for stages in layers]
        biases = [torch.stack([layer.bias.unsqueeze(0) for layer in stages]) for stages in layers]
        self.weights, self.biases = torch.stack(weights).detach(), torch.stack(biases).detach()

    def last_layer_features(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """
        :param stages: scalar features after each stage, each ``[atoms, d]``
        :return: ``[atoms, num_stages * d]``
        """
        if self.weights.shape[0] > 0:
            x = torch.stack(stages)
            for weight, bias in zip(self.weights.unbind(), self.biases.unbind()):  # noqa: B905
                x = torch.nn.functional.silu(torch.baddbmm(bias, x, weight))
            return x.transpose(0, 1).flatten(1)
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
