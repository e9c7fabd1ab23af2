r"""Approximate inverse of A, with which conjugate gradients need few iterations at any size.

At long wavelengths C is :math:`U^H g U`, with :math:`U_{ki} = e^{i k r_i - \gamma_i^2 k^2 / 2}` and
:math:`g_k = 4\pi / \Omega k^2`; there structures are nearly uniform and different k do not mix.
Woodbury's formula then gives Kerker's preconditioner (Phys. Rev. B 23, 3082 (1981)):

.. math:: B = D^{-1} - D^{-1} U^H W U D^{-1} , \quad
    W_k = \frac{g_k}{1 + g_k \sum_i |U_{ki}|^2 / D_i}

with D the diagonal of A less that of :math:`U^H g U`. Nothing here has derivatives.
"""

import math
from typing import NamedTuple

import torch

from ..mesh import axis_product, mesh_shape, mesh_waves
from .species_mesh import (
    Crystal,
    SpeciesMesh,
    from_mesh,
    no_mesh,
    on_mesh,
    species_stencil,
    transformed,
)


class CoarseMesh(NamedTuple):
    """Mesh of the preconditioner; TorchScript takes no numbers of a module, but defaults."""

    largest_k: float = 1.0  # 1/Å, below the first peak of structure factors
    spacing: float = 1.5  # Å: it has to hold the largest k, not to be accurate
    order: int = 4  # of the splines
    least_rest: float = 0.3  # of the hardness, that D keeps at least


class Preconditioner(NamedTuple):
    """What a product with B takes."""

    kerker: bool  # false for isolated structures: the inverse of the diagonal of A
    mesh: SpeciesMesh  # of the long waves
    inverse_diagonal: torch.Tensor  # [atoms] of D
    jacobi: torch.Tensor  # [atoms] inverse of the diagonal of A


def diagonal_preconditioner(diagonal: torch.Tensor) -> Preconditioner:
    """
    :param diagonal: of A ``[atoms]``, 1/Å
    :return: its inverse, for isolated structures
    """
    inverse = 1.0 / diagonal.detach()
    return Preconditioner(
        kerker=False, mesh=no_mesh(inverse), inverse_diagonal=inverse, jacobi=inverse
    )


def kerker_preconditioner(
    crystal: Crystal,
    variances: torch.Tensor,
    hardness: torch.Tensor,
    diagonal: torch.Tensor,
    of_atoms: torch.Tensor,
    angstrom: float,
) -> Preconditioner:
    """
    The root of W goes into the factors of the species on the mesh, so that B stays symmetric.

    :param crystal: the structure, without derivatives
    :param variances: squared widths of its species ``[species]``, Å²
    :param hardness: of the species ``[species]``, 1/Å
    :param diagonal: diagonal of A of the species ``[species]``, 1/Å
    :param of_atoms: that of the atoms ``[atoms]``, which differs where their hardness does, 1/Å
    :param angstrom: one Å in the unit of length that is used in fact
    :return: B
    """
    coarse = CoarseMesh()
    shape = mesh_shape(crystal.lengths, coarse.spacing * angstrom)
    waves = mesh_waves(crystal.cell, shape, True)
    k_squared = waves.k_squared
    inside = (k_squared < (coarse.largest_k / angstrom) ** 2).to(k_squared.dtype)
    # a real transform leaves out -k
    multiplicity = torch.where(waves.z > 0, 2.0, 1.0).to(k_squared.dtype) * inside
    g = 4.0 * math.pi / (k_squared * crystal.volume) * inside
    gaussians: list[torch.Tensor] = []
    d: list[torch.Tensor] = []
    strength = torch.zeros_like(g)
    for s in range(variances.size(0)):
        gaussian = torch.exp(-0.5 * variances[s] * k_squared)
        long_range = (multiplicity * g * gaussian * gaussian).sum()
        rest = torch.maximum(diagonal[s] - long_range, coarse.least_rest * hardness[s])
        strength = strength + crystal.counts[s] / rest * gaussian * gaussian
        gaussians.append(gaussian)
        d.append(rest)
    splines = axis_product(
        torch.sinc(waves.x / shape[0]),
        torch.sinc(waves.y / shape[1]),
        torch.sinc(waves.z / shape[2]),
    )
    root = torch.sqrt(g / (1.0 + g * strength)) / splines**coarse.order
    mesh = SpeciesMesh(
        atoms=species_stencil(crystal, shape, coarse.order),
        filters=(torch.stack(gaussians) * root).unsqueeze(0),
        shape=shape,
    )
    return Preconditioner(
        kerker=True,
        mesh=mesh,
        inverse_diagonal=(1.0 / torch.stack(d))[crystal.species],
        jacobi=1.0 / of_atoms,
    )


def precondition(preconditioner: Preconditioner, v: torch.Tensor, kerker: bool) -> torch.Tensor:
    """
    :param preconditioner: B
    :param v: ``[atoms]``
    :param kerker: false for the inverse of the diagonal of A in its place
    :return: B v ``[atoms]``
    """
    if not (preconditioner.kerker and kerker):
        return preconditioner.jacobi * v
    return precondition_from(preconditioner, v, precondition_on_mesh(preconditioner, v))


def precondition_on_mesh(preconditioner: Preconditioner, v: torch.Tensor) -> torch.Tensor:
    """
    :param preconditioner: B of a periodic structure
    :param v: ``[atoms]``
    :return: what a product with B takes of the whole structure ``[points of all species]``
    """
    return on_mesh(preconditioner.mesh, preconditioner.inverse_diagonal * v)


def precondition_from(
    preconditioner: Preconditioner, v: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """
    :param preconditioner: B of a periodic structure
    :param v: ``[atoms]``
    :param values: of :func:`precondition_on_mesh`
    :return: B v ``[atoms]``
    """
    mesh = preconditioner.mesh
    factors = mesh.filters[0].unsqueeze(-1)
    waves = (factors * transformed(mesh, values)).sum(dim=0, keepdim=True)
    inverse = preconditioner.inverse_diagonal
    return inverse * v - inverse * from_mesh(mesh, factors * waves)
