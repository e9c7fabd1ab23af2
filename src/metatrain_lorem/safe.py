r"""Where numbers are delicate: divisions by what may vanish, roots, and sums that must be exact.

Derivatives go through both branches of ``torch.where``, so that what is excluded must have finite
derivatives as well: the argument is replaced before the function, the result after it.
"""

import math

import torch

from .indexing import occurrences, starts


def smooth_norms(
    features: torch.Tensor, members: torch.Tensor, factors: torch.Tensor, least: torch.Tensor
) -> torch.Tensor:
    r"""Norms of groups of components that have all derivatives where a group vanishes,
    :math:`\sqrt{\|x\|^2 + \delta^2} - \delta`.

    :math:`\delta` is the root mean square of all features of the atom, so that the
    result is proportional to their size, whatever it is.

    :param features: ``[atoms, components, channels]``
    :param members: what sums the squares to :math:`\|x\|^2 + \delta^2` of each group and channel
        and, last, to :math:`\delta^2` ``[groups * channels + 1, components * channels]``
    :param factors: what makes of their roots the differences, times any factors
        ``[groups * channels + 1, groups * channels]``
    :param least: tiny next to 1: an atom without neighbours has no features at all, ``[1]``
    :return: ``[atoms, groups * channels]``
    """
    features = features.flatten(1)
    # for the same reason any constant may be taken out: no square over- or underflows
    scale = torch.linalg.vector_norm(features.detach(), torch.inf, dim=1, keepdim=True)
    scale = scale.clamp(min=1e-30 if features.dtype == torch.float32 else 1e-150)
    roots = torch.sqrt(torch.addmm(least, (features / scale) ** 2, members.T))
    return scale * (roots @ factors)


def cusped_norms(features: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    r"""Norms of groups of components, zero with all their derivatives where a group vanishes.

    :param features: ``[atoms, components, channels]``
    :param members: 1 where a component belongs to a group, else 0 ``[groups, components]``
    :return: ``[atoms, groups, channels]``
    """
    single = features.dtype == torch.float32
    # |x| = s |x / s| for any constant s: with s the largest component no square, no inverse and
    # no second derivative over- or underflows
    scale = features.detach().abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale < (1e-30 if single else 1e-150), 1.0, scale)
    squares = torch.matmul(members, (features / scale) ** 2)
    # what symmetry makes zero is left with a rounding error, whose gradient would be of size one
    # in any direction
    vanishes = squares < (3e-5 if single else 1e-12) ** 2
    norms = torch.where(vanishes, 1.0, squares).sqrt()
    return torch.where(vanishes, 0.0, norms * scale)


def unit_vectors(
    vectors: torch.Tensor, selected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param vectors: ``[n, 3]``, those that are selected not zero
    :param selected: ``[n]``
    :return: unit vectors, zero for others, ``[n, 3]``; lengths, any positive number for others
        ``[n]``
    """
    selected = selected.unsqueeze(-1)
    safe = torch.where(selected, vectors, torch.ones_like(vectors))
    lengths = torch.linalg.vector_norm(safe, dim=-1)
    return safe / lengths.unsqueeze(-1) * selected.to(vectors.dtype), lengths


def distances_between_others(squared: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
    """
    :param squared: squared distances, any shape, Å²
    :param excluded: pairs that do not interact, the same shape
    :return: distances, infinite where excluded: what decays is then an exact zero, in every
        derivative too; Å
    """
    return torch.sqrt(squared.masked_fill(excluded, float("inf")))


def gaussian_interaction(squared: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    r"""Interaction of two Gaussian charges, :math:`\mathrm{erf}(r / \sqrt{2 v}) / r`.

    :param squared: squared distances, any shape, Å²
    :param variances: v, sums of the squared widths, the same shape, Å²
    :return: the interaction, its limit where the distance is zero, 1/Å
    """
    same = squared == 0.0
    # any distance but zero, for derivatives that are finite
    r = torch.sqrt(torch.where(same, torch.ones_like(squared), squared))
    at_zero = torch.sqrt(2.0 / (math.pi * variances))
    return torch.where(same, at_zero, torch.erf(r / torch.sqrt(2.0 * variances)) / r)


def smooth_cutoff(u: torch.Tensor) -> torch.Tensor:
    """
    :param u: distances over the cutoff, at most 1, any shape
    :return: exp(1 - 1 / (1 - u²)), zero with all its derivatives at the cutoff
    """
    # the exponential underflows long before the clamp is felt
    values = torch.exp(1.0 - 1.0 / (1.0 - u * u).clamp(min=1e-3))
    return torch.where(u * u < 0.999, values, torch.zeros_like(values))


def base_of_powers(v: torch.Tensor) -> torch.Tensor:
    """
    :param v: numbers between 0 and 1, any shape
    :return: these, moved by less than the precision of numbers next to 1: second derivatives of
        powers of an exact zero are NaN
    """
    return v + (1e-12 if v.dtype == torch.float32 else 1e-17)


def exact_sums(
    charges: torch.Tensor, total_charge: torch.Tensor, system_index: torch.Tensor
) -> torch.Tensor:
    """
    Remove the rounding error of the sums of charges, in double precision.

    Equal shifts of all charges may be below the resolution of a charge. The first atoms of each
    structure take what they leave, in small equal shares.

    :param charges: ``[atoms]``, e
    :param total_charge: ``[systems]``, e
    :param system_index: structure of each atom, not decreasing, ``[atoms]``
    :return: ``[atoms]``, e
    """
    counts = occurrences(system_index, total_charge.size(0))
    shift = missing_charge(charges, total_charge, system_index) / counts.clamp(min=1)
    charges = charges + shift[system_index].to(charges.dtype)
    missing = missing_charge(charges, total_charge, system_index)
    # a multiple of the spacing of numbers up to 4
    share = 2.0**-22 if charges.dtype == torch.float32 else 2.0**-51
    rank = torch.arange(charges.size(0), device=charges.device) - starts(counts)[system_index]
    takes = rank < (missing.abs() / share).round()[system_index]
    return charges + share * (missing.sign()[system_index] * takes).to(charges.dtype)


def missing_charge(
    charges: torch.Tensor, total_charge: torch.Tensor, system_index: torch.Tensor
) -> torch.Tensor:
    """
    :param charges: ``[atoms]``, e
    :param total_charge: ``[systems]``, e
    :param system_index: structure of each atom ``[atoms]``
    :return: total charge less the sum of the charges ``[systems]``, in double precision, e
    """
    total = total_charge.to(torch.float64)
    return total.index_add(0, system_index, -charges.detach().to(torch.float64))
