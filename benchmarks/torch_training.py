"""Training steps of models of metatrain: forward, forces, gradient of the loss, optimizer."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import GIB, measure
from metatomic.torch import System
from metatrain.utils.data import (
    CollateFn,
    Dataset,
    TargetInfo,
    get_atomic_types,
    get_dataset,
    unpack_batch,
)
from metatrain.utils.evaluate_model import evaluate_model
from metatrain.utils.neighbor_lists import (
    get_requested_neighbor_lists,
    get_system_with_neighbor_lists_transform,
)
from metatrain.utils.transfer import batch_to
from omegaconf import OmegaConf
from torch_models import new_model

from metatrain_lorem.model import Lorem
from metatrain_lorem.training.batches import join
from metatrain_lorem.training.prepared import Memory, Preparation, PreparedStructures

EPOCHS = 5
"""In which making batches is timed."""


def read_data(path: Path) -> tuple[Dataset, dict[str, TargetInfo]]:
    """Structures with energies and forces.

    :param path: of a file that ASE reads, with ``energy`` and ``forces``
    """
    common = {"read_from": str(path), "reader": "ase"}
    energy = {
        **common,
        "key": "energy",
        "quantity": "energy",
        "unit": "eV",
        "type": "scalar",
        "sample_kind": "system",
        "num_subtargets": 1,
        "description": "",
        "forces": {**common, "key": "forces"},
        "stress": False,
        "virial": False,
    }
    systems = {**common, "length_unit": "angstrom"}
    dataset, targets, _ = get_dataset(
        OmegaConf.create({"systems": systems, "targets": {"energy": energy}})
    )
    return dataset, targets


def prepare_training(task: dict) -> tuple[Callable[[int], float], float]:
    """
    :param task: see :func:`torch_worker.main`
    :return: a function of the number of the call that takes one step with every batch and returns
        the time of a step in seconds; the time of making a batch as the trainer of the model does
        it in the epochs after the first
    """
    dataset, targets = read_data(Path(task["data"]))
    device = torch.device(task["device"])
    model = new_model(task["model"], get_atomic_types(dataset), targets).to(device).train()
    # as our trainer does it; those of metatrain do without
    own = isinstance(model, Lorem)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=own)
    parameters = [p for p in model.parameters() if p.requires_grad] if own else None
    size = task["batch_size"]
    count = min(task["batches"], len(dataset) // size)
    if own:
        dataset = PreparedStructures(dataset, Preparation(model), Memory(limit=10 * GIB))
        make = partial(join, targets=["energy"])
    else:
        lists = get_requested_neighbor_lists(model)
        collate = CollateFn(["energy"], [get_system_with_neighbor_lists_transform(lists)])

        def make(samples: list) -> tuple:
            return unpack_batch(collate(samples))

    def load(number: int) -> tuple:
        samples = [dataset[i] for i in range(number * size, (number + 1) * size)]
        return batch_to(*make(samples), dtype=torch.float32, device=device)

    loading = []
    # the first two epochs also load libraries, compile TorchScript and make neighbour lists
    for _ in range(2 + EPOCHS):
        start = time.perf_counter()
        batches = [load(number) for number in range(count)]
        loading.append((time.perf_counter() - start) / count)

    def step(systems: list[System], labels: dict) -> None:
        optimizer.zero_grad(set_to_none=True)
        predictions = evaluate_model(model, systems, targets, is_training=True)
        predicted, label = predictions["energy"].block(), labels["energy"].block()
        atoms = torch.tensor([[len(system)] for system in systems], device=device)
        forces = (predicted.gradient("positions").values, label.gradient("positions").values)
        loss = 0.5 * torch.mean(((predicted.values - label.values) / atoms) ** 2)
        loss = loss + 0.5 * torch.mean((forces[0] - forces[1]) ** 2)
        loss.backward(inputs=parameters)
        optimizer.step()

    def run(call: int) -> float:
        start = time.perf_counter()
        for systems, labels, _ in batches:
            step(systems, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / count

    return run, float(np.median(loading[2:]))


def measure_training(task: dict) -> dict:
    """Times in seconds of a training step, and of making its batch.

    :param task: see :func:`torch_worker.main`
    """
    run, loading = prepare_training(task)
    return {"times": measure(run, task["repetitions"]), "loading": loading}
