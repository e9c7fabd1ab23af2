r"""Real spherical harmonics and degree-wise norms of spherical features.

Spherical features are arrays ``[atoms, (max_degree + 1)**2, channels]``; the components of
degree l stand at ``l**2 ... (l + 1)**2 - 1`` in the order m = -l ... l (so degree 1 is y, z, x).
Harmonics have Racah's normalisation: degree 1 *is* the unit vector.
"""

import math

import torch


def spherical_harmonics(vectors: torch.Tensor, max_degree: int) -> torch.Tensor:
    r"""Real spherical harmonics of unit vectors.

    .. math::
        Y_{l,\pm m} = \sqrt{(2 - \delta_{m0}) \frac{(l-m)!}{(l+m)!}}\; \Pi_l^m(z)\;
        \{\mathrm{Re}, \mathrm{Im}\} (x + i y)^m

    with :math:`\Pi_l^m(z) = d^m P_l / dz^m`, from the recursions of the associated Legendre
    functions without the Condon-Shortley phase (DLMF 14.10.3).

    :param vectors: unit vectors ``[pairs, 3]``
    :param max_degree: largest degree L
    :return: harmonics ``[pairs, (L + 1)**2]``, normalised so that the squares of one degree
        sum to one
    """
    x, y, z = vectors.unbind(-1)
    harmonics = [x for _ in range((max_degree + 1) * (max_degree + 1))]
    real, imag = torch.ones_like(x), torch.zeros_like(x)
    double_factorial = 1.0
    for m in range(max_degree + 1):
        if m > 0:
            real, imag = x * real - y * imag, x * imag + y * real
            double_factorial = double_factorial * (2 * m - 1)
        previous = torch.zeros_like(x)
        legendre = torch.full_like(x, double_factorial)
        for degree in range(m, max_degree + 1):
            if degree > m:
                following = (2 * degree - 1) * z * legendre - (degree + m - 1) * previous
                previous, legendre = legendre, following / (degree - m)
            # (l - m)! / (l + m)!, the product of 2m integers
            ratio = 1.0
            for k in range(degree - m + 1, degree + m + 1):
                ratio = ratio / k
            if m == 0:
                harmonics[degree * degree + degree] = legendre
            else:
                scaled = math.sqrt(2.0 * ratio) * legendre
                harmonics[degree * degree + degree + m] = scaled * real
                harmonics[degree * degree + degree - m] = scaled * imag
    return torch.stack(harmonics, dim=-1)


def spherical_norms(features: torch.Tensor, max_degree: int) -> torch.Tensor:
    r"""Norms of spherical features per degree, times :math:`(2l+1)^{1/4}`.

    The factor evens out the spread of norms across degrees (LOREM, arXiv 2507.19382). Gradients
    and second derivatives are zero where all components of a degree vanish.

    :param features: ``[atoms, (L + 1)**2, channels]``
    :param max_degree: largest degree L
    :return: ``[atoms, (L + 1) * channels]``, channels fastest
    """
    single = features.dtype == torch.float32
    tiny = 1e-30 if single else 1e-150
    # what symmetry makes zero is left with a rounding error, whose gradient would be of size one
    # in any direction
    noise = (6e-6 if single else 1e-14) * features.detach().abs().amax(dim=1, keepdim=True)
    norms: list[torch.Tensor] = []
    for degree in range(max_degree + 1):
        block = features[:, degree * degree : (degree + 1) * (degree + 1)]
        if degree == 0:
            # the second derivative of the general form is zero only up to rounding / |x|
            norms.append(block.abs())
            continue
        # |x| = s |x / s| for any constant s: with s the largest component no square, no inverse
        # and no second derivative over- or underflows
        scale = block.detach().abs().amax(dim=1, keepdim=True)
        vanishes = (scale < tiny) | (scale < noise)
        scale = torch.where(vanishes, torch.ones_like(scale), scale)
        squares = ((block / scale) ** 2).sum(dim=1, keepdim=True)
        squares = torch.where(vanishes, torch.ones_like(squares), squares)
        norm = torch.where(vanishes, torch.zeros_like(squares), scale * squares.sqrt())
        norms.append((2 * degree + 1) ** 0.25 * norm)
    return torch.cat(norms, dim=1).flatten(1)


def degrees_of_components(max_degree: int) -> torch.Tensor:
    """Degree of every spherical component.

    :param max_degree: largest degree L
    :return: integers ``[(L + 1)**2]``
    """
    degrees = torch.arange(max_degree + 1)
    return degrees.repeat_interleave(2 * degrees + 1)
