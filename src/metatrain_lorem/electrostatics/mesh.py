"""Reciprocal part of the Ewald sum on a mesh: particle-particle particle-mesh (P3M).

Hockney and Eastwood, Computer Simulation Using Particles (1988); Deserno and Holm, J. Chem. Phys.
109, 7678 (1998). Own code beside torch-pme's for three reasons: its influence function uses
Cartesian components where the phase advance along each cell vector is needed, and so holds for
orthorhombic cells only; its B-splines end at order 5, which at an accuracy of 1e-6 needs several
times as many mesh points; and it checks the mesh for NaN, which stops a GPU at every call.
"""

import math

import torch

from ..nn.neighbors import block_and_portion


def smooth_size(minimum: float) -> int:
    """
    Smallest product of powers of 2, 3 and 5, for which Fourier transforms are fast.

    :param minimum: lower bound
    :return: size of the mesh along one axis
    """
    size = max(1, int(math.ceil(minimum))) - 1
    rest = 0
    while rest != 1:
        size += 1
        rest = size
        for prime in [2, 3, 5]:
            while rest % prime == 0:
                rest = rest // prime
    return size


def spline_polynomials(order: int) -> tuple[list[list[int]], float]:
    """
    The cardinal B-spline of an order, piece by piece.

    Recursion of de Boor, as in Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 4.1, for the
    coefficients of polynomials in y = x - 1/2, which keep their digits where powers of x cancel.

    :param order: order of the spline, which is of degree order - 1
    :return: coefficients of y^0, y^1, ... of the spline at x + 0, 1, ..., order - 1, for x from 0
        to 1, [order][order], as integers (lists of floats are tensors of single precision in
        TorchScript); what to divide them by
    """
    pieces: list[list[int]] = [[1]]
    divisor = 1.0
    for k in range(2, order + 1):
        longer: list[list[int]] = []
        for piece in range(k):
            coefficients = [0 for _ in range(k)]
            for power in range(k - 1):
                if piece < k - 1:
                    coefficients[power] += (2 * piece + 1) * pieces[piece][power]
                    coefficients[power + 1] += 2 * pieces[piece][power]
                if piece > 0:
                    coefficients[power] += (2 * (k - piece) - 1) * pieces[piece - 1][power]
                    coefficients[power + 1] -= 2 * pieces[piece - 1][power]
            longer.append(coefficients)
        pieces = longer
        divisor = divisor * 2.0 * (k - 1)
    return pieces, divisor


def spline_weights(offsets: torch.Tensor, order: int) -> torch.Tensor:
    """
    Values of the cardinal B-spline of an order at ``offsets`` + 0, 1, ..., order - 1.

    :param offsets: between 0 and 1, any shape
    :param order: order of the spline, which is of degree order - 1
    :return: one more axis of length ``order``; the values add up to 1
    """
    integers, divisor = spline_polynomials(order)
    coefficients = torch.tensor(integers, device=offsets.device).to(offsets.dtype) / divisor
    y = (offsets - 0.5).unsqueeze(-1)
    powers = [torch.ones_like(y)]
    for _ in range(1, order):
        powers.append(powers[-1] * y)
    return torch.cat(powers, dim=-1) @ coefficients.transpose(0, 1)


def spline_samples(order: int) -> tuple[list[int], float]:
    """
    Values of the cardinal B-spline of an order at the integers from 0 to order - 1.

    :param order: order of the spline
    :return: integers, and what to divide them by
    """
    samples = [1]
    divisor = 1.0
    for k in range(2, order + 1):
        longer: list[int] = []
        for x in range(k):
            left = samples[x] if x < k - 1 else 0
            right = samples[x - 1] if x > 0 else 0
            longer.append(x * left + (k - x) * right)
        samples = longer
        divisor = divisor * (k - 1)
    return samples, divisor


def axis_influence(integers: torch.Tensor, size: int, order: int) -> torch.Tensor:
    """
    Factor of one axis in the influence function that is optimal in the least-squares sense.

    Of the sum over aliases in Hockney and Eastwood's eq. 8-22 only the wave vector itself is kept
    in the numerator, as the Gaussian makes the other terms negligible. The sum in the denominator
    is the Fourier series of the spline of twice the order, sampled at integers.

    :param integers: wave numbers, shape [n]
    :param size: number of mesh points along the axis
    :param order: order of the splines
    :return: U^2 / (sum of U^2 over aliases)^2, shape [n]
    """
    # the high powers would lose a digit in single precision; these numbers are few
    fractions = integers.to(torch.float64) / size
    values, divisor = spline_samples(2 * order)
    samples = torch.tensor(values, device=integers.device).to(torch.float64) / divisor
    shift = torch.arange(2 * order, dtype=torch.float64, device=integers.device)
    aliases = torch.cos(2.0 * math.pi * fractions.unsqueeze(1) * (shift - order)) @ samples
    influence = torch.sinc(fractions) ** (2 * order) / (aliases * aliases)
    return influence.to(integers.dtype)


def squared_wave_vectors(
    cell: torch.Tensor, shape: list[int], half: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Wave vectors of a Fourier transform on a mesh.

    :param cell: cell vectors in rows, shape [3, 3], Angstrom
    :param shape: number of mesh points along the cell vectors
    :param half: of a real transform, which leaves out half of them along the third axis
    :return: integers along the three axes; squares of the wave vectors, shape [shape[0], shape[1],
        shape[2] or shape[2] // 2 + 1], huge for k = 0: what is divided by it is an exact zero
        there, in every derivative too
    """
    dtype, device = cell.dtype, cell.device
    x = torch.fft.fftfreq(shape[0], dtype=dtype, device=device) * shape[0]
    y = torch.fft.fftfreq(shape[1], dtype=dtype, device=device) * shape[1]
    z = torch.fft.fftfreq(shape[2], dtype=dtype, device=device) * shape[2]
    if half:
        z = torch.fft.rfftfreq(shape[2], dtype=dtype, device=device) * shape[2]
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).transpose(0, 1)
    in_plane = x.view(-1, 1, 1) * reciprocal[0] + y.view(1, -1, 1) * reciprocal[1]
    along = z.unsqueeze(1) * reciprocal[2]
    # |a + b|^2 without an array of vectors
    k_squared = (in_plane * in_plane).sum(dim=-1).unsqueeze(2) + (along * along).sum(dim=-1)
    k_squared = k_squared + 2.0 * (in_plane @ along.transpose(0, 1))
    zero = (x == 0).view(-1, 1, 1) & (y == 0).view(1, -1, 1) & (z == 0).view(1, 1, -1)
    return x, y, z, k_squared.masked_fill(zero, 1e30)


def coulomb_filter(
    cell: torch.Tensor, shape: list[int], order: int, half: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Filter that turns the Fourier transform of the mesh charges into that of their potential.

    :param cell: cell vectors in rows, shape [3, 3], Angstrom
    :param shape: number of mesh points along the cell vectors
    :param order: order of the splines
    :param half: see ``squared_wave_vectors``
    :return: the filter for point charges, to be multiplied by a Gaussian, zero for k = 0; squares
        of the wave vectors; shape of ``squared_wave_vectors``
    """
    x, y, z, k_squared = squared_wave_vectors(cell, shape, half)
    in_plane = (
        4.0
        * math.pi
        / torch.det(cell).abs()
        * axis_influence(x, shape[0], order).view(-1, 1, 1)
        * axis_influence(y, shape[1], order).view(1, -1, 1)
    )
    return in_plane * axis_influence(z, shape[2], order) / k_squared, k_squared


def interpolation(
    positions: torch.Tensor, cell: torch.Tensor, shape: list[int], order: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The mesh points around each atom, and its share in them.

    :param positions: shape [n, 3], Angstrom
    :param cell: cell vectors in rows, shape [3, 3], Angstrom
    :param shape: number of mesh points along the cell vectors
    :param order: order of the splines
    :return: indices of the flattened mesh, and weights, both of shape [n, order**3]
    """
    size = torch.tensor(shape, device=positions.device)
    fractions = positions @ torch.linalg.inv(cell)
    scaled = (fractions - torch.floor(fractions).detach()) * size
    lower = torch.floor(scaled.detach())
    x, y, z = spline_weights(scaled - lower, order).unbind(dim=1)
    weights = (x.view(-1, order, 1, 1) * y.view(-1, 1, order, 1)) * z.view(-1, 1, 1, order)
    steps = torch.arange(order, device=positions.device)
    points = torch.remainder(lower.long().unsqueeze(-1) - steps, size.unsqueeze(-1))
    a, b, c = points.unbind(dim=1)
    index = (a.view(-1, order, 1, 1) * shape[1] + b.view(-1, 1, order, 1)) * shape[2] + c.view(
        -1, 1, 1, order
    )
    return index.flatten(1), weights.flatten(1)


def mesh_potentials(
    charges: torch.Tensor,
    positions: torch.Tensor,
    cell: torch.Tensor,
    lengths: list[float],
    smearing: float,
    mesh_spacing: float,
    order: int,
) -> torch.Tensor:
    """
    Reciprocal part of the Ewald sum of one structure, all charge columns in one transform.

    :param charges: shape [n, C], e
    :param positions: shape [n, 3], Angstrom
    :param cell: cell vectors in rows, shape [3, 3], Angstrom
    :param lengths: lengths of the cell vectors, Angstrom
    :param smearing: width of the Gaussians, Angstrom
    :param mesh_spacing: largest distance of mesh points along the cell vectors, Angstrom
    :param order: order of the splines
    :return: shape [n, C], e/Angstrom
    """
    shape = [smooth_size(length / mesh_spacing) for length in lengths]
    num_points, num_columns = shape[0] * shape[1] * shape[2], charges.size(1)
    index, weights = interpolation(positions, cell, shape, order)
    # two columns are the real and imaginary part of one complex transform: the filter is real, so
    # that they do not mix, and the backward pass of complex transforms is cheaper. All are brought
    # to one size, so that the rounding errors of large columns do not reach small ones
    sizes = charges.detach().abs().amax(dim=0)
    sizes = torch.where(sizes > 0.0, sizes, 1.0)
    charges = torch.nn.functional.pad(charges / sizes, [0, num_columns % 2])

    # in place and in blocks, since memory that was never touched before is slow
    mesh = torch.zeros((num_points, charges.size(1)), dtype=charges.dtype, device=charges.device)
    block = block_and_portion(charges.device)[0]
    for i, w, q in zip(index.split(block), weights.split(block), charges.split(block)):  # noqa: B905
        shares = torch.bmm(w.unsqueeze(2), q.unsqueeze(1)).flatten(0, 1)
        mesh.index_add_(0, i.flatten(), shares)
    waves = torch.view_as_complex(mesh.view(num_points, -1, 2)).transpose(0, 1)
    waves = torch.fft.fftn(waves.reshape([-1] + shape), dim=[1, 2, 3])
    influence, k_squared = coulomb_filter(cell, shape, order, False)
    influence = influence * torch.exp(-0.5 * smearing**2 * k_squared)
    # TorchScript cannot differentiate a product of complex and real numbers
    waves = torch.view_as_complex(torch.view_as_real(waves).mul_(influence.unsqueeze(-1)))
    waves = torch.fft.ifftn(waves, dim=[1, 2, 3], norm="forward").flatten(1)
    mesh = torch.view_as_real(waves.transpose(0, 1).contiguous()).flatten(1)
    potentials = mesh.index_select(0, index.flatten()).view(weights.size(0), weights.size(1), -1)
    return torch.bmm(weights.unsqueeze(1), potentials).squeeze(1)[:, :num_columns] * sizes
