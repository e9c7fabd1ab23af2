r"""Interactions of the lattice sums, as potentials of torch-pme.

One such object holds every term of one interaction: in real space, in reciprocal space, of a charge
with its own Gaussian, of the background. A model's potentials are
:math:`V_i = \frac{1}{2} \sum_j q_j v(r_{ij})`, hence the ``prefactor``.
"""

import math

import torch
import torchpme

from ..safe import gaussian_interaction

PREFACTOR = 0.5


def _derived(potential: torch.nn.Module) -> None:
    """Keep what follows from hyperparameters out of checkpoints."""
    for name in ("smearing", "prefactor"):
        potential.register_buffer(name, getattr(potential, name), persistent=False)


class ErfcCoulomb(torchpme.CoulombPotential):
    r""":math:`v(r) = 1/r`.

    torch-pme takes the real-space part as :math:`1/r - \mathrm{erf}(r / \sqrt 2 \sigma) / r`, which
    in single precision leaves an error of 1e-7/r at any distance; here it is evaluated as erfc.
    Its own forms of the others need fewer operators: distances and wave vectors are not zero.

    :param smearing: width of the Gaussians that split the sum, Å
    """

    def __init__(self, smearing: float) -> None:
        super().__init__(smearing=smearing, prefactor=PREFACTOR)
        _derived(self)
        self.width: float = smearing
        self.half: float = PREFACTOR

    def from_dist(self, dist: torch.Tensor, pair_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        :param dist: distances, not zero, any shape, Å
        :param pair_mask: factors of the pairs
        :return: the whole interaction, 1/Å
        """
        result = self.prefactor / dist
        if pair_mask is not None:
            result = result * pair_mask
        return result

    def sr_from_dist(
        self, dist: torch.Tensor, pair_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        :param dist: distances, any shape, Å
        :param pair_mask: factors of the pairs
        :return: what point charges interact more than Gaussians, 1/Å
        """
        result = torch.erfc(dist / (math.sqrt(2.0) * self.width)) * (self.prefactor / dist)
        if pair_mask is not None:
            result = result * pair_mask
        return result

    def lr_from_k_sq(self, k_sq: torch.Tensor) -> torch.Tensor:
        r"""
        :param k_sq: squares of wave vectors, not zero, any shape, 1/Å²
        :return: :math:`4 \pi e^{-\sigma^2 k^2 / 2} / k^2`, Å²
        """
        return torch.exp(-0.5 * self.width**2 * k_sq) / k_sq * (4.0 * math.pi * self.half)

    def own_potential(self) -> float:
        """The potential of a Gaussian at its own centre, as a number of the host; 1/Å."""
        return self.half * math.sqrt(2.0 / math.pi) / self.width

    def background(self) -> float:
        """Half of what point charges interact more than Gaussians, integrated over space; Å²."""
        return self.half * math.pi * self.width**2

    def wide_from_k_sq(self, k_sq: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """
        :param k_sq: squares of wave vectors ``[structures, waves]``, 1/Å²
        :param widths: of the Gaussians of each structure ``[structures, 1]``, Å
        :return: as ``lr_from_k_sq``, of Gaussians of other widths than the smearing, Å²
        """
        wider = widths**2 - self.smearing**2
        return self.lr_from_k_sq(k_sq) * torch.exp(-0.5 * wider * k_sq)

    def excess(self, squared: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """
        :param squared: squared distances, may be zero, any shape, Å²
        :param width: of wider Gaussians, one number, Å
        :return: what Gaussians of the smearing interact more than these, 1/Å
        """
        narrow = gaussian_interaction(squared, (self.smearing**2).expand_as(squared))
        wide = gaussian_interaction(squared, (width**2).expand_as(squared))
        return self.prefactor * (narrow - wide)

    def integrated_excess(self, width: torch.Tensor) -> torch.Tensor:
        """
        :param width: of wider Gaussians, one number, Å
        :return: integral of ``excess`` over all space, Å²
        """
        return self.prefactor * 2.0 * math.pi * (width**2 - self.smearing**2)


class SmoothDispersion(torchpme.InversePowerLawPotential):
    r""":math:`v(r) = P(3, r^2 / 2 \sigma^2) / r^6`: :math:`1/r^6` at distance, smooth at zero.

    P is the regularised incomplete gamma function. This is the long-range part of torch-pme's
    :math:`1/r^6`, whose rest, the singularity, is left to the short-range part of the model; beyond
    four smearings it differs from :math:`1/r^6` by less than 1.4 %, beyond five by 4e-4. Its own
    forms of torch-pme's functions, for the fixed exponent: those compare it as a tensor, which
    stops a GPU, and go through powers that overflow in single precision.

    :param smearing: distance below which the interaction levels off, Å
    """

    def __init__(self, smearing: float) -> None:
        super().__init__(exponent=6, smearing=smearing, prefactor=PREFACTOR)
        _derived(self)
        self.width: float = smearing
        self.half: float = PREFACTOR
        self.register_buffer("exponent", self.exponent, persistent=False)

    def from_dist(self, dist: torch.Tensor, pair_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        :param dist: distances, not zero, any shape, Å
        :param pair_mask: factors of the pairs
        :return: the whole interaction, 1/Å⁶
        """
        # infinite distances mark what does not interact, also in derivatives
        apart = dist > 1e3 * self.smearing
        squared = dist.masked_fill(apart, 1.0) ** 2
        result = self.prefactor * smooth_dispersion(squared, self.smearing)
        result = result.masked_fill(apart, 0.0)
        if pair_mask is not None:
            result = result * pair_mask
        return result

    def sr_from_dist(
        self, dist: torch.Tensor, pair_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Nothing, see the class."""
        return torch.zeros_like(dist)

    def lr_from_k_sq(self, k_sq: torch.Tensor) -> torch.Tensor:
        """
        :param k_sq: squares of wave vectors, any shape, 1/Å²
        :return: see :func:`dispersion_waves`, 1/Å³
        """
        return self.prefactor * dispersion_waves(k_sq, self.smearing)

    def wide_from_k_sq(self, k_sq: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
        """
        :param k_sq: squares of wave vectors ``[structures, waves]``, 1/Å²
        :param widths: in place of the smearing, of each structure ``[structures, 1]``, Å
        :return: as ``lr_from_k_sq``, of interactions that level off below other distances, 1/Å³
        """
        return self.prefactor * dispersion_waves(k_sq, widths)

    def excess(self, squared: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """
        :param squared: squared distances, may be zero, any shape, Å²
        :param width: in place of the smearing, a larger number, Å
        :return: what atoms interact more than if the interaction levelled off there, 1/Å⁶
        """
        narrow = smooth_dispersion(squared, self.smearing)
        return self.prefactor * (narrow - smooth_dispersion(squared, width))

    def integrated_excess(self, width: torch.Tensor) -> torch.Tensor:
        """
        :param width: in place of the smearing, a larger number, Å
        :return: integral of ``excess`` over all space, 1/Å³
        """
        zero = torch.zeros_like(width)
        return self.lr_from_k_sq(zero) - self.prefactor * dispersion_waves(zero, width)

    def self_contribution(self) -> torch.Tensor:
        """The interaction at distance zero, 1/Å⁶."""
        return self.prefactor / 6.0 / (2.0 * self.smearing**2) ** 3

    def background_correction(self) -> torch.Tensor:
        """The term of k = 0, which is finite: negative, as backgrounds are subtracted; 1/Å³."""
        return -0.5 * self.lr_from_k_sq(torch.zeros_like(self.smearing))

    def own_potential(self) -> float:
        """The interaction at distance zero, as a number of the host; 1/Å⁶."""
        return self.half / 6.0 / (2.0 * self.width**2) ** 3

    def background(self) -> float:
        """The term of k = 0, see :meth:`background_correction`, as a number of the host; 1/Å³."""
        return -self.half * (math.pi**1.5 / 6.0) * (2.0 * self.width**2) ** -1.5


def smooth_dispersion(squared: torch.Tensor, smearing: torch.Tensor) -> torch.Tensor:
    r""":math:`P(3, x) / r^6` with :math:`x = r^2 / 2 \sigma^2`.

    :param squared: squared distances, may be zero, any shape, Å²
    :param smearing: one number, Å
    :return: of the same shape, 1/Å⁶
    """
    doubled = 2.0 * smearing**2
    x = squared / doubled
    # the gamma function's expansion in x cancels where x is small; its series does not
    near = torch.clamp(x, max=1.0)
    term = torch.ones_like(x) / 6.0
    series = term
    for n in range(1, 16):
        term = term * near / (3.0 + n)
        series = series + term
    far = torch.clamp(x, min=1.0)
    closed = (1.0 - torch.exp(-far) * (1.0 + far + 0.5 * far * far)) / (far * far * far)
    return torch.where(x < 1.0, series * torch.exp(-near), closed) / doubled**3


def dispersion_waves(k_sq: torch.Tensor, smearing: torch.Tensor) -> torch.Tensor:
    r"""Fourier transform of :func:`smooth_dispersion`,
    :math:`\frac{\pi^{3/2}}{\Gamma(3)} (2 \sigma^2)^{-3/2} \frac{1}{3} \left[(2 - 4z) e^{-z} +
    4 \sqrt\pi z^{3/2} \mathrm{erfc} \sqrt z\right]` with :math:`z = \sigma^2 k^2 / 2`, as in
    torch-pme.

    :param k_sq: squares of wave vectors, any shape, 1/Å²
    :param smearing: one number, or of a shape that fits, Å
    :return: 1/Å³
    """
    # beyond that it underflows; the root has no derivative at zero
    z = torch.clamp(0.5 * smearing**2 * k_sq, min=1e-12, max=1e4)
    root = torch.sqrt(z)
    kernel = (2.0 - 4.0 * z) * torch.exp(-z)
    kernel = kernel + 4.0 * math.sqrt(math.pi) * z * root * torch.erfc(root)
    return (math.pi**1.5 / 6.0) * (2.0 * smearing**2) ** -1.5 * kernel
