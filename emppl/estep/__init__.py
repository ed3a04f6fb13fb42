"""The E-step: posterior weights as the gradient of the log normaliser.

``plain`` keeps a weight for every cell of every site; ``fused`` is what the loop runs, and keeps sums of
statistics; ``latents`` answers questions about the latents themselves.
"""

from emppl.estep.continuous import moments
from emppl.estep.filtering import Filtered, filtered
from emppl.estep.fused import Chunking, FusedPlan, expectations, plan_fused, prepare
from emppl.estep.latents import decode, marginals, sample, user_layout, whole_scans
from emppl.estep.memory import check_memory, largest_table
from emppl.estep.plain import Expectations, Posterior, e_step, from_posterior, log_evidence, log_likelihood, q
from emppl.estep.simulated import simulated
from emppl.integrals.integration import integrate_all

__all__ = [
    "Chunking",
    "Expectations",
    "Filtered",
    "FusedPlan",
    "Posterior",
    "integrate_all",
    "check_memory",
    "decode",
    "e_step",
    "expectations",
    "filtered",
    "largest_table",
    "from_posterior",
    "log_evidence",
    "log_likelihood",
    "marginals",
    "moments",
    "plan_fused",
    "prepare",
    "q",
    "sample",
    "simulated",
    "user_layout",
    "whole_scans",
]
