r"""From plain tensors to TensorMaps."""

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatensor.torch.operations._add import _add_block_block


def feature_map(values: torch.Tensor, samples: Labels) -> TensorMap:
    """
    :param values: features ``[atoms, features]``
    :param samples: labels of the atoms
    :return: one block with the property ``feature``
    """
    properties = torch.arange(values.shape[1], device=values.device).unsqueeze(1)
    keys = Labels(["_"], torch.zeros([1, 1], dtype=torch.int64, device=values.device))
    block = TensorBlock(values, samples, [], Labels(["feature"], properties))
    return TensorMap(keys, [block])


def add_baseline(predictions: TensorMap, baseline: TensorMap) -> TensorMap:
    """Add a baseline that may lack blocks of the predictions.

    :param predictions: predictions of a target
    :param baseline: what to add, in any floating-point type
    :return: the sum, in the type of the predictions
    """
    blocks: list[TensorBlock] = []
    for key, block in predictions.items():
        if key in baseline.keys:
            addend = baseline.block(key).to(device=block.device, dtype=block.dtype)
            blocks.append(_add_block_block(block, addend))
        else:
            blocks.append(block.copy(deep=False))
    return TensorMap(predictions.keys, blocks)
