"""Reciprocal part of the Ewald sum on a mesh: particle-particle particle-mesh (P3M).

Hockney and Eastwood, Computer Simulation Using Particles (1988); Deserno and Holm, J. Chem. Phys.
109, 7678 (1998). The steps are torch-pme's, whose classes are the bases here; what is overridden,
and why:

* the filter's influence function, from Cartesian components of k, holds for orthorhombic cells
  along the axes only: here from the phases along the cell vectors, optimal, for any cell;
* B-splines end at order 5, which at an accuracy of 1e-6 needs several times as many mesh points:
  here of any order;
* channels are spread one after the other: here in one scatter, in chunks of atoms;
* a check of the mesh for NaN and mesh sizes read from a tensor stop a GPU at every call.
"""

import math
from typing import NamedTuple

import torch
from torchpme.lib import MeshInterpolator, P3MKSpaceFilter

from ..graph import Graph
from ..indexing import chunk_sizes
from .parameters import SumParameters
from .splines import axis_influence, spline_weights


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


class MeshWaves(NamedTuple):
    """Wave vectors of a Fourier transform on a mesh."""

    x: torch.Tensor  # [nx] integers along the first axis
    y: torch.Tensor  # [ny]
    z: torch.Tensor  # [nz], or half of them
    k_squared: torch.Tensor  # [nx, ny, nz] 1/Å², huge for k = 0


def mesh_waves(cell: torch.Tensor, shape: list[int], half: bool) -> MeshWaves:
    """
    :param cell: cell vectors in rows ``[3, 3]``, Å
    :param shape: mesh points along the cell vectors
    :param half: of a real transform, which leaves out half of them along the third axis
    :return: wave vectors; what is divided by the huge square of k = 0 is an exact zero there, in
        every derivative too
    """
    dtype, device = cell.dtype, cell.device
    x = torch.fft.fftfreq(shape[0], dtype=dtype, device=device) * shape[0]
    y = torch.fft.fftfreq(shape[1], dtype=dtype, device=device) * shape[1]
    z = torch.fft.fftfreq(shape[2], dtype=dtype, device=device) * shape[2]
    if half:
        z = torch.fft.rfftfreq(shape[2], dtype=dtype, device=device) * shape[2]
    reciprocal = 2.0 * math.pi * torch.linalg.inv_ex(cell)[0].transpose(0, 1)
    in_plane = x.view(-1, 1, 1) * reciprocal[0] + y.view(1, -1, 1) * reciprocal[1]
    along = z.unsqueeze(1) * reciprocal[2]
    # |a + b|^2 without an array of vectors
    k_squared = (in_plane * in_plane).sum(dim=-1).unsqueeze(2) + (along * along).sum(dim=-1)
    k_squared = k_squared + 2.0 * (in_plane @ along.transpose(0, 1))
    zero = (x == 0).view(-1, 1, 1) & (y == 0).view(1, -1, 1) & (z == 0).view(1, 1, -1)
    return MeshWaves(x=x, y=y, z=z, k_squared=k_squared.masked_fill(zero, 1e30))


def mesh_shape(lengths: list[float], spacing: float) -> list[int]:
    """
    :param lengths: of the cell vectors, Å
    :param spacing: largest distance of mesh points, Å
    :return: mesh points along the cell vectors
    """
    return [smooth_size(length / spacing) for length in lengths]


def axis_product(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """
    :param x: factors along the first axis ``[nx]``
    :param y: along the second ``[ny]``
    :param z: along the third ``[nz]``
    :return: their products ``[nx, ny, nz]``
    """
    return x.view(-1, 1, 1) * y.view(1, -1, 1) * z.view(1, 1, -1)


def optimal_influence(waves: MeshWaves, shape: list[int], order: int) -> torch.Tensor:
    """
    :param waves: wave vectors of the mesh
    :param shape: mesh points along the cell vectors
    :param order: order of the splines
    :return: see :func:`axis_influence`, ``[*shape]`` or half of that
    """
    return axis_product(
        axis_influence(waves.x, shape[0], order),
        axis_influence(waves.y, shape[1], order),
        axis_influence(waves.z, shape[2], order),
    )


class Stencil(NamedTuple):
    """The mesh points around each atom, and its share in them."""

    index: torch.Tensor  # [atoms, order**3] into the flattened mesh
    weights: torch.Tensor  # [atoms, order**3]


def stencil(
    positions: torch.Tensor, inverse_cell: torch.Tensor, shape: list[int], order: int
) -> Stencil:
    """
    :param positions: ``[atoms, 3]``, Å
    :param inverse_cell: inverse of the cell with its vectors in rows ``[3, 3]``, 1/Å
    :param shape: mesh points along the cell vectors
    :param order: order of the splines
    :return: where each atom goes
    """
    size = torch.tensor(shape, device=positions.device)
    fractions = positions @ inverse_cell
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
    return Stencil(index=index.flatten(1), weights=weights.flatten(1))


def spread(atoms: Stencil, charges: torch.Tensor, num_points: int) -> torch.Tensor:
    """
    Charges on the mesh, in place and in blocks of atoms: memory that was never touched before is
    slow.

    :param atoms: where they go
    :param charges: ``[atoms, channels]``, e
    :param num_points: points of the mesh
    :return: ``[num_points, channels]``
    """
    mesh = torch.zeros((num_points, charges.size(1)), dtype=charges.dtype, device=charges.device)
    block = chunk_sizes(charges.device)[0]
    blocks = zip(atoms.index.split(block), atoms.weights.split(block), charges.split(block))  # noqa: B905
    for i, w, q in blocks:
        # the product of matrices is the faster one for several channels, the slower one for one
        shares = w * q if q.size(1) == 1 else torch.bmm(w.unsqueeze(2), q.unsqueeze(1))
        mesh.index_add_(0, i.flatten(), shares.view(-1, q.size(1)))
    return mesh


def gather(atoms: Stencil, mesh: torch.Tensor) -> torch.Tensor:
    """
    :param atoms: where they are
    :param mesh: values on the mesh ``[points, channels]``
    :return: values at the atoms ``[atoms, channels]``
    """
    values = mesh.index_select(0, atoms.index.flatten())
    if mesh.size(1) == 1:
        return (values.view_as(atoms.weights) * atoms.weights).sum(dim=1, keepdim=True)
    values = values.view(atoms.weights.size(0), atoms.weights.size(1), -1)
    return torch.bmm(atoms.weights.unsqueeze(1), values).squeeze(1)


class SplineInterpolator(MeshInterpolator):
    """B-splines of any order between atoms and mesh.

    :param order: of the splines
    """

    shape: list[int]
    stencil: Stencil

    def __init__(self, order: int) -> None:
        # an order that torch-pme takes, for what is overridden below
        super().__init__(torch.eye(3), torch.ones(3, dtype=torch.long), 5, "P3M")
        self.interpolation_nodes = order
        self.shape = [1, 1, 1]
        self.stencil = Stencil(index=torch.zeros(0, dtype=torch.long), weights=torch.zeros(0))

    def set_cell(self, cell: torch.Tensor) -> None:
        """In place of ``update``, which wants a size of the mesh on the same device; the one given
        above is no buffer and stays behind where the model moves to a GPU.

        :param cell: cell vectors in rows ``[3, 3]``, Å; the mesh is that of ``shape``
        """
        # unlike inv without stopping a GPU; cells without volume have been refused before
        self.cell, self.inverse_cell = cell, torch.linalg.inv_ex(cell)[0]

    def compute_weights(self, positions: torch.Tensor) -> None:
        """
        :param positions: ``[atoms, 3]``, Å
        """
        self.stencil = stencil(positions, self.inverse_cell, self.shape, self.interpolation_nodes)

    def points_to_mesh(self, particle_weights: torch.Tensor) -> torch.Tensor:
        """
        :param particle_weights: charges ``[atoms, channels]``, e
        :return: on the mesh ``[channels, *shape]``, channels fastest in memory
        """
        num_points = self.shape[0] * self.shape[1] * self.shape[2]
        mesh = spread(self.stencil, particle_weights, num_points)
        return mesh.view(self.shape + [-1]).permute(3, 0, 1, 2)

    def mesh_to_points(self, mesh_vals: torch.Tensor) -> torch.Tensor:
        """
        :param mesh_vals: ``[channels, *shape]``
        :return: at the atoms ``[atoms, channels]``
        """
        return gather(self.stencil, mesh_vals.permute(1, 2, 3, 0).flatten(0, 2))

    def release(self) -> None:
        """Forget the structure."""
        self.cell, self.inverse_cell = self.cell.detach(), self.inverse_cell.detach()
        self.stencil = Stencil(index=self.stencil.index[:0], weights=self.cell[:0].detach())


def packed(mesh_values: torch.Tensor) -> torch.Tensor:
    """Two channels as the real and imaginary part of one: the filter is real, so that they do not
    mix, and the backward pass of complex transforms is cheaper.

    :param mesh_values: an even number of channels, fastest in memory ``[channels, *shape]``
    :return: complex ``[channels / 2, *shape]``
    """
    waves = mesh_values.permute(1, 2, 3, 0).unflatten(-1, [-1, 2])
    return torch.view_as_complex(waves).permute(3, 0, 1, 2).contiguous()


def unpacked(pairs: torch.Tensor) -> torch.Tensor:
    """
    :param pairs: complex ``[channels / 2, *shape]``
    :return: ``[channels, *shape]``, channels fastest in memory
    """
    values = torch.view_as_real(pairs.permute(1, 2, 3, 0).contiguous())
    return values.flatten(3).permute(3, 0, 1, 2)


class PhaseFilter(P3MKSpaceFilter):
    """Potential of mesh charges: influence function by the phases along the cell vectors.

    :param potential: interaction, of torch-pme
    :param order: of the splines
    """

    shape: list[int]

    def __init__(self, potential: torch.nn.Module, order: int) -> None:
        self.shape = [1, 1, 1]
        cell, size = torch.eye(3), torch.ones(3, dtype=torch.long)
        super().__init__(cell, size, order, potential, "backward", "forward")
        self.register_buffer("_diff_coeff", self._diff_coeff, persistent=False)

    @torch.jit.export
    def update(self, cell: torch.Tensor | None = None, ns_mesh: torch.Tensor | None = None) -> None:
        """
        :param cell: cell vectors in rows ``[3, 3]``, Å; the mesh is that of ``shape``
        :param ns_mesh: of torch-pme's signature, not used
        """
        if cell is not None:
            waves = mesh_waves(cell, self.shape, False)
            influence = optimal_influence(waves, self.shape, self.interpolation_nodes)
            kernel = self.kernel.kernel_from_k_sq(waves.k_squared)
            self._kfilter = kernel * influence / torch.det(cell).abs()

    def forward(self, mesh_values: torch.Tensor) -> torch.Tensor:
        """
        :param mesh_values: charges on the mesh ``[channels, *shape]``, an even number of channels
        :return: their potentials ``[channels, *shape]``, channels fastest in memory
        """
        return unpacked(self.filtered(packed(mesh_values)))

    def filtered(self, pairs: torch.Tensor) -> torch.Tensor:
        """
        :param pairs: charges on the mesh, see :func:`packed`
        :return: their potentials, of the same shape
        """
        waves = torch.fft.fftn(pairs, dim=[1, 2, 3])
        # TorchScript cannot differentiate a product of complex and real numbers
        waves = torch.view_as_complex(torch.view_as_real(waves).mul_(self._kfilter.unsqueeze(-1)))
        return torch.fft.ifftn(waves, dim=[1, 2, 3], norm="forward")

    def release(self) -> None:
        """Forget the structure."""
        self._kfilter = self._kfilter[:0].detach()


class MeshSum(torch.nn.Module):
    """Reciprocal part of the sum of one structure, all channels in one go.

    :param potential: interaction, of torch-pme
    :param order: of the splines
    """

    def __init__(self, potential: torch.nn.Module, order: int) -> None:
        super().__init__()
        self.interpolator = SplineInterpolator(order)
        self.filter = PhaseFilter(potential, order)

    def forward(
        self, charges: torch.Tensor, graph: Graph, structure: int, parameters: SumParameters
    ) -> torch.Tensor:
        """
        :param charges: of all atoms of the batch ``[all atoms, channels]``, e
        :param graph: of the batch
        :param structure: number of the structure
        :param parameters: of the sum
        :return: potentials ``[atoms, channels]``
        """
        boundaries = graph.boundaries
        begin, end = boundaries.first[structure], boundaries.first[structure + 1]
        charges, positions = charges[begin:end], graph.positions[begin:end]
        # about their mean: else the sum would depend a little on where the structure lies on the
        # mesh, so that forces would not sum to zero, and their rest times the distance to the
        # origin be a stress
        positions = positions - positions.mean(0)
        shape = mesh_shape(boundaries.lengths[structure], parameters.mesh_spacing)
        self.set_cell(boundaries.cells[structure], shape)
        self.interpolator.compute_weights(positions)
        sizes = charges.detach().abs().amax(dim=0)
        mesh = self.interpolator.points_to_mesh(normalized(charges, sizes))
        potentials = self.potentials(self.filter(mesh), sizes)
        self.release()
        return potentials

    def set_cell(self, cell: torch.Tensor, shape: list[int]) -> None:
        """
        :param cell: cell vectors in rows ``[3, 3]``, Å
        :param shape: mesh points along the cell vectors
        """
        self.interpolator.shape, self.filter.shape = shape, shape
        self.interpolator.set_cell(cell)
        self.filter.update(cell)

    def potentials(self, mesh: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """
        :param mesh: potentials on the mesh of :func:`normalized` charges ``[channels, *shape]``
        :param sizes: that these were normalised by ``[channels]``
        :return: potentials of the atoms ``[atoms, channels]``
        """
        potentials = self.interpolator.mesh_to_points(mesh)
        return potentials[:, : len(sizes)] * scales(sizes)

    def release(self) -> None:
        """Forget the structure: it would keep the graph alive, and could not be copied."""
        self.interpolator.release()
        self.filter.release()


def scales(sizes: torch.Tensor) -> torch.Tensor:
    """
    :param sizes: largest absolute value of each channel ``[channels]``, e
    :return: the same, one where there is no charge
    """
    return torch.where(sizes > 0.0, sizes, 1.0)


def normalized(charges: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """All channels brought to one size, so that the rounding errors of large ones do not reach
    small ones.

    :param charges: ``[atoms, channels]``, e
    :param sizes: largest absolute value of each channel ``[channels]``, e
    :return: an even number of channels
    """
    return torch.nn.functional.pad(charges / scales(sizes), [0, charges.size(1) % 2])
