import json
import math
from pathlib import Path

import pytest
import torch

from metatrain_lorem.training.optimizers import (
    Muon,
    build_optimizers,
    load_states,
    orthogonalised,
    set_learning_rate,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "muon.json"


def test_muon_equals_optax():
    golden = json.loads(GOLDEN.read_text())
    start, end = (
        {name: torch.tensor(w, dtype=torch.float64) for name, w in golden[key].items()}
        for key in ("start", "end")
    )
    wide = torch.nn.Parameter(start["wide"].T.clone())  # [out, in], as in torch.nn.Linear
    tall = torch.nn.Parameter(start["tall"].clone())
    stack = torch.nn.Parameter(torch.stack([start["first"], start["second"]]))
    optimizer = Muon(
        [{"params": [wide], "out_first": True}, {"params": [tall, stack]}],
        lr=golden["learning_rate"],
        weight_decay=golden["weight_decay"],
    )
    for step in golden["gradients"]:
        gradient = {name: torch.tensor(g, dtype=torch.float64) for name, g in step.items()}
        wide.grad = gradient["wide"].T.clone()
        tall.grad = gradient["tall"]
        stack.grad = torch.stack([gradient["first"], gradient["second"]])
        optimizer.step()
    torch.testing.assert_close(wide.T, end["wide"], rtol=0, atol=1e-12)
    torch.testing.assert_close(tall, end["tall"], rtol=0, atol=1e-12)
    torch.testing.assert_close(stack[0], end["first"], rtol=0, atol=1e-12)
    torch.testing.assert_close(stack[1], end["second"], rtol=0, atol=1e-12)


def test_orthogonalised_is_near_the_polar_factor():
    torch.manual_seed(0)
    matrix = torch.randn(2, 7, 4, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    v, singular_values, wh = torch.linalg.svd(orthogonalised(matrix), full_matrices=False)
    torch.testing.assert_close(v @ wh, u @ vh)
    assert singular_values.min() > 0.6
    assert singular_values.max() < 1.3


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(8, 64), (8, 15), (3, 8, 16), (64, 8)])
def test_orthogonalised_equals_the_iterations_written_out(shape, dtype, tolerance):
    """Also of long matrices, which are not multiplied in each iteration, with singular values over
    four orders; in single precision far below the scatter of the results, 0.7 to 1.2."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64, generator=generator)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u * torch.logspace(0, -4, s.shape[-1], dtype=torch.float64) @ vh
    x = matrix / (torch.linalg.matrix_norm(matrix, keepdim=True) + 1e-8)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.mT @ x + 2.0315 * x @ x.mT @ x @ x.mT @ x
    own = orthogonalised(matrix.to(dtype))
    assert own.dtype == dtype
    torch.testing.assert_close(own.double(), x, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer(small, name):
    _, info = small.read(small.file)
    model = small.new_model(info, num_message_passing=1)
    optimizers = build_optimizers(model, name, 1e-3, 0.1)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())


def test_muon_leaves_vectors_to_adamw(small):
    """What has one row or column can't be orthogonalised: steps would have the length of the
    learning rate, whatever the gradient."""
    _, info = small.read(small.file)
    model = small.new_model(info)
    muon, adamw = build_optimizers(model, "muon", 1e-2, 0.1)
    shapes = [p.shape[-2:] for group in muon.param_groups for p in group["params"]]
    assert min(min(shape) for shape in shapes) > 1
    head = model.readout.heads["energy"].invariants.last_layer.weight
    (group,) = [g for g in adamw.param_groups if any(p is head for p in g["params"])]
    assert group["weight_decay"] == 0.1
    set_learning_rate([muon, adamw], 1e-2, 0.5, warmup_fraction=0.5)
    assert [group["lr"] for group in muon.param_groups] == pytest.approx(3 * [1e-2])
    assert [group["lr"] for group in adamw.param_groups] == pytest.approx(2 * [2e-3])


def test_weight_decay_spares_biases_norms_and_embeddings(small):
    _, info = small.read(small.file)
    model = small.new_model(info)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (optimizer,) = build_optimizers(model, "adamw", 0.1, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        spared = ("bias", "_norm.weight", "embedding.weight", "product.weight")
        factor = 1.0 if name.endswith(spared) else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter, factor * before[name], msg=name)


def test_learning_rate_rises_linearly_and_falls_on_a_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)

    def rate(progress):
        set_learning_rate([optimizer], 2.0, progress, warmup_fraction=0.2)
        return optimizer.param_groups[0]["lr"]

    assert rate(0.05) == pytest.approx(0.5)
    assert rate(0.2) == pytest.approx(2.0)
    assert rate(0.6) == pytest.approx(1.0)
    assert rate(0.4) == pytest.approx(1.0 + math.cos(math.pi / 4))
    assert rate(1.0) == pytest.approx(0.0)


def test_restart_keeps_moments_and_takes_new_hypers():
    parameter = torch.nn.Parameter(torch.ones(3))
    old = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0)
    parameter.grad = torch.ones(3)
    old.step()
    new = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.3)
    load_states([new], [old.state_dict()])
    assert new.param_groups[0]["weight_decay"] == 0.3
    assert torch.equal(new.state[parameter]["exp_avg"], old.state[parameter]["exp_avg"])
