"""Pure jax.numpy that knows nothing of models: guarded sums, small and banded matrices."""
