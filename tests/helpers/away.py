"""Programs that run as if only metatomic were installed."""

import os
from pathlib import Path


def environment() -> dict[str, str]:
    """Variables for programs that can't import this package, metatrain or sphericart.

    Give them to :func:`subprocess.run` with an exported file copied to a folder of its own.
    """
    blocked = Path(__file__).with_name("blocked")
    return {**os.environ, "PYTHONPATH": str(blocked), "PYTHONNOUSERSITE": "1"}
