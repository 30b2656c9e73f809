"""Tools that a worker runs between a model's turns."""
