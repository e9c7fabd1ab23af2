"""LOREM, a machine-learning potential with equivariant long-range messages, for metatrain."""

__version__ = "0.1.0"
