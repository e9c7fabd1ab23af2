"""Parameters of the Ewald sum: from one accuracy to smearing, k-cutoff and mesh."""

import math
from typing import NamedTuple

import torch

SPLINE_ORDER = 7
"""Order of the B-splines between atoms and mesh (degree 6, five continuous derivatives)."""

MESH_THRESHOLD = 300_000
"""Atoms times k-vectors above which a structure is done on a mesh. Measured: on one CPU core with
10 channels, with derivatives, both take the same time at 0.2 million (about 90 atoms of a dense
solid or liquid), at 0.6 million the mesh takes half the time; explicit k-vectors serve a whole
batch in one go, though."""

MESH_POINTS = 1_000_000
"""Mesh points from which on the threshold grows in proportion: a mesh of many points has to save
more, at high accuracy it would fill the memory of a machine for a few atoms and their vacuum."""

FEW_ATOMS = 32
"""Atoms up to which the threshold is sixteen times as large. The work on a mesh goes with its
points, as the number of k-vectors does, whatever the atoms: with few of them, in a plate or a
needle, it is the larger one in any cell. Measured in cells of 60 Å x 60 Å x 6.5 Å with forces on
one CPU core: 5 atoms, explicit k-vectors 7 times as fast (charges: 12), 20 atoms 1.7 (charges: 9),
50 atoms 0.9 (charges: 1.7, but six times the memory)."""

MAX_TERMS = 2**22
"""Pairs of atoms, phase factors or matrix elements evaluated at once."""

REFERENCE_DENSITY = 0.1
"""Unit charges per Å³ assumed by the mesh error estimate: liquid water has 0.1."""


class SumParameters(NamedTuple):
    """How sums over periodic images are done; lengths in the unit of the data."""

    smearing: float  # width of the Gaussians that split the sum
    k_cutoff: float  # length of the longest k-vector
    mesh_spacing: float  # largest distance of mesh points along the cell vectors
    spline_order: int = SPLINE_ORDER
    mesh_threshold: int = MESH_THRESHOLD
    mesh_points: int = MESH_POINTS
    few_atoms: int = FEW_ATOMS
    max_terms: int = MAX_TERMS


def num_waves(k_cutoff: float, volume: float) -> float:
    """
    :param k_cutoff: length of the longest k-vector, 1/Å
    :param volume: of a cell, Å³
    :return: about how many k-vectors lie in the sphere, k and -k counted once
    """
    return k_cutoff**3 * volume / (12.0 * math.pi**2)


def gaussian_range(fraction: float) -> float:
    """
    Distance in standard deviations beyond which a normal distribution holds a given fraction.

    :param fraction: of both tails together
    :return: the s of erfc(s / sqrt(2)) = fraction
    """
    # the normal quantile keeps its relative precision where erfinv(1 - fraction) would lose it
    return -float(torch.special.ndtri(torch.tensor(0.5 * fraction, dtype=torch.float64)))


def ewald_parameters(cutoff: float, accuracy: float, angstrom: float = 1.0) -> SumParameters:
    r"""
    Choose the parameters of the Ewald sum for a real-space part that ends at ``cutoff``.

    With Gaussians of width :math:`\sigma` the real-space part leaves out the fraction
    :math:`\mathrm{erfc}(r_c / \sqrt 2 \sigma)` of the interaction of a pair at the cutoff, and the
    reciprocal part the fraction :math:`\mathrm{erfc}(\sigma k_c / \sqrt 2)` of the potential of a
    Gaussian at its own centre (the Gaussian integral over the omitted k-vectors; Kolafa and
    Perram, Mol. Simul. 9, 351 (1992), give the same exponents with structure-dependent prefactors).
    The former is set to the accuracy :math:`\epsilon`, the latter, which has the same sign for
    every atom, to a tenth of it:

    .. math::
        \sigma = r_c / s(\epsilon), \quad k_c = s(\epsilon / 10) / \sigma, \quad
        s(\epsilon) = \sqrt 2\, \mathrm{erfc}^{-1}(\epsilon) .

    The mesh spacing :math:`h` follows from the leading term of the error of B-splines of order p
    with the optimal influence function (Hockney and Eastwood, Computer Simulation Using Particles
    (1988), eq. 8-23; Deserno and Holm, J. Chem. Phys. 109, 7678 (1998)): each k loses
    :math:`4 \sum_d (k_d h / 2\pi)^{2p}` of its squared amplitude to aliases. Integrated over
    :math:`(4\pi/k^2)^2 e^{-\sigma^2 k^2}` for charges of density :math:`n`,

    .. math::
        \delta V^2 = 48\, n\, \sigma\, \frac{\Gamma(p - 1/2)}{2p + 1}
        \left(\frac{h}{2\pi\sigma}\right)^{2p} ,

    and :math:`\delta V` is set to :math:`\epsilon` times half the self-potential
    :math:`\sqrt{2/\pi}/\sigma`, a typical potential in an ionic solid or liquid; the spacing is
    then shortened by 6 %, for the terms beyond the leading one. The mesh must also hold every k
    below :math:`k_c`.

    :param cutoff: radius of the neighbour list, in any unit of length
    :param accuracy: relative accuracy of the potentials, between 1e-12 and 1e-2
    :param angstrom: one Å in that unit, for the density of charges
    :return: smearing, k_cutoff and mesh_spacing, in that unit
    :raises ValueError: if ``cutoff`` or ``accuracy`` is out of range
    """
    if not cutoff > 0.0:
        raise ValueError(f"`cutoff` is {cutoff} but must be a positive length")
    if not 1e-12 <= accuracy <= 1e-2:
        raise ValueError(f"`accuracy` is {accuracy} but must lie between 1e-12 and 1e-2")

    smearing = cutoff / gaussian_range(accuracy)
    k_cutoff = gaussian_range(0.1 * accuracy) / smearing

    p = SPLINE_ORDER
    target = (0.5 * accuracy) ** 2 * (2.0 / math.pi) / smearing**2
    density = REFERENCE_DENSITY / angstrom**3
    prefactor = 48.0 * density * smearing * math.gamma(p - 0.5) / (2 * p + 1)
    mesh_spacing = 0.94 * 2.0 * math.pi * smearing * (target / prefactor) ** (1.0 / (2 * p))
    return SumParameters(
        smearing=smearing, k_cutoff=k_cutoff, mesh_spacing=min(mesh_spacing, math.pi / k_cutoff)
    )
