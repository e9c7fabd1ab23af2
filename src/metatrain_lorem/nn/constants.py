r"""Constants that keep their double precision when a model is cast to single and back.

``Module.to(dtype)`` rounds floating-point buffers for good: a model trained in single precision and
evaluated in double would have Clebsch-Gordan coefficients with errors of 1e-8. Buffers of integers
are left alone, so constants are stored by their bits.
"""

import torch


def to_bits(constants: torch.Tensor) -> torch.Tensor:
    """
    :param constants: float64
    :return: int64 of the same shape, for a buffer
    """
    return constants.to(torch.float64).view(dtype=torch.int64)


def from_bits(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    :param bits: from :func:`to_bits`
    :param dtype: wanted floating-point type
    :return: the constants
    """
    # by keyword: TorchScript takes a positional type for a size
    return bits.view(dtype=torch.float64).to(dtype)
