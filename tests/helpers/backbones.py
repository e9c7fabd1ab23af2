"""Small models of other architectures, to be put inside ours."""

from pathlib import Path

import metatensor.torch as mts
import torch
from metatrain.utils.architectures import get_default_hypers, import_architecture
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from omegaconf import OmegaConf

SMALL = {
    "pet": {
        "cutoff": 4.5,
        "d_pet": 8,
        "d_head": 8,
        "d_node": 8,
        "d_feedforward": 8,
        "num_heads": 1,
        "num_attention_layers": 1,
        "num_gnn_layers": 2,
    },
    "soap_bpnn": {
        "soap": {"max_radial": 3, "max_angular": 3},
        "bpnn": {"num_hidden_layers": 1, "num_neurons_per_layer": 8},
    },
    "experimental.mace": {"r_max": 4.5, "hidden_irreps": "4x0e+4x1o", "num_radial_basis": 4},
    "lorem": {
        "cutoff": 4.0,
        "num_radial": 4,
        "num_features": 8,
        "num_spherical_features": 2,
        "max_degree": 2,
        "long_range": {"max_degree": 1},
    },
}
"""Hypers by architecture."""

PACKAGES = {"soap_bpnn": "spex", "experimental.mace": "mace"}
"""What architectures need that metatrain does not install with itself."""


def section(name: str = "pet", **options) -> dict:
    """The hypers ``architecture.model.backbone``.

    :param name: of the architecture
    :param options: that differ from those of a backbone from scratch
    """
    defaults = get_default_hypers("lorem")["model"]["backbone"]
    hypers = {} if options.get("checkpoint") else SMALL[name]
    return {**defaults, "name": name, "hypers": hypers, **options}


def write_trained(
    path: Path,
    name: str = "pet",
    atomic_types=(1, 5, 6, 7, 8),
    length_unit: str = "angstrom",
    dtype=torch.float64,
    **hypers,
) -> torch.nn.Module:
    """The checkpoint of a potential with random weights, but baselines and a scale.

    :param path: file to write
    :param name: of the architecture
    :param atomic_types: that it knows
    :param length_unit: of its data
    :param dtype: of its weights
    :param hypers: that differ from ``SMALL``
    :return: the model, in evaluation
    """
    defaults = get_default_hypers(name, base_precision=64)["model"]
    merged = OmegaConf.to_container(OmegaConf.merge(defaults, SMALL[name], hypers))
    targets = {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    torch.manual_seed(1)
    model = import_architecture(name).__model__(
        merged, DatasetInfo(length_unit, list(atomic_types), targets)
    )
    composition, scaler = model.additive_models[0], model.scaler
    for module, buffer, value in (
        (composition, "energy_composition_buffer", -100.0 * torch.tensor(sorted(atomic_types))),
        (scaler, "energy_scaler_buffer", torch.tensor([3.7], dtype=torch.float64)),
        (scaler, "energy_per_target_scaler_buffer", torch.tensor([3.7], dtype=torch.float64)),
    ):
        values = mts.load_buffer(getattr(module, buffer))
        values.block().values[:] = value.to(torch.float64).unsqueeze(1)
        setattr(module, buffer, mts.save_buffer(values))
        module.sync_tensor_maps()
    model.to(dtype).eval()
    torch.save({**model.get_checkpoint(), "epoch": 3, "best_epoch": 2}, path)
    return model
