"""Trainer of LOREM models."""

import copy
import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch
from metatrain.utils.abc import ModelInterface, TrainerInterface
from metatrain.utils.metrics import get_selected_metric
from torch.utils.data import Dataset

from .checkpoints import upgrade
from .training.baseline_shifts import shift_baselines
from .training.baselines import fit_baselines_and_scales
from .training.batches import (
    BatchSize,
    TrainingBatches,
    ValidationBatches,
    build_collate,
    rotated,
)
from .training.checkpoint_files import write_checkpoint
from .training.checks import check_data
from .training.distributed import Processes, start_processes
from .training.epoch import Evaluator, train_epoch, validation_epoch
from .training.fingerprint import basis_of_comparison
from .training.hypers import TrainerHypers
from .training.loss import GlobalLoss, check_energy_factor
from .training.memory import estimate_memory
from .training.optimizers import (
    build_optimizers,
    check_backbone_factor,
    load_states,
    set_learning_rate,
)
from .training.prepared import Memory, Preparation, PreparedStructures
from .training.progress import ProgressLogger
from .training.unscaled import unscaled_targets
from .training.workers import choose_workers

LAST = 0.2
"""Share of the epochs in which ``final_energy_factor`` acts."""


class Trainer(TrainerInterface[TrainerHypers]):
    """Fits a model to data sets.

    :param hypers: hyperparameters, see :class:`TrainerHypers`
    """

    __checkpoint_version__ = 6

    def __init__(self, hypers: TrainerHypers) -> None:
        super().__init__(hypers)
        self.epoch: int | None = None
        self.seed: int | None = None
        self.optimizer_states: list[dict[str, Any]] | None = None
        self.optimizer_before: str | None = None
        self.best_epoch: int | None = None
        self.best_metric: float = float("inf")
        self.best_model_state_dict: dict[str, Any] | None = None
        # what the best value was found with; None unless the run continues another one
        self.basis: dict[str, Any] | None = None

    def train(
        self,
        model: ModelInterface,
        dtype: torch.dtype,
        devices: list[torch.device],
        train_datasets: list[Dataset],
        val_datasets: list[Dataset],
        checkpoint_dir: str,
    ) -> None:
        """Train, from the epoch after that of the checkpoint if one was loaded.

        :param model: model to train, in place
        :param dtype: floating-point type of its parameters
        :param devices: the device; in distributed runs each process uses one
        :param train_datasets: training sets
        :param val_datasets: validation sets
        :param checkpoint_dir: folder for checkpoints
        :raises ValueError: for labels, data sets or hyperparameters that cannot be used
        :raises FloatingPointError: if a loss is NaN or infinite
        :raises RuntimeError: if the memory does not suffice
        """
        check_backbone_factor(model, self.hypers["backbone_learning_rate_factor"])
        check_energy_factor(self.hypers["final_energy_factor"])
        processes = start_processes(devices, self.hypers["distributed_port"])
        logging.info(
            f"Training in {dtype} on {processes.size} processes, this one on {processes.device}"
            if processes.is_distributed
            else f"Training in {dtype} on {processes.device}"
        )
        processes.check_same_split(train_datasets + val_datasets)
        sizes, missing, all_digits, spread = check_data(
            model, train_datasets, val_datasets, processes
        )

        is_new = self._continue_or_start(model, train_datasets, val_datasets, processes)
        _place(model, dtype, processes)
        known = fit_baselines_and_scales(
            model, self.hypers, train_datasets, missing, spread, processes
        )
        names = list(model.dataset_info.targets)
        if is_new and known:
            # with baselines that will change, so that nothing is kept
            prepare, nothing = Preparation(model), Memory(0)
            once = [PreparedStructures(data, prepare, nothing) for data in train_datasets]
            size = self._batch_size(choose_workers(self.hypers["num_workers"], once))
            collate = build_collate(names, size.num_workers)
            batches = ValidationBatches(once, collate, size, processes)
            shift_baselines(model, known, batches, processes)
        for digits in all_digits if dtype == torch.float32 else ():
            digits.report(model, processes)

        prepare, memory = Preparation(model), Memory.of(processes)
        train = [PreparedStructures(data, prepare, memory) for data in train_datasets]
        valid = [PreparedStructures(data, prepare, memory) for data in val_datasets]
        size = self._batch_size(choose_workers(self.hypers["num_workers"], train + valid))
        collate = build_collate(names, size.num_workers)
        train_batches = TrainingBatches(train, collate, size, self.seed, processes)
        val_batches = ValidationBatches(valid, collate, size, processes)
        loss = GlobalLoss(targets=model.dataset_info.targets, config=self.hypers["loss"])
        for name, info in loss.metadata.items():
            logging.info(f"Loss of {name}: {info}")
        spread.report(model, loss, processes)
        # the loss of a dipole moment is in its own unit, too, not divided by the number of atoms
        per_structure = [*self.hypers["per_structure_targets"], *unscaled_targets(model)]
        evaluator = Evaluator(model, loss, per_structure, dtype, processes)
        max_atoms = self.hypers["max_atoms_per_batch"]
        estimate_memory(evaluator, train, sizes, self.hypers["batch_size"], max_atoms)

        optimizers = build_optimizers(
            model,
            self.hypers["optimizer"],
            self.hypers["learning_rate"],
            self.hypers["weight_decay"],
            self.hypers["backbone_learning_rate_factor"],
        )
        if self.optimizer_states is not None:
            load_states(optimizers, self.optimizer_states)
        self._run(evaluator, train_batches, val_batches, optimizers, checkpoint_dir)
        processes.finish()

    def _continue_or_start(
        self,
        model: ModelInterface,
        train_datasets: list[Dataset],
        val_datasets: list[Dataset],
        processes: Processes,
    ) -> bool:
        """Drop what a checkpoint says about another model or other data, and choose the seed of
        the run.

        :return: whether data or model are new to what a checkpoint has fitted
        """
        before = self.basis
        self.basis = basis_of_comparison(
            self.hypers, model.dataset_info.targets, train_datasets, val_datasets, processes
        )
        continues = before is not None
        unknown = [key for key in self.basis if continues and key not in before]
        if unknown:
            logging.info(
                f"The checkpoint does not say its {', '.join(unknown)}: taken to be the same as now"
            )
        changed = [key for key, x in self.basis.items() if continues and before.get(key, x) != x]
        if continues and model.has_new_parameters:
            logging.info(
                "Targets, elements, blocks or inputs of the model have changed: optimizer, best "
                "model and best value start anew"
            )
            self.optimizer_states = None
        elif changed:
            logging.info(
                f"Changed since the checkpoint: {', '.join(changed)}. Best model and best value "
                "start anew. (Without `seed`, a random split into sets changes with every run.)"
            )
        if changed or (continues and model.has_new_parameters):
            self.best_metric, self.best_epoch = float("inf"), None
            self.best_model_state_dict = None
        optimizer_before, now = self.optimizer_before, self.hypers["optimizer"]
        if self.optimizer_states is not None and optimizer_before not in (None, now):
            logging.info(f"`optimizer` was '{optimizer_before}', now '{now}': it starts anew")
            self.optimizer_states = None
        if self.seed is None:
            self.seed = processes.from_first(torch.initial_seed() % 2**32)
        return model.finetunes or model.has_new_parameters or "training set" in changed

    def _batch_size(self, num_workers: int) -> BatchSize:
        return BatchSize(
            structures=self.hypers["batch_size"],
            max_atoms=self.hypers["max_atoms_per_batch"],
            num_workers=num_workers,
        )

    def _run(
        self,
        evaluator: Evaluator,
        train_batches: TrainingBatches,
        val_batches: ValidationBatches,
        optimizers: list[torch.optim.Optimizer],
        checkpoint_dir: str,
    ) -> None:
        """The loop over epochs."""
        first = 0 if self.epoch is None else self.epoch + 1
        num_epochs, num_steps = self.hypers["num_epochs"], len(train_batches)
        if first < num_epochs:
            logging.info(
                f"Training from epoch {first} to {num_epochs - 1}, {num_steps} batches each"
            )
            if (factor := self.hypers["final_energy_factor"]) != 1.0:
                start = math.ceil((1.0 - LAST) * num_epochs)
                logging.info(
                    f"From epoch {start} on, energies weigh {factor:g} times as much"
                    if start < num_epochs
                    else f"`num_epochs` is too small for `final_energy_factor`: {num_epochs}"
                )
                if self.hypers["best_model_metric"] == "loss":
                    logging.warning(
                        "`best_model_metric: loss` chooses the epoch by the loss without "
                        "`final_energy_factor`, which may be one before it acts"
                    )
        elif self.epoch is None and not evaluator.model.finetunes:
            backbone = evaluator.model.backbone
            if backbone is not None and backbone.energies:
                logging.info(
                    f"`num_epochs` is {num_epochs}: nothing is trained, and the potential of the "
                    "backbone's checkpoint is exported with all else as it starts"
                )
            else:
                logging.warning(
                    f"`num_epochs` is {num_epochs}: the model is exported with random weights, "
                    "untrained"
                )
        else:
            logging.info(
                f"`num_epochs` is {num_epochs} and epoch {first} would be the next: nothing is "
                "trained, and the model of the checkpoint is exported"
            )
        progress = ProgressLogger(evaluator, first, num_epochs, self.hypers["log_interval"])
        for epoch in range(first, num_epochs):

            def before_step(step: int, epoch: int = epoch) -> None:
                self._set_learning_rate(optimizers, (epoch + (step + 0.5) / num_steps) / num_epochs)

            batches = train_batches.epoch(epoch)
            if self.hypers["rotational_augmentation"]:
                batches = rotated(batches, evaluator.model.dataset_info)
            training = train_epoch(
                evaluator,
                batches,
                optimizers,
                self.hypers["grad_clip_norm"],
                self._energy_factor(epoch),
                before_step,
            )
            validation = validation_epoch(evaluator, val_batches)
            self.epoch = epoch
            self.optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
            self._update_best(evaluator.model, validation)
            progress.log(epoch, training, validation, optimizers[0].param_groups[0]["lr"])
            if epoch % self.hypers["checkpoint_interval"] == 0 and evaluator.processes.rank == 0:
                self.save_checkpoint(evaluator.model, Path(checkpoint_dir) / f"model_{epoch}.ckpt")

    def _set_learning_rate(self, optimizers: list[torch.optim.Optimizer], progress: float) -> None:
        set_learning_rate(
            optimizers, self.hypers["learning_rate"], progress, self.hypers["warmup_fraction"]
        )

    def _energy_factor(self, epoch: int) -> float:
        is_last = epoch >= (1.0 - LAST) * self.hypers["num_epochs"]
        return self.hypers["final_energy_factor"] if is_last else 1.0

    def _update_best(self, model: ModelInterface, validation: dict[str, float]) -> None:
        # without validation labels, metatrain's metrics are the same in all epochs
        metric = (
            get_selected_metric(validation, self.hypers["best_model_metric"])
            if len(validation) > 1
            else -self.epoch
        )
        if metric < self.best_metric:
            self.best_metric, self.best_epoch = metric, self.epoch
            self.best_model_state_dict = copy.deepcopy(model.state_dict())

    def save_checkpoint(self, model: ModelInterface, path: str | Path) -> None:
        """Write model and trainer; a reader never sees an incomplete file.

        :param model: the model
        :param path: file to write, ending in ``.ckpt``
        """
        checkpoint = model.get_checkpoint()
        checkpoint.update(
            {
                "trainer_ckpt_version": self.__checkpoint_version__,
                "train_hypers": self.hypers,
                "epoch": self.epoch,
                "seed": self.seed,
                "optimizer_states": self.optimizer_states,
                "best_epoch": self.best_epoch,
                "best_metric": self.best_metric,
                "basis": self.basis,
            }
        )
        if self.best_model_state_dict is not None:
            checkpoint["best_model_state_dict"] = self.best_model_state_dict
        write_checkpoint(checkpoint, path)

    @classmethod
    def load_checkpoint(
        cls,
        checkpoint: dict[str, Any],
        hypers: TrainerHypers,
        context: Literal["restart", "finetune"],
    ) -> "Trainer":
        """
        :param checkpoint: content of a checkpoint of the current version
        :param hypers: hyperparameters for the epochs to come
        :param context: ``"restart"`` to go on, ``"finetune"`` to take nothing but the model
        :return: the trainer
        """
        trainer = cls(hypers)
        if context == "restart":
            trainer.epoch = checkpoint["epoch"]
            trainer.seed = checkpoint["seed"]
            trainer.optimizer_states = checkpoint["optimizer_states"]
            trainer.best_epoch = checkpoint["best_epoch"]
            trainer.best_metric = checkpoint["best_metric"]
            trainer.best_model_state_dict = checkpoint["best_model_state_dict"]
            trainer.optimizer_before = checkpoint["train_hypers"]["optimizer"]
            trainer.basis = checkpoint["basis"] or {}  # none if it has not been trained here
        return trainer

    @classmethod
    def upgrade_checkpoint(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """
        :param checkpoint: content of a checkpoint
        :return: the same, in the current version
        :raises RuntimeError: for versions that this one does not know
        """
        return upgrade(checkpoint, "trainer", cls.__checkpoint_version__)


def _place(model: ModelInterface, dtype: torch.dtype, processes: Processes) -> None:
    """Move the model to its device; baselines and scales are large numbers and stay in float64."""
    model.train()
    model.to(device=processes.device, dtype=dtype)
    for additive_model in model.additive_models:
        additive_model.to(dtype=torch.float64)
    model.scaler.to(dtype=torch.float64)
    processes.broadcast_model(model)
