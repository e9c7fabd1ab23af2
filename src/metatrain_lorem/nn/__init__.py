"""Neural building blocks on plain tensors: pairs and atoms in, atomic features out."""
