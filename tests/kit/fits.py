"""Fits, and questions about them, as most tests write them."""

import jax
import numpy as np

import emppl
from emppl.derivation.derive import derive
from emppl.inputs.arguments import split_arguments
from emppl.model.options import Options

KEY = jax.random.key(0)


def fit(model, *args, init_params=None, **options):
    """The result of a fit of positional data, always from the same key."""
    return emppl.EM(model, **options).run(KEY, *args, init_params=init_params)


def program_of(model, *args, **options):
    """Program and data leaves of a model."""
    leaves, skeleton = split_arguments(args, {})
    return derive(model, leaves, skeleton, Options(**options)), leaves


def compiled_of(em, *args):
    """What is compiled for a model, and its data leaves."""
    whole = em._fit(args, {})
    return whole.compiled, whole.data


def rules(em, *args, **kwargs):
    """The M-step rule of every parameter."""
    return {plan.name: plan.rule for plan in em.plan(*args, **kwargs).parameters}


def never_falls(result):
    """Whether the objective rises at every iteration, up to rounding."""
    return bool(np.all(np.diff(result.history["objective"]) > -1e-8))
