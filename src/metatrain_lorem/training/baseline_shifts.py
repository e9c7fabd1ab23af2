"""Baselines of targets that a model knows already, moved to fit new data."""

import logging

import ase.data
import metatensor.torch as mts
import torch
from metatensor.torch import TensorMap
from metatomic.torch import ModelOutput, System
from metatrain.composition import CompositionModel
from metatrain.utils.abc import ModelInterface
from metatrain.utils.transfer import batch_to

from ..systems import total_charges
from .batches import ValidationBatches
from .distributed import Processes
from .epoch import naming_structures

SMALLEST_EIGENVALUE = 1e-12
"""Of the normal equations, relative to the largest one. Directions below it, i.e. compositions that
do not occur, are left as they are."""

WEIGHT_OF_CHARGED = 1e-6
"""Of charged structures in a fit where neutral ones count 1: they decide what these leave open."""


def shift_baselines(
    model: ModelInterface,
    names: list[str],
    batches: ValidationBatches,
    processes: Processes,
) -> None:
    """Add to the baselines what the model's errors have in common, element by element.

    A least-squares fit of the composition to the errors: it finds another zero of energy, and the
    baseline of a new element, but takes nothing of what the model has learned. Where the data leave
    a choice, the baselines of new elements account for the errors first.

    Charges that know nothing yet take a wrong energy to charge a structure, which is no matter of
    baselines: charged structures then only decide what neutral ones leave open.

    :param model: model in training mode, its baselines changed
    :param names: targets
    :param batches: the training set once, shared among the processes
    :param processes: of this run
    """
    composition, infos = model.additive_models[0], model.dataset_info.targets
    dtype = next(model.parameters()).dtype
    names = [
        name
        for name in names
        if not infos[name].is_atomic_basis and "o3_lambda_1" not in infos[name].layout.keys.names
    ]
    if len(names) == 0:
        return
    outputs = {name: ModelOutput(sample_kind=infos[name].sample_kind) for name in names}
    fits = {
        name: [_Fit(block.values, processes) for block in composition.model.weights[name].blocks()]
        for name in names
    }
    charges = _Charges(model, processes)
    for indices, batch in batches:
        systems, labels, _ = batch_to(*batch, dtype=dtype, device=processes.device)
        present = {name: output for name, output in outputs.items() if name in labels}
        with torch.no_grad(), naming_structures(indices, "training"):
            errors = _errors(model, systems, labels, model(systems, present))
        species = [composition.model.type_to_index[system.types] for system in systems]
        weights = charges.weights(systems, species)
        for name, error in errors.items():
            for key, fit in zip(composition.model.weights[name].keys, fits[name], strict=True):
                fit.add(species, error.block(key).values, weights, infos[name].sample_kind)
    charges.report()
    new = [model.atomic_types.index(t) for t in model.new_types]
    for name in names:
        _apply(composition, name, [fit.solve(new) for fit in fits[name]], infos[name].unit)
        absent = fits[name][0].absent()
        if absent:
            kept = [ase.data.chemical_symbols[model.atomic_types[i]] for i in absent]
            logging.info(
                f"Baseline of '{name}': the training set has no {', '.join(kept)}, whose baselines "
                "are kept"
            )


class _Charges:
    """Tells charged structures apart, where the charges of the model are new.

    :param model: the model
    :param processes: among which the data are shared
    """

    def __init__(self, model: ModelInterface, processes: Processes) -> None:
        self.model = model
        self.processes = processes
        # structures, and those with each species: neutral, charged
        shape = [2, 1 + len(model.atomic_types)]
        self.counts = torch.zeros(shape, dtype=torch.float64, device=processes.device)

    def weights(self, systems: list[System], species: list[torch.Tensor]) -> torch.Tensor:
        """
        :param systems: structures of a batch
        :param species: of their atoms
        :return: weights of the structures in the fit
        """
        total = torch.zeros(len(systems), dtype=torch.float64, device=species[0].device)
        if self.model.has_new_charges:
            total = total_charges(
                systems, self.model.conditional, self.model.total_charge, torch.float64
            )
        for is_charged, s in zip((total != 0.0).tolist(), species, strict=True):
            self.counts[int(is_charged), 0] += 1
            self.counts[int(is_charged), 1 + s.unique()] += 1
        return torch.where(total == 0.0, 1.0, WEIGHT_OF_CHARGED)

    def report(self) -> None:
        """Log what that means for the baselines."""
        (neutral, *known), (charged, *others) = self.processes.sum(self.counts).tolist()
        if charged == 0:
            return
        logging.info(
            f"Baselines: {charged:.0f} charged structures of the training set only decide what "
            f"{neutral:.0f} neutral ones leave open, for the energy of charging is not learned yet"
        )
        only_charged = [
            ase.data.chemical_symbols[t]
            for t, n, m in zip(self.model.atomic_types, known, others, strict=True)
            if n == 0 and m > 0
        ]
        if only_charged:
            logging.warning(
                f"No neutral structure of the training set has {', '.join(only_charged)}: the "
                "baseline contains energy of charging, several eV, which the model must unlearn. "
                "Add neutral structures, or give `atomic_baseline`"
            )


class _Fit:
    """Least-squares fit of the composition to the errors of one block of a target.

    :param baseline: of all species ``[species, components ..., properties]``
    :param processes: among which the data are shared
    """

    def __init__(self, baseline: torch.Tensor, processes: Processes) -> None:
        self.shape = baseline.shape
        self.processes = processes
        n, size = len(baseline), baseline[0].numel()
        options = {"dtype": torch.float64, "device": processes.device}
        # per property, of which some labels may be missing
        self.matrix = torch.zeros(size, n, n, **options)
        self.vector = torch.zeros(size, n, **options)

    def add(
        self,
        species: list[torch.Tensor],
        errors: torch.Tensor,
        weights: torch.Tensor,
        sample_kind: str,
    ) -> None:
        """
        :param species: of the atoms of each structure
        :param errors: ``[structures or atoms, components ..., properties]``, NaN where unknown
        :param weights: of the structures ``[structures]``
        :param sample_kind: of the target
        """
        one_hot = [torch.nn.functional.one_hot(s, self.shape[0]).double() for s in species]
        if sample_kind == "system":
            numbers = torch.stack([counts.sum(dim=0) for counts in one_hot])
        else:
            numbers = torch.cat(one_hot)
            weights = torch.cat([w.expand(len(s)) for w, s in zip(weights, species, strict=True)])
        errors = errors.flatten(1).double()
        known = torch.isfinite(errors)
        errors = errors.masked_fill(~known, 0.0)
        weighted = numbers * weights.unsqueeze(1)
        self.matrix += torch.einsum("ia,ip,ib->pab", weighted, known.double(), numbers)
        self.vector += torch.einsum("ia,ip->pa", weighted, errors)

    def absent(self) -> list[int]:
        """Species of which there are no labels; to be called after :meth:`solve`."""
        counts = self.matrix.diagonal(dim1=1, dim2=2).sum(dim=0)
        return [i for i, count in enumerate(counts.tolist()) if count == 0.0]

    def solve(self, first: list[int]) -> torch.Tensor:
        """
        :param first: species that account for the errors before all others do
        :return: changes of the baseline, of its shape
        """
        self.processes.sum(self.matrix)
        self.processes.sum(self.vector)
        changes = torch.zeros_like(self.vector)
        for chosen in (first, list(range(self.shape[0]))):
            if len(chosen) > 0:
                rest = self.vector - (self.matrix @ changes.unsqueeze(2)).squeeze(2)
                inverse = torch.linalg.pinv(
                    self.matrix[:, chosen][:, :, chosen], rtol=SMALLEST_EIGENVALUE, hermitian=True
                )
                changes[:, chosen] += (inverse @ rest[:, chosen].unsqueeze(2)).squeeze(2)
        return changes.T.reshape(self.shape)


def _errors(
    model: ModelInterface,
    systems: list[System],
    labels: dict[str, TensorMap],
    predictions: dict[str, TensorMap],
) -> dict[str, TensorMap]:
    """Labels minus predictions in the units of the targets, per structure or atom."""
    labels = {name: mts.remove_gradients(labels[name]) for name in predictions}
    # labels still carry the scales of single properties
    labels = model.scaler.apply_scales(systems, labels, use_per_property_scales=False)
    predictions = model.scaler.apply_scales(systems, predictions)
    return {
        name: TensorMap(
            labels[name].keys,
            [
                mts.TensorBlock(
                    block.values - predictions[name].block(key).values,
                    block.samples,
                    block.components,
                    block.properties,
                )
                for key, block in labels[name].items()
            ],
        )
        for name in labels
    }


def _apply(
    composition: CompositionModel, name: str, changes: list[torch.Tensor], unit: str
) -> None:
    """Change the baseline of a target, and log by how much."""
    weights = composition.model.weights[name]
    for block, change in zip(weights.blocks(), changes, strict=True):
        block.values[:] += change.to(block.values)
    symbols = [ase.data.chemical_symbols[int(t)] for t in composition.atomic_types]
    largest = changes[0].flatten(1)
    logging.info(
        f"Baseline of '{name}' moved by what the model's errors on the training set have in common"
        f"{f' ({unit})' if unit else ''}: "
        + ", ".join(
            f"{symbol} {' '.join(f'{x:.6g}' for x in row)}"
            for symbol, row in zip(symbols, largest.tolist(), strict=True)
        )
    )
    # what a checkpoint holds
    buffer = mts.save_buffer(mts.make_contiguous(weights.to("cpu", torch.float64)))
    composition.register_buffer(f"{name}_composition_buffer", buffer.to(weights.device))
