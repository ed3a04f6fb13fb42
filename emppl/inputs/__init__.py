"""What goes into a model: its arguments, and params that are trees of arrays."""
