"""What a training run says about its progress."""

import logging
import time
from datetime import timedelta

from metatrain.utils.logging import ROOT_LOGGER, MetricLogger

from .epoch import Evaluator


class ProgressLogger:
    """A line of errors per epoch, and one with the time left.

    :param evaluator: its process 0 logs
    :param first: first epoch of this run
    :param num_epochs: number of epochs
    :param interval: number of epochs from one line to the next
    """

    def __init__(self, evaluator: Evaluator, first: int, num_epochs: int, interval: int) -> None:
        self.evaluator = evaluator
        self.first, self.num_epochs, self.interval = first, num_epochs, interval
        self.start = time.monotonic()
        self.logger: MetricLogger | None = None

    def log(
        self,
        epoch: int,
        training: dict[str, float],
        validation: dict[str, float],
        learning_rate: float,
    ) -> None:
        """
        :param epoch: the epoch that has ended
        :param training: its loss and errors on the training set
        :param validation: its loss and errors on the validation set
        :param learning_rate: learning rate of its last step
        """
        metrics = [training, validation]
        if self.logger is None:
            self.logger = MetricLogger(
                log_obj=ROOT_LOGGER,
                dataset_info=self.evaluator.model.dataset_info,
                initial_metrics=metrics,
                names=["training", "validation"],
            )
        if epoch % self.interval != 0:
            return
        rank = self.evaluator.processes.rank
        self.logger.log(metrics, epoch=epoch, rank=rank, learning_rate=learning_rate)
        if rank == 0:
            seconds = (time.monotonic() - self.start) / (epoch + 1 - self.first)
            left = timedelta(seconds=round(seconds * (self.num_epochs - epoch - 1)))
            logging.info(f"{seconds:.3g} s per epoch, about {left} left")
