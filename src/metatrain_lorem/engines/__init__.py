"""Molecular dynamics engines that need more than an exported model: i-PI and LAMMPS."""
