r"""Products of spherical features by a table, with derivatives written by hand for training.

With the sum over some pairs of factors

.. math:: \phi(g, T, x_1, y_1, x_2, y_2, \ldots) =
    \sum_{nc} \sum_{abk} g_{nkc} T_{c,abk} \sum_i x_{i,nac}\, y_{i,nbc}

the sum of the pairs' products is :math:`\partial\phi/\partial g`, and its backward pass takes the
derivatives of :math:`\phi` by all the rest. Their backward pass, which the gradient of a loss of
forces needs, takes the same again for twice as many pairs, and so on to any order. What is larger
than the factors, outer products and their derivatives, is made for a few atoms at a time and never
stored.
"""

import torch

from ..indexing import chunk_sizes

Pairs = list[tuple[list[torch.Tensor], list[torch.Tensor]]]


class TableProduct(torch.autograd.Function):
    """Sum of the products of pairs of factors; not in TorchScript.

    :param module: the tensor product
    :param table: its table
    :param factors: first and second factor of each pair, ``[atoms, components, channels]``
    """

    @staticmethod
    def forward(ctx, module, table: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        ctx.module = module
        ctx.save_for_backward(table, *factors)
        products: list[torch.Tensor] = []
        for chunk in _chunks(factors):
            pairs = _sorted_pairs(module, chunk)
            sums: dict[int, torch.Tensor] = {}
            for (a, b, c, _), block in zip(module.blocks, _blocks(module, table), strict=True):
                # in this order twice as fast as the outer products times the block
                term = torch.bmm(block.mT, _outer_products(pairs, a, b).mT).mT
                sums[c] = sums[c] + term if c in sums else term
            products.append(module.unsorted([sums[c] for c in range(len(sums))], 2))
        return torch.cat(products)

    @staticmethod
    def backward(ctx, g: torch.Tensor):
        return None, *ProductGradient.apply(ctx.module, g, *ctx.saved_tensors)


class ProductGradient(torch.autograd.Function):
    r"""Derivatives of :math:`\phi` by the table and by all factors.

    :param g: ``[atoms, components, channels]``
    """

    @staticmethod
    def forward(ctx, module, g: torch.Tensor, table: torch.Tensor, *factors: torch.Tensor):
        ctx.module = module
        ctx.save_for_backward(g, table, *factors)
        ctx.set_materialize_grads(False)
        blocks = _blocks(module, table)
        by_blocks = [torch.zeros_like(block) for block in blocks] if _is_wanted(table) else []
        gradients: list[list[torch.Tensor]] = [[] for _ in factors]
        for g_chunk, *chunk in _chunks((g, *factors)):
            pairs = _sorted_pairs(module, chunk)
            gs = module.split(module.sorted(g_chunk, 2), 2)
            sums = [[torch.zeros_like(part) for part in parts] for pair in pairs for parts in pair]
            for n, (a, b, c, shape) in enumerate(module.blocks):
                by_outer = torch.bmm(gs[c], blocks[n].mT).view(-1, shape[0], shape[1])
                for i, (x, y) in enumerate(pairs):
                    by_x = torch.bmm(y[b].reshape(-1, 1, shape[1]), by_outer.mT)
                    by_y = torch.bmm(x[a].reshape(-1, 1, shape[0]), by_outer)
                    sums[2 * i][a] += by_x.view(x[a].shape)
                    sums[2 * i + 1][b] += by_y.view(y[b].shape)
                if len(by_blocks) > 0:
                    by_blocks[n].baddbmm_(_outer_products(pairs, a, b).mT, gs[c])
            for i, parts in enumerate(sums):
                gradients[i].append(module.unsorted(parts, i % 2))
        by_table = torch.cat([x.flatten(1) for x in by_blocks], dim=1) if by_blocks else None
        return by_table, *[torch.cat(parts) for parts in gradients]

    @staticmethod
    def backward(ctx, by_table: torch.Tensor | None, *directions: torch.Tensor | None):
        g, table, *factors = ctx.saved_tensors
        pairs: list[torch.Tensor] = []
        for i in range(0, len(factors), 2):
            x, y = factors[i : i + 2]
            dx, dy = directions[i : i + 2]
            pairs += [torch.zeros_like(x) if dx is None else dx, y]
            pairs += [x, torch.zeros_like(y) if dy is None else dy]
        by_g = TableProduct.apply(ctx.module, table, *pairs)
        gradient, *by_pairs = ProductGradient.apply(ctx.module, g, table, *pairs)
        # of each pair the factor that is no direction
        by_factors: list[torch.Tensor] = []
        for i in range(0, len(by_pairs), 4):
            by_factors += [by_pairs[i + 2], by_pairs[i + 1]]
        if by_table is not None:
            by_g = by_g + TableProduct.apply(ctx.module, by_table, *factors)
            more = ProductGradient.apply(ctx.module, g, by_table, *factors)[1:]
            by_factors = [a + b for a, b in zip(by_factors, more, strict=True)]
        return None, by_g, gradient, *by_factors


def _is_wanted(tensor: torch.Tensor) -> bool:
    """Whether the backward pass that is going on leads to a tensor; that of forces does not lead to
    weights."""
    node = tensor.grad_fn
    return tensor.requires_grad and (node is None or torch._C._will_engine_execute_node(node))


def _chunks(factors):
    """Chunks of atoms, of all factors."""
    size = chunk_sizes(factors[0].device)[1]
    return zip(*[factor.split(size) for factor in factors], strict=True)


def _sorted_pairs(module, factors) -> Pairs:
    """Of each pair the components of even and of odd degrees, ``[channels, atoms, components]``."""
    parts = [module.split(module.sorted(x, i % 2), i % 2) for i, x in enumerate(factors)]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _blocks(module, table: torch.Tensor) -> list[torch.Tensor]:
    """The table's blocks, each ``[channels, a * b, c]``."""
    shapes = [shape for _, _, _, shape in module.blocks]
    parts = table.split([shape[0] * shape[1] * shape[2] for shape in shapes], dim=1)
    return [
        part.view(-1, shape[0] * shape[1], shape[2])
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _outer_products(pairs: Pairs, a: int, b: int) -> torch.Tensor:
    """Outer products of components of two parities, summed over pairs,
    ``[channels, atoms, a * b]``."""
    (x, y), *others = pairs
    outer = x[a].unsqueeze(3) * y[b].unsqueeze(2)
    for x, y in others:
        outer.addcmul_(x[a].unsqueeze(3), y[b].unsqueeze(2))
    return outer.flatten(2)
