"""Chains of discrete states: exact inference as pure JAX functions of log-probability tables.

``evidence`` is the interface of the E-step (the gradient of the log evidence is the posterior); ``posterior`` and
``paths`` answer questions about the states. ``recursion``, ``blocked``, ``associative`` and ``logspace`` are the
kernels, ``plain`` their twin, ``choose`` decides between them. Nothing here knows NumPyro.
"""

from emppl.elimination.chain.choose import Kernel, choose_kernel
from emppl.elimination.chain.emission import Symbols
from emppl.elimination.chain.evidence import fused_log_evidence, log_evidence
from emppl.elimination.chain.paths import path_evidence, sample_paths, viterbi
from emppl.elimination.chain.plain import SumOut, step_by_step
from emppl.elimination.chain.posterior import filtered, pairwise, smoothed

__all__ = [
    "Kernel",
    "SumOut",
    "Symbols",
    "choose_kernel",
    "filtered",
    "fused_log_evidence",
    "log_evidence",
    "pairwise",
    "path_evidence",
    "sample_paths",
    "smoothed",
    "step_by_step",
    "viterbi",
]
