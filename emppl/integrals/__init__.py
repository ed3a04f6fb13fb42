"""Continuous latents: the joint density of each group, and the ways to integrate it."""
