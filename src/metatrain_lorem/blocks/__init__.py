"""The learned parts of the model, one after the other: short range, charges, long range."""
