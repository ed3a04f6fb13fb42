"""Chains of discrete states: exact inference as pure JAX functions of log-probability tables.

``evidence`` is the interface of the E-step (the gradient of the log evidence is the posterior), ``paths`` that of one
path in place of all. ``recursion``, ``blocked``, ``associative`` and ``logspace`` are the kernels, ``twin`` is their
twin, ``choose`` decides between them. Nothing here knows NumPyro.
"""

from emppl.elimination.chain.choose import Kernel, choose_kernel
from emppl.elimination.chain.evidence import filtered, fused_log_evidence, log_evidence
from emppl.elimination.chain.paths import path_evidence
from emppl.elimination.chain.problem import Symbols
from emppl.elimination.chain.twin import ReduceAxis, step_by_step

__all__ = [
    "Kernel",
    "ReduceAxis",
    "Symbols",
    "choose_kernel",
    "filtered",
    "fused_log_evidence",
    "log_evidence",
    "path_evidence",
    "step_by_step",
]
