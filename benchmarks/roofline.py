"""How close a model comes to what the machine can do.

Counted are, in one evaluation of energy and forces, the floating-point operations of matrix
products and FFTs (those of elementwise operators are not) and the bytes that operators touch: each
operator reads its inputs once and writes its outputs once. No time can be shorter than operations
over the peak of matrix products, nor, unless operators are merged or their arrays stay in the
cache, than bytes over the bandwidth of the memory. Operators run one after another, so the roofline
of an evaluation is the sum over operators of the larger of both.
"""

import math
import time

import numpy as np
import torch
from common import displaced, measure, structure
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FFTS = {aten._fft_r2c: 2.5, aten._fft_c2r: 2.5, aten._fft_c2c: 5.0}
"""Operations of an FFT of n points, over n log2 n (the real transforms take half)."""


class Counter(TorchDispatchMode):
    """Counts operators, floating-point operations, FFTs (each column is one) and bytes.

    ``touched`` bytes are inputs and outputs of all operators, ``allocated`` outputs alone; views
    count as nothing. ``work`` has the operations and touched bytes of each operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.flops = 0.0
        self.ffts = 0
        self.touched = 0
        self.allocated = 0
        self.work: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        flops, touched = self.flops, self.touched
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        if packet in FFTS:
            real = out if packet is aten._fft_c2r else args[0]
            points = math.prod(real.shape[axis] for axis in args[1])
            columns = real.numel() // points
            self.ffts += columns
            self.flops += FFTS[packet] * columns * points * math.log2(points)
        inputs = {
            tensor.untyped_storage().data_ptr(): _bytes(tensor)
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, torch.Tensor)
        }
        outputs = [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        new = [t for t in outputs if t.untyped_storage().data_ptr() not in inputs]
        in_place = func._schema.is_mutable
        if new or in_place:
            self.operators += 1
            self.touched += sum(inputs.values()) + sum(_bytes(tensor) for tensor in outputs)
            self.allocated += sum(tensor.untyped_storage().nbytes() for tensor in new)
        self.work.append((self.flops - flops, self.touched - touched))
        return out

    def roofline(self, peak_flops: float, bandwidth: float) -> float:
        """Least time in seconds of operators that run one after another.

        :param peak_flops: operations per second
        :param bandwidth: bytes per second
        """
        return sum(max(flops / peak_flops, size / bandwidth) for flops, size in self.work)


def _bytes(tensor: torch.Tensor) -> int:
    """Of the elements, each counted once where broadcasting repeats it."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def peaks(device: torch.device) -> tuple[float, float]:
    """Largest rates of this machine, best of some tries.

    :param device: of PyTorch
    :return: flop/s of a product of matrices of 1024 rows and columns in single precision; bytes/s
        (read and written) of a copy of 100 MB
    """
    a = torch.randn(1024, 1024, device=device)
    source = torch.randn(25_000_000, device=device)
    target = torch.empty_like(source)

    def best(work) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times)

    product = torch.empty_like(a)
    return (
        2 * 1024**3 / best(lambda: torch.mm(a, a, out=product)),
        2 * 4 * len(source) / best(lambda: target.copy_(source)),
    )


def measure_roofline(task: dict) -> dict:
    """Peaks of the machine, counts of one evaluation and its time.

    :param task: see :func:`torch_worker.main`
    """
    from torch_worker import Evaluation

    evaluation = Evaluation(task["model"], task["precision"], task["device"])
    frame = structure(task["atoms"])
    # the compiler of exported models would skip operators that it learns to be without effect
    system = evaluation.system(frame)
    with Counter() as counter:
        evaluation.forces(system, evaluation.energy(system))

    def evaluate(call: int) -> float:
        moved = evaluation.system(displaced(frame, call))
        return evaluation.timed(lambda: evaluation.forces(moved, evaluation.energy(moved)))[1]

    times = measure(evaluate, task["repetitions"])
    flops, bandwidth = peaks(evaluation.device)
    return {
        "seconds": float(np.median(times)),
        "peak_flops": flops,
        "bandwidth": bandwidth,
        "roofline": counter.roofline(flops, bandwidth),
        "operators": counter.operators,
        "flops": counter.flops,
        "ffts": counter.ffts,
        "touched": counter.touched,
        "allocated": counter.allocated,
    }
