"""Charges to potentials."""

from .coulomb import CoulombPotential

__all__ = ["CoulombPotential"]
