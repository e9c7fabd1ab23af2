import math

import pytest
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatrain.utils.metrics import MAEAccumulator, RMSEAccumulator

from metatrain_lorem.training.distributed import Processes
from metatrain_lorem.training.metrics import ErrorSums, differences


def energies(seed, missing):
    """Energies and gradients of four structures of three atoms as a target."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 1, generator=generator)
    forces = torch.randn(12, 3, 1, generator=generator)
    if missing:
        values[1], forces[2, 1], forces[5] = math.nan, math.nan, math.nan
    label = Labels.range("energy", 1)
    block = TensorBlock(values, Labels.range("system", 4), [], label)
    samples = torch.cartesian_prod(torch.arange(4), torch.arange(3)).to(torch.int32)
    xyz = [Labels.range("xyz", 3)]
    gradient = TensorBlock(forces, Labels(["sample", "atom"], samples), xyz, label)
    block.add_gradient("positions", gradient)
    return TensorMap(Labels.single(), [block])


def times(tensor_map, factor):
    block = tensor_map.block()
    new = TensorBlock(factor * block.values, block.samples, block.components, block.properties)
    for name, gradient in block.gradients():
        values = factor * gradient.values
        parts = (gradient.samples, gradient.components, gradient.properties)
        new.add_gradient(name, TensorBlock(values, *parts))
    return TensorMap(tensor_map.keys, [new])


@pytest.mark.parametrize("masked", [False, True])
def test_same_errors_as_metatrain(masked):
    """Its accumulators read numbers, already in units, four times per quantity and batch."""
    scale, sums, accumulators = 2.5, ErrorSums(), [RMSEAccumulator(), MAEAccumulator()]
    for batch in range(3):
        prediction, label = energies(batch, False), energies(10 + batch, not masked)
        masks = {}
        if masked:
            block = label.block()
            known = TensorBlock(
                torch.tensor([[True], [False], [True], [True]]),
                block.samples,
                block.components,
                block.properties,
            )
            gradient = block.gradient("positions")
            known_forces = torch.arange(36).reshape(12, 3, 1) % 5 > 0
            parts = (gradient.samples, gradient.components, gradient.properties)
            known.add_gradient("positions", TensorBlock(known_forces, *parts))
            masks = {"energy_mask": TensorMap(label.keys, [known])}
        sums.update(differences({"energy": prediction}, {"energy": label}, masks))
        for accumulator in accumulators:
            in_units = {"energy": times(prediction, scale)}, {"energy": times(label, scale)}
            accumulator.update(*in_units, masks)
    processes = Processes(torch.device("cpu"))
    metrics = sums.finalize({"energy": scale}, ["positions_gradients"], processes)
    expected = {}
    for accumulator in accumulators:
        expected.update(accumulator.finalize(not_per_atom=["positions_gradients"]))
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert len(metrics) == 4
