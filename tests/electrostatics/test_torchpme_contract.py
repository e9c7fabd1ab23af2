"""Names of torch-pme, public and private, that our subclasses rely on.

Should a new version move one, the message says which override to look at.
"""

import inspect

import pytest
import torch
import torchpme
from torchpme.lib import MeshInterpolator, P3MKSpaceFilter

KERNELS = "electrostatics/kernels.py: "
BOTH = KERNELS + "ErfcCoulomb, SmoothDispersion"
DISPERSION = KERNELS + "SmoothDispersion"
INTERPOLATOR = "electrostatics/mesh.py: SplineInterpolator"
FILTER = "electrostatics/mesh.py: PhaseFilter"
COULOMB, POWER = torchpme.CoulombPotential, torchpme.InversePowerLawPotential


def signature(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("kernel", [COULOMB, POWER])
@pytest.mark.parametrize(
    "name, parameters",
    [
        ("sr_from_dist", ["dist", "pair_mask"]),
        ("from_dist", ["dist", "pair_mask"]),
        ("lr_from_dist", ["dist", "pair_mask"]),
        ("lr_from_k_sq", ["k_sq"]),
        ("kernel_from_k_sq", ["k_sq"]),
        ("self_contribution", []),
        ("background_correction", []),
    ],
)
def test_methods_of_potentials(kernel, name, parameters):
    method = getattr(kernel, name, None)
    assert method is not None, f"{kernel.__name__} has no {name} any more: look at {BOTH}"
    assert signature(method) == parameters, f"{name} takes other arguments: look at {BOTH}"


@pytest.mark.parametrize(
    "owner, name, parameters, override",
    [
        (MeshInterpolator, "compute_weights", ["positions"], INTERPOLATOR),
        (MeshInterpolator, "points_to_mesh", ["particle_weights"], INTERPOLATOR),
        (MeshInterpolator, "mesh_to_points", ["mesh_vals"], INTERPOLATOR),
        (P3MKSpaceFilter, "update", ["cell", "ns_mesh"], FILTER),
        (P3MKSpaceFilter, "forward", ["mesh_values"], FILTER),
    ],
)
def test_methods_of_the_mesh(owner, name, parameters, override):
    method = getattr(owner, name, None)
    assert method is not None, f"{owner.__name__} has no {name} any more: look at {override}"
    assert signature(method) == parameters, f"{name} takes other arguments: look at {override}"


@pytest.mark.parametrize(
    "owner, parameters, override",
    [
        (COULOMB, ["smearing", "prefactor"], KERNELS + "ErfcCoulomb"),
        (POWER, ["exponent", "smearing", "prefactor"], DISPERSION),
        (MeshInterpolator, ["cell", "ns_mesh", "interpolation_nodes", "method"], INTERPOLATOR),
        (
            P3MKSpaceFilter,
            ["cell", "ns_mesh", "interpolation_nodes", "kernel", "fft_norm", "ifft_norm"],
            FILTER,
        ),
    ],
)
def test_constructors(owner, parameters, override):
    """By name for potentials, by position for the mesh."""
    found = signature(owner.__init__)
    if owner in (MeshInterpolator, P3MKSpaceFilter):
        found = found[: len(parameters)]
    missing = [name for name in parameters if name not in found]
    message = f"{owner.__name__} takes {found}: look at {override}"
    assert not missing, message
    if owner in (MeshInterpolator, P3MKSpaceFilter):
        assert found == parameters, message


def test_attributes():
    """What the overrides read, write or keep out of checkpoints."""
    cell, size = torch.eye(3), torch.ones(3, dtype=torch.long)
    coulomb, power = COULOMB(smearing=1.0), POWER(exponent=6, smearing=1.0)
    interpolator = MeshInterpolator(cell, size, 5, "P3M")
    mesh_filter = P3MKSpaceFilter(cell, size, 5, coulomb, "backward", "forward")
    needed = [
        (coulomb, {"smearing", "prefactor"}, set(), KERNELS + "_derived"),
        (power, {"smearing", "prefactor", "exponent"}, set(), DISPERSION),
        (interpolator, set(), {"cell", "inverse_cell", "interpolation_nodes"}, INTERPOLATOR),
        (mesh_filter, {"_diff_coeff"}, {"_kfilter", "interpolation_nodes", "kernel"}, FILTER),
    ]
    for module, buffers, attributes, override in needed:
        name = type(module).__name__
        # a buffer that is missing here would get into our checkpoints, or no longer be found
        found = set(dict(module.named_buffers(recurse=False)))
        assert found == buffers, f"buffers of {name} are {found}: look at {override}"
        missing = {attribute for attribute in attributes if not hasattr(module, attribute)}
        assert not missing, f"{name} has no {missing} any more: look at {override}"


def test_kernels_get_squared_wave_vectors():
    """``PhaseFilter`` calls the kernel by the method that ``P3MKSpaceFilter`` calls."""
    kernel = COULOMB(smearing=1.0)
    k_squared = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    message = f"kernel_from_k_sq is not lr_from_k_sq any more: look at {FILTER}"
    assert torch.equal(kernel.kernel_from_k_sq(k_squared), kernel.lr_from_k_sq(k_squared)), message
