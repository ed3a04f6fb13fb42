"""Discrete latents: the order in which they are summed out, and the sum itself."""
