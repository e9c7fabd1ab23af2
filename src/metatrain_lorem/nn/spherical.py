r"""Real spherical harmonics and degree-wise norms of spherical features.

Spherical features are arrays ``[atoms, (max_degree + 1)**2, channels]``; the components of
degree l stand at ``l**2 ... (l + 1)**2 - 1`` in the order m = -l ... l (so degree 1 is y, z, x).
Harmonics have Racah's normalisation: degree 1 *is* the unit vector.
"""

import torch

from ..safe import cusped_norms, smooth_norms
from .clebsch_gordan import clebsch_gordan
from .constants import join_constants, split_constants

# y, z, x (degree 1 in the order m = -1, 0, 1) to x, y, z, and back
CARTESIAN = [2, 0, 1]
SPHERICAL = [1, 2, 0]


class SphericalHarmonics(torch.nn.Module):
    r"""Real spherical harmonics of unit vectors by coupling those of lower degrees.

    .. math:: Y_{l_1 + l_2, m} \propto
        \sum_{m_1 m_2} C^{l_1 l_2, l_1 + l_2}_{m_1 m_2 m}\, Y_{l_1 m_1} Y_{l_2 m_2}

    (Varshalovich, 5.6.2, eq. 9). Products of the largest degree n known so far with the degrees 1
    to n give the degrees n + 1 to 2n in one product of matrices, so that few operators make all.

    :param max_degree: largest degree L
    """

    # highest degree before each round, and after it; TorchScript can't infer it from an empty list
    rounds: list[tuple[int, int]]

    def __init__(self, max_degree: int) -> None:
        super().__init__()
        self.rounds = []
        couplings: list[torch.Tensor] = []
        known = 1
        while known < max_degree:
            reached = min(2 * known, max_degree)
            self.rounds.append((known, reached))
            couplings.append(_couplings(known, reached).flatten(0, 1).T.flatten())
            known = reached
        self.max_degree = max_degree
        flat = torch.cat(couplings) if couplings else torch.zeros(0, dtype=torch.float64)
        self.register_buffer("couplings", split_constants(flat), persistent=False)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """
        :param vectors: unit vectors ``[pairs, 3]``
        :return: harmonics ``[pairs, (L + 1)**2]``, normalised so that the squares of one degree
            sum to one
        """
        return self.components(vectors.T).T

    def components(self, vectors: torch.Tensor) -> torch.Tensor:
        """
        The same with pairs in the last dimension, which runs through long contiguous rows.

        :param vectors: unit vectors ``[3, pairs]``
        :return: harmonics ``[(L + 1)**2, pairs]``
        """
        constant = torch.ones_like(vectors[:1])
        if self.max_degree == 0:
            return constant
        couplings = join_constants(self.couplings, vectors.dtype)
        # x, y, z to y, z, x
        lower = torch.roll(vectors, -1, 0)
        parts = [constant, lower]
        start = 0
        for known, reached in self.rounds:
            # the largest degree so far, times those from 1 on
            last, added = parts[-1], reached - known
            if last.shape[0] > 2 * known + 1:
                last = last[-2 * known - 1 :]
            if lower.shape[0] < added * (added + 2):
                lower = torch.cat(parts[1:])
            if lower.shape[0] > added * (added + 2):
                lower = lower[: added * (added + 2)]
            products = (last.unsqueeze(1) * lower.unsqueeze(0)).flatten(0, 1)
            size = added * (known + reached + 2)
            stop = start + size * products.shape[0]
            parts.append(couplings[start:stop].view(size, -1) @ products)
            start = stop
        return torch.cat(parts)


def _couplings(known: int, reached: int) -> torch.Tensor:
    """
    :param known: degree n of the first factor
    :param reached: largest degree of the product, at most 2n; the second factor has the degrees 1
        to ``reached - known``
    :return: from products of components to those of the degrees ``known + 1 ... reached``,
        ``[2 n + 1, components, new components]``
    """
    added = reached - known
    shape = (2 * known + 1, (added + 1) ** 2 - 1, (reached + 1) ** 2 - (known + 1) ** 2)
    couplings = torch.zeros(shape, dtype=torch.float64)
    for degree in range(1, added + 1):
        table = clebsch_gordan(known, degree, known + degree)
        second = slice(degree**2 - 1, (degree + 1) ** 2 - 1)
        first_new = (known + degree) ** 2 - (known + 1) ** 2
        new = slice(first_new, first_new + 2 * (known + degree) + 1)
        # along z only components with m = 0 remain, all equal to one
        couplings[:, second, new] = table / table[known, degree, known + degree]
    return couplings


class SphericalNorms(torch.nn.Module):
    r"""Invariants of spherical features, one per degree and channel.

    * ``smooth``: the scalar :math:`\rho_0` itself, and
      :math:`\sqrt{\|\rho_l\|^2 + \delta^2} - \delta`, where :math:`\delta` is the root
      mean square over all degrees and channels of the atom. Where symmetry makes a feature vanish,
      as in crystals, the potential then has all derivatives;
    * ``lorem-jax``: :math:`|\rho_0|` and :math:`\|\rho_l\|` (LOREM, arXiv 2507.19382), which have a
      cusp there; gradients and second derivatives are taken as zero.

    Degrees above zero are multiplied by :math:`(2l+1)^{1/4}`, which evens out the spread of norms
    across degrees.

    :param max_degree: largest degree L
    :param norms: ``smooth`` or ``lorem-jax``
    :param num_channels: channels of the features
    """

    def __init__(self, max_degree: int, norms: str, num_channels: int) -> None:
        super().__init__()
        self.smooth: bool = norms == "smooth"
        degrees = degrees_of_components(max_degree)
        members = (degrees == torch.arange(1, max_degree + 1).unsqueeze(1)).to(torch.float64)
        factors = (2.0 * torch.arange(1, max_degree + 1, dtype=torch.float64) + 1.0) ** 0.25
        if self.smooth:
            each = torch.eye(num_channels, dtype=torch.float64)
            sums, differences = torch.kron(members, each), torch.kron(factors.diag(), each)
            mean = torch.full([1, sums.shape[1]], 1.0 / sums.shape[1], dtype=torch.float64)
            members = torch.cat([sums, torch.zeros_like(mean)]) + mean
            factors = torch.cat([differences, -differences.sum(dim=0, keepdim=True)])
        else:
            factors = factors.unsqueeze(1)
        self.register_buffer("members", split_constants(members), persistent=False)
        self.register_buffer("factors", split_constants(factors), persistent=False)
        self.register_buffer("least", torch.tensor([1e-12], dtype=torch.float64), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """
        :param features: ``[atoms, (L + 1)**2, channels]``
        :return: ``[atoms, (L + 1) * channels]``, channels fastest
        """
        return torch.cat(self.parts(features), dim=1)

    def parts(self, features: torch.Tensor) -> list[torch.Tensor]:
        """
        :param features: ``[atoms, (L + 1)**2, channels]``
        :return: invariants of degree zero ``[atoms, channels]`` and of the others
            ``[atoms, L * channels]``
        """
        members = join_constants(self.members, features.dtype)
        factors = join_constants(self.factors, features.dtype)
        if self.smooth:
            least = self.least.to(features.dtype)
            return [features[:, 0], smooth_norms(features, members, factors, least)]
        # the second derivative of the general form is zero only up to rounding / |x|
        return [features[:, 0].abs(), (cusped_norms(features, members) * factors).flatten(1)]


def degrees_of_components(max_degree: int) -> torch.Tensor:
    """Degree of every spherical component.

    :param max_degree: largest degree L
    :return: integers ``[(L + 1)**2]``
    """
    degrees = torch.arange(max_degree + 1)
    return degrees.repeat_interleave(2 * degrees + 1)
