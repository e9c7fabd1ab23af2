r"""Message passing of scalar and, if wanted, spherical features (LOREM, arXiv 2507.19382)."""

import torch

from ..documentation import ModelHypers
from .density import Edges, RadialMixing, sum_over_neighbors
from .mlp import Update, linear
from .spherical import SphericalNorms, degrees_of_components
from .tensor_dense import DegreeLinear, TensorProduct


class MessagePassing(torch.nn.Module):
    """One step of message passing: radial mixing by the features of both atoms, scalar messages,
    then the spherical features of the neighbours coupled to the edge's harmonics.

    :param hypers: of the model
    """

    def __init__(self, hypers: ModelHypers) -> None:
        super().__init__()
        num_radial, num_features = int(hypers["num_radial"]), int(hypers["num_features"])
        max_degree = int(hypers["max_degree"])
        num_spherical_features = int(hypers["num_spherical_features"])
        self.mixing = RadialMixing(num_features, num_radial, num_features)
        self.scalar = linear(num_features, num_features, bias=False)
        self.update = Update(num_features, num_features)
        self.spherical: torch.nn.Module | None = None
        if hypers["equivariant_message_passing"]:
            self.spherical = SphericalMessage(num_features, max_degree, num_spherical_features)
            self.norms = SphericalNorms(max_degree, hypers["norms"], num_spherical_features)
            self.norm_update = Update((max_degree + 1) * num_spherical_features, num_features)
        else:
            self.norms = torch.nn.Identity()
            self.norm_update = torch.nn.Identity()

    def forward(
        self,
        x: torch.Tensor,
        rho: torch.Tensor,
        edges: Edges,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param x: scalar features ``[atoms, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :param edges: of the batch
        :return: new scalar and spherical features
        """
        mixed = self.mixing.edges(x, edges)
        x = self.update(x, self.scalar(sum_over_neighbors(mixed, edges.centers, x.shape[0])))
        if self.spherical is not None:
            rho = self.spherical(mixed, rho, edges)
            x = self.norm_update(x, self.norms(rho))
        return x, rho


class SphericalMessage(torch.nn.Module):
    """Neighbours' spherical features, coupled to the edges, summed, coupled to the atom's own.

    :param num_features: scalar edge features d
    :param max_degree: largest degree L
    :param num_spherical_features: spherical features s
    """

    def __init__(self, num_features: int, max_degree: int, num_spherical_features: int) -> None:
        super().__init__()
        s = num_spherical_features
        degrees = (max_degree, max_degree, max_degree)
        self.coefficient_shape = [max_degree + 1, s]
        self.coefficients = linear(num_features, (max_degree + 1) * s, bias=False)
        self.filter = DegreeLinear(max_degree, s, s)
        self.message_product = TensorProduct(degrees, s)
        self.atom_linear = DegreeLinear(max_degree, s, s)
        self.message_linear = DegreeLinear(max_degree, s, s)
        self.product = TensorProduct(degrees, s)
        # spherical features start near 0.01; their product, and its potentials, would start where
        # the gradients drown in the epsilon of Adam
        with torch.no_grad():
            self.product.weight.mul_(100.0)
        self.register_buffer("degrees", degrees_of_components(max_degree), persistent=False)

    def forward(self, mixed: torch.Tensor, rho: torch.Tensor, edges: Edges) -> torch.Tensor:
        """
        :param mixed: scalar features of the edges ``[pairs, d]``
        :param rho: spherical features ``[atoms, (L + 1)**2, s]``
        :param edges: of the batch
        :return: new spherical features ``[atoms, (L + 1)**2, s]``
        """
        # the filter's linear map acts on what all components of a degree have in common
        coefficients = self.coefficients(mixed).unflatten(-1, self.coefficient_shape)
        coefficients = torch.einsum("plc,lcd->pld", coefficients, self.filter.weight)
        filters = coefficients[:, self.degrees] * edges.harmonics.unsqueeze(-1)
        messages = self.message_product(filters, rho[edges.neighbors])
        messages = sum_over_neighbors(messages, edges.centers, rho.shape[0])
        return self.product(self.atom_linear(rho), self.message_linear(messages))
