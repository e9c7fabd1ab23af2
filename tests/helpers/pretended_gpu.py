"""A device that computes on the CPU but refuses tensors of the CPU, as a GPU does.

Its tensors say that they are on PyTorch's device ``meta``. Only plain tensors can be on it, no
System or TensorMap.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
# what a GPU allows: indices and values from the host
MIXES = ("index", "index_put", "index_put_", "_index_put_impl_", "copy_")


class Pretended(torch.Tensor):
    """A tensor on the device.

    :param inner: its values, on the CPU
    """

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        options.update(dtype=inner.dtype, device=DEVICE)
        tensor = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **options)
        tensor.inner = inner
        return tensor

    def tolist(self) -> list:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Catches what makes tensors on the device out of none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


def _call(function, args, kwargs):
    name = function.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_device = any(isinstance(x, Pretended) for x in tensors)
    on_host = any(x.dim() > 0 and not isinstance(x, Pretended) for x in tensors)
    if on_device and on_host and name not in MIXES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": "cpu"}

    def inner(x):
        return x.inner if isinstance(x, Pretended) else x

    def outer(x):
        return Pretended(x) if isinstance(x, torch.Tensor) else x

    result = function(*tree_map(inner, args), **tree_map(inner, kwargs))
    if not on_device or name == "_local_scalar_dense":
        return result
    # operations in place return the tensor itself
    return args[0] if name.endswith("_") else tree_map(outer, result)


@contextmanager
def pretended_gpu(monkeypatch) -> Iterator[None]:
    """Code in this context may make tensors on the device."""
    new_tensor = torch.tensor

    def tensor(data, device=None, **options):
        if device is None or torch.device(device) != DEVICE:
            return new_tensor(data, device=device, **options)
        return Pretended(new_tensor(data, **options))

    with monkeypatch.context() as patch, _Factories():
        patch.setattr(torch, "tensor", tensor)
        yield


def move(module: torch.nn.Module) -> None:
    """Move a module, parameters and buffers only, as ``Module.to`` does."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                moved = Pretended(value.detach()).requires_grad_(value.requires_grad)
                part._parameters[name] = moved
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = Pretended(value)
