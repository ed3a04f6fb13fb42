"""Run a NumPyro model once, abstractly, and keep a pure function of (parameters, atoms, data).

This is the only package that touches NumPyro's handlers and messages. Everything downstream sees
:class:`Trace`: static facts about every site, and ``evaluate``, a pure JAX function that returns each
site's distribution arguments, value, mask and scale. Discrete latents are enumerated: each gets an axis of
its own, left of the plates, holding its *atoms*.
"""

from emppl.trace.distributions import as_numpyro_expects, log_density
from emppl.trace.evaluate import trace_model
from emppl.trace.missing import MissingCells, Unseen, cells_left_out
from emppl.trace.record import AtomAxis, Plate, Scan, Site, SiteArrays, Trace

__all__ = [
    "Scan",
    "AtomAxis",
    "MissingCells",
    "Plate",
    "Site",
    "SiteArrays",
    "Trace",
    "Unseen",
    "as_numpyro_expects",
    "cells_left_out",
    "log_density",
    "trace_model",
]
