r"""From plain tensors to TensorMaps."""

from typing import Optional

import metatensor.torch as mts
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatensor.torch.operations._add import _add_block_block
from metatomic.torch import ModelOutput
from metatrain.utils.sum_over_atoms import sum_over_atoms

from .electrostatics.charge_equilibration import Equilibrium


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


def scalar_map(values: torch.Tensor, name: str, samples: Labels) -> TensorMap:
    """
    :param values: one number per atom ``[atoms, 1]``
    :param name: of the property
    :param samples: labels of the atoms
    :return: one block with one property
    """
    zero = torch.zeros([1, 1], dtype=torch.int64, device=values.device)
    block = TensorBlock(values, samples, [], Labels([name], zero))
    return TensorMap(Labels(["_"], zero), [block])


def charge_maps(
    equilibrium: Equilibrium, outputs: dict[str, ModelOutput], samples: Labels
) -> dict[str, TensorMap]:
    """
    :param equilibrium: charges and what they follow from
    :param outputs: which to return: ``charge``, ``mtt::aux::electronegativity``,
        ``mtt::aux::hardness``
    :param samples: labels of the atoms
    :return: these, per atom
    """
    maps: dict[str, TensorMap] = {}
    if "charge" in outputs:
        maps["charge"] = scalar_map(equilibrium.charges.unsqueeze(1), "charge", samples)
    if "mtt::aux::electronegativity" in outputs:
        maps["mtt::aux::electronegativity"] = scalar_map(
            equilibrium.electronegativity.unsqueeze(1), "electronegativity", samples
        )
    if "mtt::aux::hardness" in outputs:
        maps["mtt::aux::hardness"] = scalar_map(
            equilibrium.hardness.unsqueeze(1), "hardness", samples
        )
    return maps


def collect(
    per_atom: dict[str, TensorMap],
    outputs: dict[str, ModelOutput],
    selected_atoms: Optional[Labels],  # noqa: UP045
) -> dict[str, TensorMap]:
    """
    :param per_atom: values of all atoms
    :param outputs: whether they are asked for per atom or per system
    :param selected_atoms: atoms to return or to sum, all if None
    :return: what is asked for
    """
    collected: dict[str, TensorMap] = {}
    for name, result in per_atom.items():
        if selected_atoms is not None:
            result = mts.slice(result, "samples", selected_atoms)
        if outputs[name].sample_kind == "system":
            result = sum_over_atoms(result)
        collected[name] = result
    return collected
