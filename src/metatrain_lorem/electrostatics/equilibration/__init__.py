"""Charges that minimise a quadratic energy at a given total charge."""
