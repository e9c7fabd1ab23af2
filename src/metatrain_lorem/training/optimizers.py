"""AdamW, Muon, and the learning rate as a function of progress."""

import logging
import math

import torch

from ..nn.tensor_dense import DegreeLinear

ADAMW_FACTOR = 0.2
"""Learning rate of AdamW beside Muon, relative to Muon's. On the clusters of the quickstart 0.1 to
0.3 leave 0.85 of the errors of charges that 1 with Muon for vectors leaves (three seeds of 0.2);
energies and forces are the same within the scatter of seeds."""


class Muon(torch.optim.Optimizer):
    r"""Momentum, orthogonalised by Newton-Schulz iterations (Jordan et al. 2024).

    With gradient g in step t, momentum :math:`\beta` and Nesterov's look-ahead, both bias-corrected
    as in optax (``optax.contrib.muon``, with which lorem-jax is trained),

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad
        u_t = \frac{\beta m_t}{1 - \beta^{t+1}} + \frac{(1 - \beta) g_t}{1 - \beta^t},

    a matrix W shrinks by :math:`1 - \eta\lambda` and then moves by
    :math:`-\eta \sqrt{\max(1, n_\text{out} / n_\text{in})}` times the nearest semi-orthogonal
    matrix to u. ``torch.optim.Muon`` differs: no bias correction, iterations in bfloat16.

    :param groups: parameter groups; parameters are matrices ``[..., n_in, n_out]``, or
        ``[..., n_out, n_in]`` in groups with ``out_first: True``
    :param lr: learning rate :math:`\eta`
    :param weight_decay: weight decay :math:`\lambda`
    :param momentum: momentum :math:`\beta`
    """

    def __init__(
        self, groups: list[dict], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "out_first": False,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        # matrices of one shape, lying or standing, are orthogonalised together
        alike: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor, float]]] = {}
        for group in self.param_groups:
            beta = group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["momentum"] = torch.zeros_like(parameter)
                state["step"] += 1
                step, momentum = state["step"], state["momentum"]
                momentum.lerp_(parameter.grad, 1 - beta)
                update = momentum * (beta / (1 - beta ** (step + 1)))
                update += parameter.grad * ((1 - beta) / (1 - beta**step))
                num_out, num_in = parameter.shape[-2:]
                if not group["out_first"]:
                    num_in, num_out = num_out, num_in
                scale = group["lr"] * math.sqrt(max(1.0, num_out / num_in))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                target = parameter
                if update.shape[-2] > update.shape[-1]:
                    target, update = parameter.mT, update.mT
                alike.setdefault(tuple(update.shape[-2:]), []).append((target, update, scale))
        for shape, members in alike.items():
            stacked = torch.cat([update.reshape(-1, *shape) for _, update, _ in members])
            counts = [update.numel() // (shape[0] * shape[1]) for _, update, _ in members]
            results = orthogonalised(stacked).split(counts)
            for (target, _, scale), result in zip(members, results, strict=True):
                target.add_(result.view(target.shape), alpha=-scale)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    r"""Semi-orthogonal matrices near :math:`U V^T` of the singular value decomposition.

    Five iterations :math:`X \to P X` with :math:`P = a + b (X X^T) + c (X X^T)^2`, whose
    coefficients (Jordan et al. 2024) bring singular values quickly, but only roughly (0.7 to 1.2),
    to 1. All P commute: for long X it is faster to iterate :math:`X X^T \to P X X^T P` and to
    multiply X by the product of all P in the end.

    :param matrices: ``[..., rows, columns]``
    :return: the same shape
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT).mT
    rows, columns = matrices.shape[-2:]
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-8)
    if columns < 2 * rows:
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return x
    gram = x @ x.mT
    identity = 3.4445 * torch.eye(rows, dtype=x.dtype, device=x.device)
    product = None
    for _ in range(5):
        polynomial = identity - 4.7750 * gram + 2.0315 * gram @ gram
        product = polynomial if product is None else polynomial @ product
        gram = polynomial @ gram @ polynomial
    return product @ x


def build_optimizers(
    model: torch.nn.Module,
    name: str,
    learning_rate: float,
    weight_decay: float,
    backbone_factor: float = 1.0,
) -> list[torch.optim.Optimizer]:
    """
    Weights of one row or column, as those of last layers, have nothing to orthogonalise. By Muon
    they would move by steps of one length in the direction of the gradient, however stiff that is,
    so that energies would not settle.

    :param model: the model
    :param name: ``"adamw"``, or ``"muon"`` for Muon on matrices and AdamW on the rest
    :param learning_rate: highest learning rate
    :param weight_decay: weight decay of the matrices of linear maps
    :param backbone_factor: what the learning rate of a backbone is multiplied by
    :return: the optimizers, which together have every trainable parameter once
    """
    out_first, in_first, embeddings = [], [], []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            out_first.append(module.weight)
        elif isinstance(module, DegreeLinear):
            in_first.append(module.weight)
        elif isinstance(module, torch.nn.Embedding):
            embeddings.append(module.weight)
    matrices = [[p for p in x if min(p.shape[-2:]) > 1] for x in (out_first, in_first, embeddings)]
    vectors = [p for p in out_first + in_first if min(p.shape[-2:]) == 1]
    out_first, in_first, embeddings = matrices
    known = {id(parameter) for parameter in out_first + in_first + embeddings + vectors}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]

    groups = [
        {"params": out_first, "out_first": True, "weight_decay": weight_decay},
        {"params": in_first, "out_first": False, "weight_decay": weight_decay},
        {"params": embeddings, "out_first": False, "weight_decay": 0.0},
    ]
    factor = ADAMW_FACTOR if name == "muon" else 1.0
    others = [
        {"params": vectors, "weight_decay": weight_decay, "learning_rate_factor": factor},
        {"params": rest, "weight_decay": 0.0, "learning_rate_factor": factor},
    ]
    if getattr(model, "backbone", None) is not None:
        backbone = {id(parameter) for parameter in model.backbone.model.parameters()}
        groups = split_groups(groups, backbone, backbone_factor)
        others = split_groups(others, backbone, backbone_factor)
    if name == "muon":
        adamw = torch.optim.AdamW(others, lr=learning_rate, fused=True)
        return [Muon(groups, lr=learning_rate), adamw]
    return [torch.optim.AdamW([*groups, *others], lr=learning_rate, fused=True)]


def check_backbone_factor(model: torch.nn.Module, factor: float) -> None:
    """Say where a learning rate of the backbone can't be, or has no effect.

    :param model: the model
    :param factor: hyper ``backbone_learning_rate_factor``
    :raises ValueError: for a factor that is negative or not finite
    """
    key = "architecture.training.backbone_learning_rate_factor"
    if not 0.0 <= factor < math.inf:
        raise ValueError(f"{key}: {factor} is not a finite number of zero or more")
    if factor == 1.0:
        return
    if model.backbone is None:
        logging.warning(f"{key}: {factor} has no effect, for the model has no backbone")
    elif model.hypers["backbone"]["freeze"]:
        logging.warning(f"{key}: {factor} has no effect, for the backbone is frozen (`freeze`)")


def split_groups(groups: list[dict], chosen: set[int], factor: float) -> list[dict]:
    """
    :param groups: parameter groups
    :param chosen: identities of parameters
    :param factor: of the learning rate of these parameters
    :return: each group without them, and each with nothing but them
    """
    split = []
    for group in groups:
        params = group["params"]
        split.append({**group, "params": [p for p in params if id(p) not in chosen]})
        few = [p for p in params if id(p) in chosen]
        factor_of_few = factor * group.get("learning_rate_factor", 1.0)
        split.append({**group, "params": few, "learning_rate_factor": factor_of_few})
    return split


def set_learning_rate(
    optimizers: list[torch.optim.Optimizer],
    learning_rate: float,
    progress: float,
    warmup_fraction: float,
) -> float:
    """Linear warm-up to ``learning_rate``, then a cosine to zero.

    :param optimizers: where to set it, in all groups
    :param learning_rate: highest learning rate
    :param progress: fraction of all training steps done, this one included
    :param warmup_fraction: fraction of steps for the warm-up
    :return: the learning rate that was set
    """
    if progress < warmup_fraction:
        learning_rate *= progress / warmup_fraction
    elif warmup_fraction < 1:
        phase = (progress - warmup_fraction) / (1 - warmup_fraction)
        learning_rate *= 0.5 * (1 + math.cos(math.pi * phase))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("learning_rate_factor", 1.0)
    return learning_rate


def load_states(optimizers: list[torch.optim.Optimizer], states: list[dict]) -> None:
    """Continue with saved moments, but with the present weight decay and learning rate.

    :param optimizers: new optimizers
    :param states: their ``state_dict`` at the end of an epoch
    """
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
