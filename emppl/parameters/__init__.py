"""Constrained and unconstrained values, and entries that are held."""
