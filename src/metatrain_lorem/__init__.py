"""LOREM, a machine-learning potential with equivariant long-range messages, for metatrain."""

__version__ = "0.1.0"

__authors__ = [
    ("The metatrain-lorem developers", "@metatrain-lorem"),
]

__maintainers__ = __authors__


def __getattr__(name):
    """The classes that metatrain asks for. They are imported late: commands that print a help text
    or a path, and hooks into metatrain in the runs of other architectures, need no PyTorch.

    :param name: of an attribute that the module lacks
    :return: the class of the model or of the trainer
    """
    if name == "__model__":
        from .model import Lorem

        return Lorem
    if name == "__trainer__":
        from .trainer import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
