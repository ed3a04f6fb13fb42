"""Continuous latents: the joint density of each group, and the ways to integrate it."""

from emppl.integrals.integrated import Integrated, weighted_points
from emppl.integrals.way import Question, Way

__all__ = ["Integrated", "Question", "Way", "weighted_points"]
