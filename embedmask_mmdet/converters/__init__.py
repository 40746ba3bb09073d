"""Convert checkpoints from and to the names that others use for the same weights."""
