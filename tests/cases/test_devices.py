"""Nothing of an evaluation stays on the CPU when the model is on a GPU."""

import pytest
import torch
from helpers import pretended_gpu
from helpers.batches import tune

from metatrain_lorem.heads.readout import Features
from metatrain_lorem.systems import concatenate

ITERATIVE = {"enable": True, "solver": "iterative", "tolerance": 1e-10}
MODELS = {
    "message passing": {"num_message_passing": 1},
    "ZBL": {"zbl": True},
    "dispersion": {"long_range": {"exponents": [1, 6]}},
    "dense": {"charge_equilibration": {"enable": True, "solver": "dense"}, "conditional": True},
    "iterative": {"charge_equilibration": ITERATIVE, "conditional": True},
    "learned widths": {"charge_equilibration": {**ITERATIVE, "learn_widths": True}},
}


def forces_and_gradients(model, batch):
    """Forces, and derivatives of a loss of them by all parameters, of the model without its
    TensorMaps."""
    positions = batch.positions.detach().requires_grad_(True)
    graph = model.graph.build(batch._replace(positions=positions), model.total_charge_range)
    stages, spherical = model.short_range(graph, model.conditioning(graph))
    charges = field = None
    if model.charge_equilibration is not None:
        species_features = model.short_range.embedding(graph.species)
        x, charges = model.charge_equilibration(stages[-1], species_features, graph)
        stages.append(x)
    if model.long_range is not None:
        x, field = model.long_range(stages[-1], spherical, graph)
        stages.append(x)
    features = Features(stages=stages, spherical=spherical, field=field)
    values = model.readout(features, charges, graph, ["energy"])
    energy = sum(v.sum() for v in torch.utils._pytree.tree_leaves(values) if v.requires_grad)
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
    parameters = [p for part in model.modules() for p in part._parameters.values()]
    parameters = [p for p in parameters if p is not None and p.requires_grad]
    second = torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True)
    return [gradient, *(g for g in second if g is not None)]


@pytest.mark.parametrize("mesh", [False, True], ids=["waves", "mesh"])
@pytest.mark.parametrize("name", MODELS)
def test_all_is_on_the_device(lorem, monkeypatch, name, mesh):
    """Once the size of the mesh was left behind, and no large periodic structure could run."""
    model = lorem.new_model(**MODELS[name])
    if mesh:
        tune(model.long_range.coulomb, mesh_threshold=0)
        if model.long_range.dispersion is not None:
            tune(model.long_range.dispersion, mesh_threshold=0)
        if model.charge_equilibration is not None:
            tune(model.charge_equilibration, mesh_threshold=0)
    systems = lorem.systems(model, list(lorem.frames.values()))
    total_charge = torch.zeros(len(systems), dtype=torch.float64)
    batch = concatenate(systems, model.graph.neighbor_list, total_charge)
    expected = forces_and_gradients(model, batch)

    pretended_gpu.move(model)
    fields = {
        key: pretended_gpu.Pretended(value.detach()) if isinstance(value, torch.Tensor) else value
        for key, value in batch._asdict().items()
    }
    with pretended_gpu.pretended_gpu(monkeypatch):
        found = forces_and_gradients(model, batch._replace(**fields))
    for value, reference in zip(found, expected, strict=True):
        assert value.device == pretended_gpu.DEVICE
        torch.testing.assert_close(value.inner, reference.detach(), rtol=0.0, atol=0.0)
