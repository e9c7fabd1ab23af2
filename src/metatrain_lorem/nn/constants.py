r"""Constants that keep their double precision when a model is cast to single and back.

``Module.to(dtype)`` rounds floating-point buffers for good: a model trained in single precision and
evaluated in double would have Clebsch-Gordan coefficients with errors of 1e-8. A constant is
therefore stored as the sum of two numbers that single precision holds exactly.
"""

import torch


def split_constants(constants: torch.Tensor) -> torch.Tensor:
    """
    :param constants: float64
    :return: their rounded values and the remainders, stacked in front, for a buffer
    """
    rounded = constants.to(torch.float32).to(torch.float64)
    return torch.stack([rounded, constants - rounded])


def join_constants(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    :param parts: from :func:`split_constants`
    :param dtype: wanted floating-point type
    :return: the constants, to 48 bits in float64; in single precision the second part is lost
    """
    if dtype == torch.float32:
        return parts[0].to(dtype)
    return parts[0].to(dtype) + parts[1].to(dtype)
