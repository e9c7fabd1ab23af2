r"""Radial basis functions and the cutoff that ends them smoothly."""

import math

import torch

from ..safe import base_of_powers, smooth_cutoff
from .constants import join_constants, split_constants

CUTOFF_FUNCTIONS = ("cosine", "smooth")
RADIAL_BASES = ("bernstein", "bessel")


def twice_cosine_cutoff(u: torch.Tensor) -> torch.Tensor:
    """
    :param u: distances over the cutoff, at most 1, any shape
    :return: half a period of a cosine, from two to zero; the other function is
        :func:`.safe.smooth_cutoff`
    """
    return 1.0 + torch.cos(torch.pi * u)


class RadialBasis(torch.nn.Module):
    r"""Radial functions :math:`B_n(r) f_c(r)` of the pair distances.

    With :math:`u = r / r_c`:

    * ``bernstein``: :math:`B_n = \binom{K-1}{n} u^n (1-u)^{K-1-n}`, :math:`n = 0 \ldots K-1`
      (LOREM, arXiv 2507.19382);
    * ``bessel``: :math:`B_n = \sqrt{2/r_c}\,\sin((n+1) \pi u) / r` (DimeNet, arXiv 2003.03123,
      eq. 7);
    * cutoff ``cosine``: :math:`f_c = \frac{1}{2} (1 + \cos \pi u)`;
    * cutoff ``smooth``: :math:`f_c = \exp(1 - 1/(1-u^2))`, all of whose derivatives vanish at
      the cutoff.

    :param cutoff: distance in Å at which all functions end
    :param num_radial: number K of functions
    :param radial_basis: ``bernstein`` or ``bessel``
    :param cutoff_function: ``cosine`` or ``smooth``
    :raises ValueError: for any other name, or a cutoff or number that is not positive
    """

    def __init__(
        self, cutoff: float, num_radial: int, radial_basis: str, cutoff_function: str
    ) -> None:
        super().__init__()
        if radial_basis not in RADIAL_BASES:
            raise ValueError(f"radial_basis: {radial_basis!r} is not one of {RADIAL_BASES}")
        if cutoff_function not in CUTOFF_FUNCTIONS:
            raise ValueError(
                f"cutoff_function: {cutoff_function!r} is not one of {CUTOFF_FUNCTIONS}"
            )
        if cutoff <= 0.0:
            raise ValueError(f"cutoff: {cutoff} is not a positive distance")
        if num_radial < 1:
            raise ValueError(f"num_radial: {num_radial} is not a positive number")
        self.cutoff = float(cutoff)
        self.radial_basis = radial_basis
        self.cutoff_function = cutoff_function

        self.factor: float = 0.5 if cutoff_function == "cosine" else 1.0
        binomials = self.factor * torch.tensor(
            [math.comb(num_radial - 1, n) for n in range(num_radial)], dtype=torch.float64
        )
        self.register_buffer("binomials", split_constants(binomials), persistent=False)
        # n = step * i + j: powers of i and of j make all functions by an outer product
        self.step = max(k for k in range(1, int(num_radial**0.5) * 2 + 1) if num_radial % k == 0)
        n = torch.arange(num_radial, dtype=torch.float64)
        fine, coarse = n[: self.step], n[:: self.step]
        powers = torch.stack([torch.cat([fine, coarse]), torch.cat([fine.flip(0), coarse.flip(0)])])
        self.register_buffer("powers", powers, persistent=False)
        self.register_buffer("numbers", n + 1.0, persistent=False)

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        """
        :param distances: pair distances in Å ``[pairs]``, none above the cutoff
        :return: radial functions ``[pairs, num_radial]``
        """
        u = (distances / self.cutoff).unsqueeze(-1)
        if self.cutoff_function == "cosine":
            cutoffs = twice_cosine_cutoff(u)
        else:
            cutoffs = smooth_cutoff(u)
        if self.radial_basis == "bessel":
            waves = torch.sin(torch.pi * self.numbers.to(u.dtype) * u)
            factor = self.factor * (2.0 / self.cutoff) ** 0.5
            return waves * (cutoffs * factor / distances.unsqueeze(-1))
        bases = torch.stack([u, base_of_powers(1.0 - u)], dim=1)
        of_u, of_v = (bases ** self.powers.to(u.dtype)).unbind(dim=1)
        fine, coarse = (of_u * of_v).split([self.step, self.powers.shape[1] - self.step], dim=1)
        basis = ((coarse * cutoffs).unsqueeze(2) * fine.unsqueeze(1)).flatten(1)
        return basis * join_constants(self.binomials, u.dtype)
