r"""Equivariant linear maps and tensor products of spherical features."""

import torch

from ..indexing import chunk_sizes, chunks, cut, join
from .clebsch_gordan import clebsch_gordan
from .constants import join_constants, split_constants
from .mlp import lecun_normal_
from .spherical import degrees_of_components
from .table_product import TableProduct

SMALL_TABLE = 30_000
"""Components of the two factors and of the product, multiplied, below which a tensor product is
done in one go."""


class DegreeLinear(torch.nn.Module):
    """One linear map of channels per degree, the same for all components of a degree.

    :param max_degree: largest degree L
    :param num_in: channels in
    :param num_out: channels out
    """

    def __init__(self, max_degree: int, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(max_degree + 1, num_in, num_out))
        lecun_normal_(self.weight, num_in)
        self.register_buffer("degrees", degrees_of_components(max_degree), persistent=False)
        self.register_buffer("folded", torch.zeros(0, num_in, num_out), persistent=False)

    def fold(self) -> None:
        """Keep the weights of all components: for evaluation only, as :meth:`TensorProduct.fold`"""
        self.folded = self.weight[self.degrees].detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``[atoms, (L + 1)**2, num_in]``
        :return: ``[atoms, (L + 1)**2, num_out]``
        """
        weight = self.folded if self.folded.shape[0] > 0 else self.weight[self.degrees]
        return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)


class TensorProduct(torch.nn.Module):
    r"""Clebsch-Gordan product of spherical features, one weight per path and channel.

    .. math:: z_{l_3 m_3 c} = \sum_{l_1 l_2} w_{l_1 l_2 l_3 c}
        \sum_{m_1 m_2} C^{l_1 l_2 l_3}_{m_1 m_2 m_3} x_{l_1 m_1 c}\, y_{l_2 m_2 c}

    A factor's component of degree l has parity :math:`(-1)^l` (a proper tensor) unless ``improper``
    names that factor or the product as made of pseudotensors; only paths that conserve parity
    exist. So in large products components of even and of odd degrees are multiplied apart, each by
    a dense table of weights times coefficients; in small ones the time goes into the number of
    operators, and one table serves all.

    :param max_degrees: largest degrees of the two factors and of the product
    :param num_channels: number of channels c
    :param improper: which of the three are pseudotensors
    """

    def __init__(
        self,
        max_degrees: tuple[int, int, int],
        num_channels: int,
        improper: tuple[bool, bool, bool] = (False, False, False),
    ) -> None:
        super().__init__()
        self.max_degrees = list(max_degrees)
        parity = sum(improper) % 2
        size = ((max_degrees[0] + 1) * (max_degrees[1] + 1) * (max_degrees[2] + 1)) ** 2
        self.parities = parities = 1 if size < SMALL_TABLE else 2
        sizes = [_components_by_parity(degree, parities) for degree in max_degrees]
        # parities of the factors (a, b) and of the product (c); tables [a, b, c], one after another
        self.blocks: list[tuple[int, int, int, list[int]]] = []
        starts: dict[tuple[int, int], int] = {}
        start = 0
        for a in range(parities):
            for b in range(parities):
                c = (a + b + parity) % parities
                shape = [sizes[0][a], sizes[1][b], sizes[2][c]]
                starts[a, b] = start
                if 0 not in shape:
                    self.blocks.append((a, b, c, shape))
                    start += shape[0] * shape[1] * shape[2]
        self.table_size = start
        paths: list[tuple[int, int, int]] = []
        entries: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for l1 in range(max_degrees[0] + 1):
            for l2 in range(max_degrees[1] + 1):
                for l3 in range(abs(l1 - l2), min(l1 + l2, max_degrees[2]) + 1):
                    if (l1 + l2 + l3) % 2 != parity:
                        continue
                    table = clebsch_gordan(l1, l2, l3)
                    m1, m2, m3 = torch.nonzero(table.abs() > 1e-12, as_tuple=True)
                    entry = (m1 + _first_of_parity(l1, parities)) * sizes[1][l2 % parities]
                    entry = (entry + m2 + _first_of_parity(l2, parities)) * sizes[2][l3 % parities]
                    entry = entry + m3 + _first_of_parity(l3, parities)
                    entry = entry + starts[l1 % parities, l2 % parities]
                    entries.append(torch.stack([entry, torch.full_like(entry, len(paths))]))
                    values.append(table[m1, m2, m3])
                    paths.append((l1, l2, l3))
        self.paths = paths
        self.weight = torch.nn.Parameter(torch.empty(len(paths), num_channels))
        with torch.no_grad():
            for degree in range(max_degrees[2] + 1):
                rows = [i for i, path in enumerate(paths) if path[2] == degree]
                if len(rows) > 0:
                    block = torch.empty(len(rows), num_channels)
                    lecun_normal_(block, len(rows))
                    self.weight[rows] = block
        self.register_buffer("entries", torch.cat(entries, dim=1), persistent=False)
        self.register_buffer("values", split_constants(torch.cat(values)), persistent=False)
        self.register_buffer("folded", torch.zeros(2, 0, 0), persistent=False)

    def fold(self) -> None:
        """Keep the table for good: for evaluation only, later changes of weights have no effect."""
        table = self.table(torch.float64).detach()
        self.folded = split_constants(table).to(self.weight.dtype)

    def table(self, dtype: torch.dtype) -> torch.Tensor:
        """
        :param dtype: floating-point type to evaluate it in
        :return: weights times coefficients of all blocks ``[num_channels, table_size]``
        """
        weighted = self.weight[self.entries[1]].T.to(dtype) * join_constants(self.values, dtype)
        size = [weighted.shape[0], self.table_size]
        table = torch.zeros(size, dtype=weighted.dtype, device=weighted.device)
        return table.scatter(1, self.entries[:1].expand_as(weighted), weighted)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """
        :param x: first factor ``[atoms, (L1 + 1)**2, num_channels]``; without a second one both, of
            equal degrees, in the first and the second half of ``2 * num_channels``
        :param y: second factor ``[atoms, (L2 + 1)**2, num_channels]``
        :return: product ``[atoms, (L3 + 1)**2, num_channels]``
        """
        table = self.current_table(x.dtype)
        if not torch.jit.is_scripting():
            if self.training and self.folded.shape[1] == 0:
                first, second = x.chunk(2, dim=2) if y is None else (x, y)
                return TableProduct.apply(self, table, first, second)
        sizes = chunks(x.shape[0], chunk_sizes(x.device)[1])
        products: list[torch.Tensor] = []
        for n, chunk in enumerate(cut(x, sizes)):
            first = self.sorted(chunk, 0)
            if y is None:
                first, second = first.chunk(2)
            else:
                second = self.sorted(cut(y, sizes)[n], 1)
            products.append(self.product(first, second, table))
        return join(products)

    def current_table(self, dtype: torch.dtype) -> torch.Tensor:
        """:meth:`table`, folded or not."""
        if self.folded.shape[1] == 0:
            return self.table(dtype)
        return join_constants(self.folded, dtype)

    def sorted(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        """
        :param x: a factor, of so many atoms that what lies between stays in the cache of a
            processor, ``[atoms, (L + 1)**2, num_channels]``
        :param factor: 0 or 1
        :return: components of even degrees before those of odd ones, where they are multiplied
            apart, ``[num_channels, atoms, (L + 1)**2]``
        """
        x = x.permute(2, 0, 1)
        if self.parities == 1:
            return x.contiguous()
        degrees = x.split([2 * degree + 1 for degree in range(self.max_degrees[factor] + 1)], dim=2)
        return torch.cat(degrees[::2] + degrees[1::2], dim=2)

    def product(self, x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """
        :param x: first factor, sorted
        :param y: second factor, sorted
        :param table: from :meth:`table`
        :return: product ``[atoms, (L3 + 1)**2, num_channels]``
        """
        xs, ys = self.split(x, 0), self.split(y, 1)
        sums: dict[int, torch.Tensor] = {}
        start = 0
        for a, b, c, shape in self.blocks:
            stop = start + shape[0] * shape[1] * shape[2]
            block = table[:, start:stop].view([-1, shape[0] * shape[1], shape[2]])
            # a table without derivatives lets autograd store the factors only
            first, second = xs[a].flatten(0, 1).unsqueeze(2), ys[b].flatten(0, 1).unsqueeze(1)
            outer = torch.bmm(first, second).view(block.shape[0], x.shape[1], block.shape[1])
            sums[c] = torch.baddbmm(sums[c], outer, block) if c in sums else torch.bmm(outer, block)
            start = stop
        return self.unsorted([sums[c] for c in range(len(sums))], 2)

    def unsorted(self, parts: list[torch.Tensor], factor: int) -> torch.Tensor:
        """
        :param parts: components of even degrees and of odd ones, or all,
            ``[num_channels, atoms, components]``
        :param factor: 0 or 1, 2 for the product
        :return: components of all degrees ``[atoms, (L + 1)**2, num_channels]``
        """
        if len(parts) == 1:
            return parts[0].permute(1, 2, 0)
        by_parity: list[list[torch.Tensor]] = []
        for parity, part in enumerate(parts):
            degrees = range(parity, self.max_degrees[factor] + 1, 2)
            sizes = [2 * degree + 1 for degree in degrees]
            by_parity.append(list(part.permute(1, 2, 0).split(sizes, dim=1)))
        joined: list[torch.Tensor] = []
        for degree in range(self.max_degrees[factor] + 1):
            joined.append(by_parity[degree % 2][degree // 2])
        return torch.cat(joined, dim=1)

    def split(self, x: torch.Tensor, factor: int) -> list[torch.Tensor]:
        """
        :param x: a factor, sorted
        :param factor: 0 or 1
        :return: components of even degrees and of odd ones, or all
        """
        max_degree = self.max_degrees[factor]
        if self.parities == 1 or max_degree == 0:
            return [x]
        even = sum([2 * degree + 1 for degree in range(0, max_degree + 1, 2)])
        return list(x.split([even, x.shape[2] - even], dim=2))


def _components_by_parity(max_degree: int, parities: int) -> list[int]:
    sizes = [0] * parities
    for degree in range(max_degree + 1):
        sizes[degree % parities] += 2 * degree + 1
    return sizes


def _first_of_parity(degree: int, parities: int) -> int:
    """Place of a degree's first component among those of its parity, or among all."""
    return degree * degree if parities == 1 else degree * (degree - 1) // 2


class TensorDense(torch.nn.Module):
    """Tensor product of two linear maps of the same spherical features.

    :param max_degree: largest degree of the input
    :param num_in: channels in
    :param max_degree_out: largest degree of the output
    :param num_out: channels out
    """

    def __init__(self, max_degree: int, num_in: int, max_degree_out: int, num_out: int) -> None:
        super().__init__()
        self.linear = DegreeLinear(max_degree, num_in, 2 * num_out)
        self.product = TensorProduct((max_degree, max_degree, max_degree_out), num_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``[atoms, (max_degree + 1)**2, num_in]``
        :return: ``[atoms, (max_degree_out + 1)**2, num_out]``
        """
        return self.product(self.linear(x))
