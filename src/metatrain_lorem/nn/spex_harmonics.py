"""The spherical harmonics of torch-spex without its operators."""

import math

import torch

from .spherical import SphericalHarmonics


class SpexHarmonics(torch.nn.Module):
    """The same values as ``spex.angular.SphericalHarmonics``, of which metatrain's SOAP-BPNN is
    made, from operators of PyTorch alone: those of sphericart have derivatives in Python, which an
    exported file leaves behind.

    :param max_degree: largest degree L
    """

    def __init__(self, max_degree: int) -> None:
        super().__init__()
        self.m_per_l = [2 * degree + 1 for degree in range(max_degree + 1)]
        self.harmonics = SphericalHarmonics(max_degree)
        norms = [[math.sqrt(size / (4 * math.pi))] * size for size in self.m_per_l]
        self.register_buffer("norms", torch.tensor(sum(norms, []), dtype=torch.float64), False)

    def forward(self, R: torch.Tensor) -> list[torch.Tensor]:
        """
        :param R: vectors of any length ``[pairs, 3]``
        :return: of each degree ``[pairs, 2 l + 1]``
        """
        directions = R / torch.linalg.vector_norm(R, dim=1, keepdim=True)
        values = self.harmonics(directions) * self.norms.to(R.dtype)
        return values.split(self.m_per_l, dim=1)
