r"""Equivariant linear maps and tensor products of spherical features."""

import torch

from ..indexing import chunk_sizes
from .clebsch_gordan import clebsch_gordan
from .constants import join_constants, split_constants
from .mlp import lecun_normal_
from .spherical import degrees_of_components


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``[atoms, (L + 1)**2, num_in]``
        :return: ``[atoms, (L + 1)**2, num_out]``
        """
        return torch.einsum("nmi,mio->nmo", x, self.weight[self.degrees])


class TensorProduct(torch.nn.Module):
    r"""Clebsch-Gordan product of spherical features, one weight per path and channel.

    .. math:: z_{l_3 m_3 c} = \sum_{l_1 l_2} w_{l_1 l_2 l_3 c}
        \sum_{m_1 m_2} C^{l_1 l_2 l_3}_{m_1 m_2 m_3} x_{l_1 m_1 c}\, y_{l_2 m_2 c}

    A factor's component of degree l has parity :math:`(-1)^l` (a proper tensor) unless ``improper``
    names that factor or the product as made of pseudotensors; only paths that conserve parity
    exist. So components of even and of odd degrees are multiplied apart, each by a dense table of
    weights times coefficients.

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
        sizes = [_components_by_parity(degree) for degree in max_degrees]
        # parities of the factors (a, b) and of the product (c); tables [a, b, c], one after another
        self.blocks: list[tuple[int, int, int, list[int]]] = []
        starts: dict[tuple[int, int], int] = {}
        start = 0
        for a in range(2):
            for b in range(2):
                c = (a + b + parity) % 2
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
                    entry = (m1 + _first_of_parity(l1)) * sizes[1][l2 % 2]
                    entry = (entry + m2 + _first_of_parity(l2)) * sizes[2][l3 % 2]
                    entry = entry + m3 + _first_of_parity(l3) + starts[l1 % 2, l2 % 2]
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

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """
        :param x: first factor ``[atoms, (L1 + 1)**2, num_channels]``
        :param y: second factor ``[atoms, (L2 + 1)**2, num_channels]``
        :return: product ``[atoms, (L3 + 1)**2, num_channels]``
        """
        if self.folded.shape[1] == 0:
            table = self.table(x.dtype)
        elif x.dtype == torch.float32:
            # the second part is below its precision
            table = self.folded[0]
        else:
            table = join_constants(self.folded, x.dtype)
        # so many atoms that what lies between stays in the cache of a processor
        chunk = chunk_sizes(x.device)[1]
        products: list[torch.Tensor] = []
        for x_chunk, y_chunk in zip(x.split(chunk), y.split(chunk)):  # noqa: B905
            products.append(self.product(x_chunk, y_chunk, table))
        return torch.cat(products)

    def product(self, x: torch.Tensor, y: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """
        :param x: first factor ``[atoms, (L1 + 1)**2, num_channels]``
        :param y: second factor ``[atoms, (L2 + 1)**2, num_channels]``
        :param table: from :meth:`table`
        :return: product ``[atoms, (L3 + 1)**2, num_channels]``
        """
        xs = split_parities(x.permute(2, 0, 1), self.max_degrees[0])
        ys = split_parities(y.permute(2, 0, 1), self.max_degrees[1])
        terms: list[list[torch.Tensor]] = [[], []]
        start = 0
        for a, b, c, shape in self.blocks:
            stop = start + shape[0] * shape[1] * shape[2]
            block = table[:, start:stop].view([-1, shape[0] * shape[1], shape[2]])
            # a table without derivatives lets autograd store the factors only
            first, second = xs[a].flatten(0, 1).unsqueeze(2), ys[b].flatten(0, 1).unsqueeze(1)
            outer = torch.bmm(first, second).view(block.shape[0], x.shape[0], block.shape[1])
            terms[c].append(torch.bmm(outer, block))
            start = stop
        return join_parities(terms, self.max_degrees[2]).permute(1, 2, 0)


def split_parities(x: torch.Tensor, max_degree: int) -> list[torch.Tensor]:
    """
    :param x: components of all degrees in the last dimension
    :param max_degree: largest degree
    :return: components of even and of odd degrees
    """
    degrees = x.split([2 * degree + 1 for degree in range(max_degree + 1)], dim=-1)
    if max_degree == 0:
        return [degrees[0]]
    return [torch.cat(degrees[::2], dim=-1), torch.cat(degrees[1::2], dim=-1)]


def join_parities(parts: list[list[torch.Tensor]], max_degree: int) -> torch.Tensor:
    """
    :param parts: terms of the sum that gives the components of even degrees, and of odd ones
    :param max_degree: largest degree
    :return: components of all degrees in the last dimension
    """
    joined: list[torch.Tensor] = []
    by_parity: list[list[torch.Tensor]] = []
    for parity, terms in enumerate(parts):
        sizes = [2 * degree + 1 for degree in range(parity, max_degree + 1, 2)]
        if len(sizes) > 0:
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            by_parity.append(total.split(sizes, dim=-1))
    for degree in range(max_degree + 1):
        joined.append(by_parity[degree % 2][degree // 2])
    return torch.cat(joined, dim=-1)


def _components_by_parity(max_degree: int) -> list[int]:
    sizes = [0, 0]
    for degree in range(max_degree + 1):
        sizes[degree % 2] += 2 * degree + 1
    return sizes


def _first_of_parity(degree: int) -> int:
    """Place of a degree's first component among those of its parity."""
    return degree * (degree - 1) // 2


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
        first, second = self.linear(x).chunk(2, dim=-1)
        return self.product(first, second)
