"""The E-step: posterior weights as the gradient of the log normaliser.

``plain`` keeps a weight for every cell of every site; ``fused`` is what the loop runs, and keeps sums of
statistics; ``q`` is the function of the parameters that either of them gives the M-step; ``posterior`` answers
questions about the latents themselves.
"""

from emppl.estep.expectations import Expectations, Posterior
from emppl.estep.filtering import Filtered, filtered
from emppl.estep.fused import Chunking, FusedPlan, expectations, plan_fused, prepare
from emppl.estep.memory import check_memory, largest_table
from emppl.estep.plain import check_posterior, e_step, from_posterior, log_evidence, log_likelihood
from emppl.estep.posterior import decode, marginals, moments, sample
from emppl.estep.q import QFunction, q
from emppl.estep.simulated import simulated
from emppl.integrals.way import integrate_all

__all__ = [
    "Chunking",
    "Expectations",
    "Filtered",
    "FusedPlan",
    "Posterior",
    "QFunction",
    "integrate_all",
    "check_memory",
    "check_posterior",
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
]
