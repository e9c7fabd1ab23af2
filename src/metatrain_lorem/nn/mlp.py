"""Multilayer perceptrons and the residual update of scalar features."""

import torch


def linear(num_in: int, num_out: int, bias: bool = True) -> torch.nn.Linear:
    """Linear map whose outputs start with the variance of its inputs (LeCun normal, zero bias).

    :param num_in: number of input features
    :param num_out: number of output features
    :param bias: whether to add a learnable constant
    :return: the initialised module
    """
    layer = torch.nn.Linear(num_in, num_out, bias=bias)
    lecun_normal_(layer.weight, num_in)
    if bias:
        torch.nn.init.zeros_(layer.bias)
    return layer


def lecun_normal_(weight: torch.Tensor, fan_in: int) -> None:
    """Fill ``weight`` in place from a normal distribution of variance 1 / ``fan_in``, cut at two
    standard deviations (the width is corrected for the cut).

    :param weight: tensor to fill
    :param fan_in: number of terms that are summed into one output
    """
    std = fan_in**-0.5 / 0.87962566103423978
    torch.nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class MLP(torch.nn.Sequential):
    """Linear layers with SiLU between them and none after the last.

    :param sizes: numbers of features from the input to the output, at least two
    """

    def __init__(self, sizes: list[int]) -> None:
        layers: list[torch.nn.Module] = []
        for i, (num_in, num_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            if i > 0:
                layers.append(torch.nn.SiLU())
            layers.append(linear(num_in, num_out))
        super().__init__(*layers)


class Update(torch.nn.Module):
    """Residual update of scalar features ``x`` by other atomic quantities ``y``.

    ``x + MLP(y)``, layer norm, ``x + MLP(x)``, layer norm: step 3 of LOREM (arXiv 2507.19382).

    :param num_inputs: number of values in ``y``
    :param num_features: number of scalar features
    """

    def __init__(self, num_inputs: int, num_features: int) -> None:
        super().__init__()
        self.input_mlp = MLP([num_inputs, 2 * num_features, num_features])
        self.input_norm = torch.nn.LayerNorm(num_features, eps=1e-6)
        self.feature_mlp = MLP([num_features, 2 * num_features, num_features])
        self.feature_norm = torch.nn.LayerNorm(num_features, eps=1e-6)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """
        :param x: scalar features ``[atoms, num_features]``
        :param y: what to add ``[atoms, num_inputs]``
        :return: new scalar features ``[atoms, num_features]``
        """
        x = self.input_norm(x + self.input_mlp(y))
        return self.feature_norm(x + self.feature_mlp(x))
