"""Charge equilibration written out in NumPy from the formulas alone: the oracle of the tests.

Lengths in Å, charges in e, energies in units of the Coulomb constant (e²/Å). An atom carries the
density q_i exp(-r²/(2 γ_i²)) / (2π γ_i²)^(3/2). Two of them interact like a point charge with a
Gaussian of variance w_ij = γ_i² + γ_j² (per direction), whose potential has the Fourier transform
4π/k² exp(-w_ij k²/2). All sums go on until their terms are below the rounding error.
"""

import numpy as np
from scipy.special import erf, erfc, erfcx

# erfc(6) and exp(-6²) are below 1e-15
REACH = 6.0


def variances(widths):
    """w_ij = γ_i² + γ_j²."""
    return widths[:, None] ** 2 + widths**2


def lattice_points(vectors, radius):
    """
    All points of a lattice within a radius, the origin among them.

    :param vectors: rows that span the lattice, one to three of them
    """
    bounds = np.floor(radius * np.linalg.norm(np.linalg.pinv(vectors), axis=0)).astype(int)
    grids = np.meshgrid(*[np.arange(-b, b + 1) for b in bounds], indexing="ij")
    points = np.stack(grids, axis=-1).reshape(-1, len(vectors)) @ vectors
    return points[np.linalg.norm(points, axis=1) <= radius]


def wave_vectors(vectors, radius):
    """Reciprocal lattice points k ≠ 0 within a radius."""
    points = lattice_points(2.0 * np.pi * np.linalg.pinv(vectors).T, radius)
    return points[np.linalg.norm(points, axis=1) > 1e-9]


def images(positions, cell, reach):
    """Yields distances [n, n] of atoms to the images of atoms, infinite for an atom and itself."""
    difference = positions[:, None] - positions
    span = np.linalg.norm(difference, axis=-1).max()
    for image in lattice_points(cell, reach + span):
        distances = np.linalg.norm(difference + image, axis=-1)
        if not image.any():
            np.fill_diagonal(distances, np.inf)
        yield distances


def isolated_matrix(positions, widths):
    """
    C_ij = erf(a_ij r)/r with a_ij = 1/√(2 w_ij), the transform of the module's docstring back in
    real space; its limit r → 0 for i = j is 2 a_ii/√π = 1/(γ_i √π).

    (Rappe and Goddard, J. Phys. Chem. 95, 3358 (1991) for the method; Ko et al., Nat. Commun. 12,
    398 (2021) for Gaussians.)
    """
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    np.fill_diagonal(distances, 1.0)
    matrix = erf(distances / np.sqrt(2.0 * variances(widths))) / distances
    np.fill_diagonal(matrix, 1.0 / (widths * np.sqrt(np.pi)))
    return matrix


def periodic_matrix(positions, cell, widths, k_cutoff=None):
    """
    C_ij = Σ_{k≠0} 4π/(V k²) exp(-w_ij k²/2) cos(k·r_ij).

    Poisson summation of the potential over all images, the one of atom i on itself included. The
    term k = 0 is left out, so the mean potential of each charge is zero: the neutralising
    background. It is a sum of positive multiples of u u†, u_i = exp(-γ_i² k²/2 + i k·r_i), hence
    positive semidefinite.

    :param k_cutoff: default: the sum of the terms left out, about erfc(γ k_c)/(γ √π) with the
        smallest γ, is below 1e-15
    """
    if k_cutoff is None:
        k_cutoff = REACH / widths.min()
    volume = abs(np.linalg.det(cell))
    matrix = np.zeros((len(positions), len(positions)))
    k = wave_vectors(cell, k_cutoff)
    for part in np.array_split(k, 1 + len(k) // 5000):
        squares = (part**2).sum(axis=1)
        decay = np.exp(-0.5 * np.outer(widths**2, squares))
        phases = positions @ part.T
        for wave in [decay * np.cos(phases), decay * np.sin(phases)]:
            matrix += (wave * (4.0 * np.pi / volume / squares)) @ wave.T
    return matrix


def point_charge_matrix(positions, cell, smearing):
    """
    Ewald's sum for point charges of a periodic structure, each with a neutralising background:

    Σ'_n erfc(r/(√2 σ))/r + Σ_{k≠0} 4π/(V k²) exp(-σ² k²/2) cos(k·r_ij) - δ_ij √(2/π)/σ - 2πσ²/V.

    The last term is minus the mean of the first one, ∫ erfc(r/(√2 σ))/r d³r / V. (Ewald, Ann.
    Phys. 369, 253 (1921); with the background Hub et al., J. Chem. Theory Comput. 10, 381 (2014).)

    :param smearing: σ, which the result does not depend on
    """
    volume = abs(np.linalg.det(cell))
    matrix = np.zeros((len(positions), len(positions)))
    for r in images(positions, cell, REACH * np.sqrt(2.0) * smearing):
        matrix += erfc(r / (np.sqrt(2.0) * smearing)) / r
    difference = positions[:, None] - positions
    for k in wave_vectors(cell, REACH * np.sqrt(2.0) / smearing):
        square = k @ k
        factor = 4.0 * np.pi / volume / square * np.exp(-0.5 * smearing**2 * square)
        matrix += factor * np.cos(difference @ k)
    matrix -= np.sqrt(2.0 / np.pi) / smearing * np.eye(len(positions))
    return matrix - 2.0 * np.pi * smearing**2 / volume


def periodic_matrix_point_charges(positions, cell, widths, smearing, background=True):
    """
    :func:`periodic_matrix` by another route: point charges, then 1/r → erf(a_ij r)/r, that is
    -erfc(a_ij r)/r for each image and 1/(γ_i √π) of the atom itself. What is taken off has the
    mean -π/(a_ij² V) = -2π w_ij/V, which goes back: the background of Gaussian charges.

    :param background: False leaves that last term out (wrong; for a test that shows it matters)
    """
    w = variances(widths)
    matrix = point_charge_matrix(positions, cell, smearing)
    for r in images(positions, cell, REACH * np.sqrt(2.0 * w.max())):
        matrix -= erfc(r / np.sqrt(2.0 * w)) / r
    matrix += np.diag(1.0 / (widths * np.sqrt(np.pi)))
    if background:
        matrix += 2.0 * np.pi * w / abs(np.linalg.det(cell))
    return matrix


def slab_matrix(positions, cell, pbc, widths):
    """
    Two periodic directions of any orientation, area A, z along their normal.

    The transform of the module's docstring goes back to real space along z only: for a wave vector
    k ≠ 0 in the plane ∫ dκ/(2π) 4π/(k² + κ²) exp(-w(k² + κ²)/2 + iκz) / A
    = π/(A k) [exp(kz) erfc(k√(w/2) + z/√(2w)) + exp(-kz) erfc(k√(w/2) - z/√(2w))],
    and for w → 0 the 2π/(A k) exp(-k|z|) of a lattice of point charges. For k = 0 the potential
    -2π|z|/A of a charged plane, with no constant, averaged over a Gaussian of variance w:
    -2π/A [z erf(z/√(2w)) + √(2w/π) exp(-z²/(2w))]. (Parry, Surf. Sci. 49, 433 (1975); Heyes,
    Barber and Clarke, J. Chem. Soc. Faraday Trans. 2 73, 1485 (1977).)
    """
    vectors = np.asarray(cell)[np.asarray(pbc)]
    normal = np.cross(*vectors)
    area = np.linalg.norm(normal)
    difference = positions[:, None] - positions
    z = difference @ normal / area
    w = variances(widths)
    gaussian = np.exp(-(z**2) / (2.0 * w))
    plane = z * erf(z / np.sqrt(2.0 * w)) + np.sqrt(2.0 * w / np.pi) * gaussian
    matrix = -2.0 * np.pi / area * plane
    k_vectors = wave_vectors(vectors, REACH / widths.min())
    for part in np.array_split(k_vectors, 1 + len(k_vectors) // 100):
        k = np.linalg.norm(part, axis=1)[:, None, None]
        profile = np.zeros((len(part), *z.shape))
        for signed in [z, -z]:
            x = k * np.sqrt(0.5 * w) + signed / np.sqrt(2.0 * w)
            # exp(kz - x²) = exp(-w k²/2 - z²/(2w)), so the large exponent never stands alone
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = np.exp(-0.5 * w * k**2) * gaussian * erfcx(x)
                plain = np.exp(k * signed) * erfc(x)
            profile += np.where(x > 0.0, scaled, plain)
        phases = np.einsum("ijx,kx->kij", difference, part)
        matrix += (np.pi / (area * k) * np.cos(phases) * profile).sum(axis=0)
    return matrix


def coulomb_matrix(positions, cell, pbc, widths):
    """C of an isolated, slab or periodic structure."""
    if all(pbc):
        return periodic_matrix(positions, cell, widths)
    if any(pbc):
        return slab_matrix(positions, cell, pbc, widths)
    return isolated_matrix(positions, widths)


def solve(matrix, hardness, electronegativity, total_charge):
    """
    Stationary point of Σ(χ_i q_i + ½ J_i q_i²) + ½ qᵀCq + μ(Σ q_i - Q).

    :return: charges ``[atoms]`` and μ
    """
    n = len(matrix)
    saddle = np.ones((n + 1, n + 1))
    saddle[:n, :n] = matrix + np.diag(hardness)
    saddle[n, n] = 0.0
    solution = np.linalg.solve(saddle, np.append(-electronegativity, total_charge))
    return solution[:n], solution[n]


def energies(matrix, hardness, electronegativity, charges, mode="variational"):
    """
    :param mode: ``"variational"``: χ_i q_i + ½ J_i q_i² + ½ q_i (Cq)_i; ``"celli"``: the last term
    :return: energies of the atoms [n]
    """
    coulomb = 0.5 * charges * (matrix @ charges)
    if mode == "celli":
        return coulomb
    return electronegativity * charges + 0.5 * hardness * charges**2 + coulomb


def total_energy(
    positions, cell, pbc, widths, hardness, electronegativity, total_charge, mode="variational"
):
    """Energy of the charges that belong to this geometry."""
    matrix = coulomb_matrix(positions, cell, pbc, widths)
    charges, _ = solve(matrix, hardness, electronegativity, total_charge)
    return energies(matrix, hardness, electronegativity, charges, mode).sum()


def central_difference(function, shape, step=2e-3):
    """Derivative at zero of a function of an array, by differences of fourth order."""
    result = np.zeros(shape)
    for index in np.ndindex(shape):
        direction = np.zeros(shape)
        direction[index] = step
        inner = function(direction) - function(-direction)
        outer = function(2.0 * direction) - function(-2.0 * direction)
        result[index] = (8.0 * inner - outer) / (12.0 * step)
    return result


def forces_and_strain_derivative(positions, cell, *others, step=2e-3):
    """
    By finite differences, with the charges solved again at each point.

    :param others: further arguments of :func:`total_energy`
    :return: forces ``[atoms, 3]`` and the derivative by the strain ε of rows r (1 + ε), which is
        the stress times the volume, ``[3, 3]``
    """

    def displaced(displacement):
        return total_energy(positions + displacement, cell, *others)

    def strained(strain):
        deformation = np.eye(3) + strain
        return total_energy(positions @ deformation, cell @ deformation, *others)

    forces = -central_difference(displaced, positions.shape, step)
    return forces, central_difference(strained, (3, 3), step)
