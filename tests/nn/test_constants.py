import torch

from metatrain_lorem.nn.constants import join_constants, split_constants
from metatrain_lorem.nn.radial import RadialBasis
from metatrain_lorem.nn.tensor_dense import TensorProduct


def test_parts_survive_single_precision():
    constants = torch.tensor([1 / 3, 2**0.5, -1e-3 / 7, 300540195.0], dtype=torch.float64)
    parts = split_constants(constants).to(torch.float32).to(torch.float64)
    assert torch.allclose(join_constants(parts, torch.float64), constants, rtol=2**-48, atol=0)
    # what a plain buffer would keep
    rounded = constants.to(torch.float32).to(torch.float64)
    assert not torch.allclose(rounded, constants, rtol=1e-9, atol=0)


def test_modules_survive_single_precision():
    distances = torch.linspace(0.1, 4.9, 20, dtype=torch.float64)
    module = RadialBasis(5.0, 32, "bernstein", "cosine")
    before = module(distances)
    after = module.to(torch.float32).to(torch.float64)(distances)
    assert torch.allclose(after, before, rtol=1e-13, atol=0)

    x, y = torch.randn(2, 3, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    product = TensorProduct((3, 3, 3), 2)  # its weights are made in single precision
    product.to(torch.float64)
    before = product(x, y)
    after = product.to(torch.float32).to(torch.float64)(x, y)
    assert torch.allclose(after, before, rtol=0, atol=1e-13)
