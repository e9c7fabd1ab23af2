"""Trainer of LOREM models."""

import copy
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from metatrain.composition import train_or_load_composition_model
from metatrain.scaler import train_or_load_scaler
from metatrain.utils.abc import ModelInterface, TrainerInterface
from metatrain.utils.data import get_num_workers, validate_num_workers
from metatrain.utils.metrics import get_selected_metric
from torch.utils.data import Dataset

from .checkpoints import upgrade
from .training.batches import BatchSize, TrainingBatches, ValidationBatches, build_collate
from .training.checkpoint_files import write_checkpoint
from .training.checks import check_data
from .training.datasets import without_missing
from .training.distributed import Processes, start_processes
from .training.epoch import Evaluator, train_epoch, validation_epoch
from .training.hypers import TrainerHypers
from .training.loss import GlobalLoss
from .training.memory import estimate_memory
from .training.optimizers import build_optimizers, load_states, set_learning_rate
from .training.progress import ProgressLogger
from .training.scales import replace_zero_scales
from .training.unscaled import check_fixed, unscaled_targets, with_fixed


class Trainer(TrainerInterface[TrainerHypers]):
    """Fits a model to data sets.

    :param hypers: hyperparameters, see :class:`TrainerHypers`
    """

    __checkpoint_version__ = 1

    def __init__(self, hypers: TrainerHypers) -> None:
        super().__init__(hypers)
        self.epoch: int | None = None
        self.seed: int | None = None
        self.optimizer_states: list[dict[str, Any]] | None = None
        self.optimizer_before: str | None = None
        self.best_epoch: int | None = None
        self.best_metric: float = float("inf")
        self.best_model_state_dict: dict[str, Any] | None = None

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
        :raises ValueError: for labels or data sets that cannot be used
        :raises FloatingPointError: if a loss is NaN or infinite
        :raises RuntimeError: if the memory does not suffice
        """
        processes = start_processes(devices, self.hypers["distributed_port"])
        logging.info(
            f"Training in {dtype} on {processes.size} processes, this one on {processes.device}"
            if processes.is_distributed
            else f"Training in {dtype} on {processes.device}"
        )
        processes.check_same_split(train_datasets + val_datasets)
        sizes, missing = check_data(model, train_datasets, val_datasets, processes)

        self._continue_or_start(model, processes)
        _place(model, dtype, processes)
        self._fit_baseline_and_scales(model, train_datasets, missing, processes)

        train_batches, val_batches = self._batches(model, train_datasets, val_datasets, processes)
        loss = GlobalLoss(targets=model.dataset_info.targets, config=self.hypers["loss"])
        for name, info in loss.metadata.items():
            logging.info(f"Loss of {name}: {info}")
        # the loss of a dipole moment is in its own unit, too, not divided by the number of atoms
        per_structure = [*self.hypers["per_structure_targets"], *unscaled_targets(model)]
        evaluator = Evaluator(model, loss, per_structure, dtype, processes)
        max_atoms = self.hypers["max_atoms_per_batch"]
        estimate_memory(evaluator, train_datasets, sizes, self.hypers["batch_size"], max_atoms)

        optimizers = build_optimizers(
            model,
            self.hypers["optimizer"],
            self.hypers["learning_rate"],
            self.hypers["weight_decay"],
        )
        if self.optimizer_states is not None:
            load_states(optimizers, self.optimizer_states)
        self._run(evaluator, train_batches, val_batches, optimizers, checkpoint_dir)
        processes.finish()

    def _continue_or_start(self, model: ModelInterface, processes: Processes) -> None:
        """Drop what a checkpoint says about other targets, and choose the seed of the run."""
        if model.has_new_parameters and self.optimizer_states is not None:
            logging.info("The model has new targets: optimizer and best model start anew")
            self.optimizer_states = None
            self.best_metric, self.best_epoch = float("inf"), None
            self.best_model_state_dict = None
        before, now = self.optimizer_before, self.hypers["optimizer"]
        if self.optimizer_states is not None and before not in (None, now):
            logging.info(f"`optimizer` was '{before}', now '{now}': it starts anew")
            self.optimizer_states = None
        if self.seed is None:
            self.seed = processes.from_first(torch.initial_seed() % 2**32)

    def _fit_baseline_and_scales(
        self,
        model: ModelInterface,
        train_datasets: list[Dataset],
        missing: bool,
        processes: Processes,
    ) -> None:
        """Fit the composition model and the scaler to targets that are new to them."""
        unscaled = unscaled_targets(model)
        composition = model.additive_models[0]
        without_baseline = [name for name in unscaled if name in composition.model.target_names]
        # No checkpoint_dir: `mtt train --restart auto` takes the newest *.ckpt there for ours
        train_or_load_composition_model(
            composition_model=composition,
            atomic_baseline=with_fixed(
                self.hypers["atomic_baseline"], without_baseline, 0.0, "atomic_baseline"
            ),
            train_datasets=without_missing(train_datasets, model.dataset_info.targets)
            if missing
            else train_datasets,
            other_additive_models=list(model.additive_models[1:]),
            batch_size=self.hypers["batch_size"],
            is_distributed=processes.is_distributed,
        )
        check_fixed(composition.model.weights, without_baseline, 0.0, "atomic_baseline")
        if self.hypers["scale_targets"]:
            self._fit_scales(model, unscaled, train_datasets, processes)
        composition.weights_to(device=processes.device, dtype=torch.float64)
        model.scaler.scales_to(device=processes.device, dtype=torch.float64)

    def _fit_scales(
        self,
        model: ModelInterface,
        unscaled: list[str],
        train_datasets: list[Dataset],
        processes: Processes,
    ) -> None:
        if isinstance(self.hypers["fixed_scaling_weights"], str) and not isinstance(
            self.hypers["atomic_baseline"], str
        ):
            raise ValueError(
                "`fixed_scaling_weights` is a checkpoint, whose scales hold for one baseline only: "
                "set `atomic_baseline` to the checkpoint of that composition model."
            )
        train_or_load_scaler(
            scaler=model.scaler,
            fixed_weights=with_fixed(
                self.hypers["fixed_scaling_weights"], unscaled, 1.0, "fixed_scaling_weights"
            ),
            train_datasets=train_datasets,
            additive_models=model.additive_models,
            batch_size=self.hypers["batch_size"],
            is_distributed=processes.is_distributed,
            per_structure_targets=self.hypers["per_structure_targets"],
        )
        check_fixed(model.scaler.model.scales, unscaled, 1.0, "fixed_scaling_weights")
        replace_zero_scales(model.scaler, model.additive_models[0])

    def _batches(
        self,
        model: ModelInterface,
        train_datasets: list[Dataset],
        val_datasets: list[Dataset],
        processes: Processes,
    ) -> tuple[TrainingBatches, ValidationBatches]:
        num_workers = self.hypers["num_workers"]
        if num_workers is None:
            num_workers = get_num_workers()
            logging.info(f"`num_workers` not given: {num_workers} processes prepare batches")
        validate_num_workers(num_workers)
        size = BatchSize(
            structures=self.hypers["batch_size"],
            max_atoms=self.hypers["max_atoms_per_batch"],
            num_workers=num_workers,
        )
        collate = build_collate(model, augment=self.hypers["rotational_augmentation"])
        train_batches = TrainingBatches(train_datasets, collate, size, self.seed, processes)
        collate = build_collate(model, augment=False)
        return train_batches, ValidationBatches(val_datasets, collate, size, processes)

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
        logging.info(f"Training from epoch {first} to {num_epochs - 1}, {num_steps} batches each")
        progress = ProgressLogger(evaluator, first, num_epochs, self.hypers["log_interval"])
        for epoch in range(first, num_epochs):

            def before_step(step: int, epoch: int = epoch) -> None:
                self._set_learning_rate(optimizers, (epoch + (step + 0.5) / num_steps) / num_epochs)

            training = train_epoch(
                evaluator,
                train_batches.epoch(epoch),
                optimizers,
                self.hypers["grad_clip_norm"],
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
