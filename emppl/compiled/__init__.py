"""A derived program with its compiled functions, and both with the data of a fit."""

from emppl.compiled.bound import Cache, Fit, fit_of
from emppl.compiled.functions import Compiled

__all__ = ["Cache", "Compiled", "Fit", "fit_of"]
