"""The model of the examples, trained where it is missing."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parents[1]
FOLDER = EXAMPLES.parent / "build" / "examples"


def example_model() -> Path:
    """
    :return: ``model.pt`` of ``train_and_export.py``, with ``model.ckpt`` beside it
    """
    model = FOLDER / "model.pt"
    if not model.exists():
        subprocess.run([sys.executable, EXAMPLES / "train_and_export.py"], check=True)
    return model


def train(options: str, output: str, *changes: str) -> Path:
    """Run ``mtt train``.

    :param options: file in the folder of the examples
    :param output: exported model to write
    :param changes: ``key=value``, in the place of what the options file says
    :return: path of the exported model
    """
    command = [sys.executable, "-m", "metatrain", "train", EXAMPLES / options, "-o", output]
    for change in changes:
        command += ["-r", change]
    subprocess.run(command, cwd=FOLDER, check=True)
    return FOLDER / output
