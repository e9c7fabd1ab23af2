"""LOREM, a machine-learning potential with equivariant long-range messages, for metatrain."""

from .model import Lorem
from .trainer import Trainer

__version__ = "0.1.0"

__model__ = Lorem
__trainer__ = Trainer

__authors__ = [
    ("The metatrain-lorem developers", "@metatrain-lorem"),
]

__maintainers__ = __authors__
