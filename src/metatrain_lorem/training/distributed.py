"""Processes that train one model together."""

import os
import socket
import zlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from metatrain.utils.distributed.slurm import DistributedEnvironment, resolve_distributed

from .datasets import split_indices


@dataclass
class Processes:
    """The processes of a training run, seen from one of them.

    :param device: device of this process
    :param rank: number of this process, 0 for the one that writes files
    :param size: number of processes
    :param owned: whether the group is ours to close
    :param per_machine: number of processes on this machine
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    owned: bool = False
    per_machine: int = 1

    @property
    def is_distributed(self) -> bool:
        return self.size > 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """
        :param values: any shape, on this process' device; overwritten
        :return: the sum over all processes, the same bits on each
        """
        if self.is_distributed:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """
        :param value: a picklable object
        :return: those of all processes
        """
        values = [value] * self.size
        if self.is_distributed:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """
        :param value: a picklable object
        :return: that of process 0
        """
        values = [value]
        if self.is_distributed:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes.

        :param parameters: in the same order on all processes; one without a gradient counts as
            zero, and keeps none if it has none on any process
        """
        if not self.is_distributed:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = torch.tensor([p.grad is not None for p in parameters]).to(gradients[0])
        flat = self.sum(torch.cat([present, *(gradient.reshape(-1) for gradient in gradients)]))
        present, *parts = flat.split([len(parameters), *(p.numel() for p in parameters)])
        for parameter, part, number in zip(parameters, parts, present.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if number > 0 else None

    def broadcast_model(self, model: torch.nn.Module) -> None:
        """Give all processes the parameters of process 0.

        :param model: the same architecture on all processes
        """
        if self.is_distributed:
            for parameter in model.parameters():
                dist.broadcast(parameter.data, src=0)

    def check_same_split(self, datasets: list[torch.utils.data.Dataset]) -> None:
        """Compare the random splits into training and validation set between processes.

        :param datasets: all data sets of this process
        :raises ValueError: if they differ, as they do when each process drew its own random seed
        """
        checksum = zlib.crc32(repr([split_indices(dataset) for dataset in datasets]).encode())
        if len(set(self.gather(checksum))) > 1:
            raise ValueError(
                "The processes of this distributed run split the data differently into training "
                "and validation sets, because each drew its own random seed. Set `seed` at the "
                "top level of the options file."
            )

    def finish(self) -> None:
        """Close the group, if it was opened by :func:`start_processes`."""
        if self.owned:
            dist.destroy_process_group()


def start_processes(devices: list[torch.device], port: int) -> Processes:
    """Join the other processes started by ``torchrun`` or by SLURM, if there are any.

    :param devices: devices that metatrain chose; a distributed run uses one per process
    :param port: port of process 0, for SLURM; ``torchrun`` sets its own
    :return: the group, a single process outside of distributed runs
    :raises ValueError: if several devices were asked for in a distributed run
    """
    device = devices[0]
    owned = not dist.is_initialized()
    if owned:
        if not dist.is_torchelastic_launched():
            if not resolve_distributed(None):
                return Processes(device)
            DistributedEnvironment(port)
        if int(os.environ["WORLD_SIZE"]) == 1:
            return Processes(device)
        if len(devices) > 1:
            raise ValueError(
                "Distributed training uses one device per process: set `device` to `cuda` instead "
                "of `multi-gpu` in the options file."
            )
        if device.type == "cuda":
            # the remainder covers launchers that show each process its own GPU only
            number = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
            dist.init_process_group(backend="nccl", device_id=device)
        else:
            dist.init_process_group(backend="gloo")
    processes = Processes(device, dist.get_rank(), dist.get_world_size(), owned)
    name = socket.gethostname()
    processes.per_machine = processes.gather(name).count(name)
    return processes
