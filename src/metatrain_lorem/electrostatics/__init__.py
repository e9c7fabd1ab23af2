"""Numerics of charges: Coulomb sums and charge equilibration, without learned weights."""
