r"""Equivariant linear maps and tensor products of spherical features."""

import torch

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
    exist.

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
        self.sizes = [(degree + 1) ** 2 for degree in max_degrees]
        parity = sum(improper) % 2
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
                    # layout [m2, m1, m3]: the product contracts the second factor first
                    entry = (m2 + l2**2) * self.sizes[0] + (m1 + l1**2)
                    entry = entry * self.sizes[2] + (m3 + l3**2)
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

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """
        :param x: first factor ``[atoms, (L1 + 1)**2, num_channels]``
        :param y: second factor ``[atoms, (L2 + 1)**2, num_channels]``
        :return: product ``[atoms, (L3 + 1)**2, num_channels]``
        """
        size1, size2, size3 = self.sizes[0], self.sizes[1], self.sizes[2]
        channels = self.weight.shape[1]
        values = join_constants(self.values, x.dtype).unsqueeze(-1)
        weighted = self.weight[self.entries[1]] * values
        table = torch.zeros(size1 * size2 * size3, channels, dtype=x.dtype, device=x.device)
        table = table.index_add(0, self.entries[0], weighted)
        table = table.view(size2, size1 * size3, channels).permute(2, 0, 1)
        half = torch.bmm(y.permute(2, 0, 1), table).view(channels, -1, size1, size3)
        product = torch.matmul(x.permute(2, 0, 1).unsqueeze(2), half).squeeze(2)
        return product.permute(1, 2, 0)


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
