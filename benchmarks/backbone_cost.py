"""What a model with PET inside costs, against PET and the model without it, on this machine.

    OMP_NUM_THREADS=1 python benchmarks/backbone_cost.py

Energies and forces of rock salt in single precision, models of the size of
``options/pet-with-charges.yaml`` with random weights, compiled by TorchScript. The three take
turns; medians of processor time.
"""

import argparse
import statistics
import time
import warnings

import ase.build
import numpy as np
import torch
from metatomic.torch import ModelOutput, systems_to_torch
from metatrain.pet.model import PET
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists,
)

from metatrain_lorem.model import Lorem

OUTPUTS = {"energy": ModelOutput(unit="eV", sample_kind="system")}
PET_HYPERS = {
    "cutoff": 5.0,
    "d_pet": 32,
    "d_node": 32,
    "d_head": 32,
    "d_feedforward": 64,
    "num_heads": 4,
    "num_attention_layers": 1,
    "num_gnn_layers": 1,
}
HYPERS = {"num_radial": 8, "num_features": 32, "num_spherical_features": 4, "max_degree": 2}


def models() -> dict[str, torch.nn.Module]:
    """PET, our model with both blocks, and the same with PET inside."""
    info = DatasetInfo(
        "angstrom", [11, 17], {"energy": get_energy_target_info("energy", {"unit": "eV"})}
    )
    hypers = get_default_hypers("lorem")["model"] | HYPERS
    hypers["long_range"]["max_degree"] = 1
    hypers["charge_equilibration"]["enable"] = True
    both = hypers | {"backbone": hypers["backbone"] | {"name": "pet", "hypers": PET_HYPERS}}
    pet = PET(get_default_hypers("pet")["model"] | PET_HYPERS, info)
    return {"PET": pet, "blocks": Lorem(hypers, info), "both": Lorem(both, info)}


def rocksalt(repeat: int) -> ase.Atoms:
    """
    :param repeat: conventional cells of eight atoms along each direction
    """
    frame = ase.build.bulk("NaCl", "rocksalt", 5.64, cubic=True).repeat(repeat)
    frame.positions += np.random.default_rng(0).normal(scale=0.1, size=frame.positions.shape)
    return frame


def seconds(model: torch.nn.Module, frame: ase.Atoms) -> float:
    """
    :param model: compiled
    :param frame: one structure
    :return: processor time of energy and forces
    """
    (system,) = systems_to_torch([frame], dtype=torch.float32)
    system.positions.requires_grad_()
    system = get_system_with_neighbor_lists(system, model.lists)
    start = time.process_time()
    energy = model.compiled([system], OUTPUTS, None)["energy"].block().values
    torch.autograd.grad(energy.sum(), system.positions)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, nargs="+", default=[3, 6], help="cells along an edge")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    compiled = {}
    for name, model in models().items():
        lists = get_requested_neighbor_lists(model)
        compiled[name] = torch.nn.Module()
        compiled[name].lists = lists
        compiled[name].compiled = torch.jit.script(model.export().module)
    for repeat in arguments.repeat:
        frame = rocksalt(repeat)
        times = {name: [] for name in compiled}
        for number in range(arguments.rounds + 3):
            for name, model in compiled.items():
                elapsed = seconds(model, frame)
                if number >= 3:  # compiled by profiles of the first calls
                    times[name].append(elapsed)
        medians = {name: statistics.median(values) for name, values in times.items()}
        excess = medians["both"] / (medians["PET"] + medians["blocks"]) - 1
        row = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in medians.items())
        print(f"{len(frame)} atoms: {row}; both against the sum {excess:+.1%}")


if __name__ == "__main__":
    main()
