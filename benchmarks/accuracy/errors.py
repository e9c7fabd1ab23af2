"""Errors as they stand in results: of metatrain's models and of others alike."""

from collections.abc import Iterable

import numpy as np


def errors(predicted: Iterable, reference: Iterable, unit: float) -> dict[str, float]:
    """Root mean square and mean of the error, and root mean square of the labels.

    :param predicted: numbers or arrays, one per structure
    :param reference: the same
    :param unit: of the result, in units of the labels
    """
    labels = np.concatenate([np.ravel(x) for x in reference]) / unit
    difference = np.concatenate([np.ravel(x) for x in predicted]) / unit - labels
    return {
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "mae": float(np.abs(difference).mean()),
        "label_rms": float(np.sqrt(np.mean(labels**2))),
    }
