"""Gradients of a loss of energies and forces, of all parameters, with the derivatives that are
written by hand for training and with PyTorch's own."""

import pytest
import torch
from helpers.batches import tune
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.evaluate_model import evaluate_model

from metatrain_lorem.nn.tensor_dense import TensorProduct

SHORT = {"long_range": {"enable": False}}
DENSE = {"enable": True, "solver": "dense", "accuracy": 1e-4}
ITERATIVE = {**DENSE, "solver": "iterative", "tolerance": 1e-13}
MODELS = {
    "short range": SHORT,
    "bessel functions": {"radial_basis": "bessel", "cutoff_function": "smooth", **SHORT},
    "long range": {},
    "message passing": {"num_message_passing": 1},
    "scalar message passing": {"num_message_passing": 1, "equivariant_message_passing": False},
    "dispersion": {"long_range": {"exponents": [1, 6]}},
    "dense charges": {"charge_equilibration": DENSE, "conditional": True},
    "iterative charges": {"charge_equilibration": ITERATIVE, "conditional": True},
    "learned widths": {"charge_equilibration": {**ITERATIVE, "learn_widths": True}},
    "total charge": {"conditional": True},
}


def gradients(model, systems, by_hand):
    """Of a mean squared error against labels of no meaning."""
    model.train()
    for module in model.children():
        module.train(by_hand)
    target = get_energy_target_info("energy", {"unit": "eV"}, add_position_gradients=True)
    model.zero_grad(set_to_none=True)
    results = evaluate_model(model, systems, {"energy": target}, is_training=True)
    energies = results["energy"].block()
    forces = energies.gradient("positions").values
    generator = torch.Generator().manual_seed(1)
    loss = torch.mean((energies.values + 1.0) ** 2)
    labels = torch.randn(forces.shape, dtype=forces.dtype, generator=generator)
    loss = loss + 10.0 * torch.mean((forces - labels) ** 2)
    parameters = dict(model.named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    loss.backward(inputs=trained if by_hand else None)
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("on_mesh", [False, True], ids=["small", "mesh"])
@pytest.mark.parametrize("kind", MODELS)
def test_equal_those_of_double_backward(lorem, kind, on_mesh):
    if on_mesh and kind in ("short range", "bessel functions", "total charge"):
        pytest.skip("nothing on a mesh that other cases have not")
    model = lorem.new_model(**MODELS[kind])
    if on_mesh:
        for module in model.modules():
            if hasattr(module, "settings"):
                tune(module, mesh_threshold=0)
    systems = lorem.systems(model, list(lorem.frames.values()))
    own = gradients(model, systems, by_hand=True)
    expected = gradients(model, systems, by_hand=False)
    largest = max(g.abs().max().item() for g in expected.values() if g is not None)
    assert largest > 1e-3
    for name, gradient in expected.items():
        if gradient is None:
            assert own[name] is None, name
            continue
        # a gradient that symmetry makes zero is a rounding error of terms that cancel
        scale = max(gradient.abs().max().item(), 1e-5 * largest)
        assert (own[name] - gradient).abs().max().item() < 1e-10 * scale, name


def nodes(tensor):
    """Names of the functions whose derivatives a tensor needs."""
    seen, found = set(), [tensor.grad_fn]
    while found:
        node = found.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}


def test_derivatives_by_hand_are_in_use(lorem):
    """The comparison would pass, too, if both took the same way."""
    model = lorem.new_model()
    systems = lorem.systems(model, [lorem.frames["molecule"]])
    target = get_energy_target_info("energy", {"unit": "eV"}, add_position_gradients=True)
    for by_hand in (True, False):
        model.train()
        for module in model.children():
            module.train(by_hand)
        results = evaluate_model(model, systems, {"energy": target}, is_training=True)
        names = nodes(results["energy"].block().gradient("positions").values)
        assert ("ProductGradientBackward" in names) == by_hand


def test_third_derivatives_of_products():
    """Of all arguments, by the same functions again."""
    product = TensorProduct((2, 1, 2), 2).to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(3, n, 2, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (9, 4)
    )

    def second(x, y, weight):
        z = torch.func.functional_call(product, {"weight": weight}, (x, y))
        first = torch.autograd.grad((z**2).sum(), (x, y, weight), create_graph=True)
        return torch.autograd.grad(
            sum((g**2).sum() for g in first), (x, y, weight), create_graph=True
        )

    weight = product.weight.detach().clone().requires_grad_(True)
    assert torch.autograd.gradcheck(second, (x, y, weight))
