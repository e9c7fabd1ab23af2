import torch

from metatrain_lorem.nn.mlp import MLP, Update, lecun_normal_


def silu(x):
    return x / (1 + torch.exp(-x))


def layer_norm(x, layer):
    mean = x.mean(dim=1, keepdim=True)
    variance = (x**2).mean(dim=1, keepdim=True) - mean**2
    return layer.weight * (x - mean) / (variance + 1e-6).sqrt() + layer.bias


def test_update_follows_its_definition(generator):
    update = Update(7, 4).to(torch.float64)
    for parameter in update.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(5, 7, dtype=torch.float64, generator=generator)

    def mlp(module, z):
        first, _, second = module
        assert first.out_features == 8
        return silu(z @ first.weight.T + first.bias) @ second.weight.T + second.bias

    expected = layer_norm(x + mlp(update.input_mlp, y), update.input_norm)
    expected = layer_norm(expected + mlp(update.feature_mlp, expected), update.feature_norm)
    assert torch.allclose(update(x, y), expected, rtol=0, atol=1e-12)


def test_mlp_has_no_activation_after_the_last_layer():
    mlp = MLP([2, 3, 3, 1])
    kinds = [type(layer).__name__ for layer in mlp]
    assert kinds == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert all((layer.bias == 0).all() for layer in mlp if hasattr(layer, "bias"))


def test_lecun_normal():
    torch.manual_seed(0)
    weight = torch.empty(400, 100)
    lecun_normal_(weight, 100)
    assert abs(weight.std().item() - 0.1) < 1e-3
    assert weight.abs().max() < 2.0 / 0.8796 * 0.1 + 1e-6
