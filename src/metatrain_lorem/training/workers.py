"""Whether structures are kept or prepared anew by processes of their own."""

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

from metatrain.utils.data import (
    CollateFn,
    get_num_workers,
    unpack_batch,
    validate_num_workers,
)

from .memory import readable
from .prepared import PreparedStructures, size_in_bytes

SAMPLES = 8
"""Structures by which times and memory are measured."""


def choose_workers(given: int | None, datasets: list[PreparedStructures]) -> int:
    """Choose the number of processes that prepare batches, and log why.

    What is kept is joined sooner than a batch is taken over from another process. So processes are
    for structures that do not fit, if these take longer to prepare than to take over.

    :param given: hyper ``num_workers``
    :param datasets: training and validation sets, which share their memory; nothing is kept in it
        if processes do the work
    :return: number of processes
    :raises ValueError: if this system can't start any
    """
    memory, number = datasets[0].memory, sum(len(dataset) for dataset in datasets)
    largest = max(datasets, key=len)
    count = min(SAMPLES, len(largest))
    chosen = [i * len(largest) // count for i in range(count)]
    times, samples = [], []
    for i in chosen:
        seconds, sample = _timed(lambda i=i: largest.prepare(largest.dataset[i]))
        times.append(seconds)
        samples.append(sample)
    # the first calls also compile
    preparing = statistics.median(times)
    needed = number * statistics.mean(map(size_in_bytes, samples))
    facts = (
        f"Neighbour lists and labels of {number} structures: {1e3 * preparing:.2g} ms to prepare "
        f"one, {readable(needed)} to keep all, of {readable(memory.limit)} that may be used"
    )
    fits, workers = needed <= memory.limit, given
    if given is None and fits:
        workers = 0
    elif given is None:
        packed = CollateFn(list(largest.prepare.targets))(samples)
        taking_over = min(_timed(lambda: unpack_batch(packed))[0] for _ in range(3)) / len(samples)
        workers = get_num_workers() if taking_over < preparing else 0
        facts += f"; {1e3 * taking_over:.2g} ms to take one over from another process"
    validate_num_workers(workers)
    if workers > 0:
        memory.limit = 0
        logging.info(f"{facts}. {workers} processes prepare them, anew in every pass")
    elif fits:
        logging.info(f"{facts}. They are prepared once and kept")
    else:
        logging.info(f"{facts}. What fits is kept, the rest prepared anew in every pass")
    return workers


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
