"""Log evidence of a chain; its gradient is the posterior.

The fast kernels work with scaled probabilities, which can underflow. They report the smallest scale they met; below a
limit that depends on the precision alone, value and gradient are computed again in log space.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

import emppl.elimination.chain.blocked as blocked
import emppl.elimination.chain.logspace as logspace
import emppl.elimination.chain.scaled as scaled
from emppl.elimination.chain.choose import Kernel, resolve
from emppl.elimination.chain.problem import Chain, EmissionFunction, Gradients, Static, canonical, first_step


def log_evidence(
    log_initial: jax.Array,
    log_transition: jax.Array,
    log_emission: jax.Array,
    present: jax.Array | None = None,
    *,
    kernel: Kernel | str | None = None,
) -> jax.Array:
    """Log probability of everything observed, all paths of states summed out.

    ``log sum_z p(z_0) p(x_0 | z_0) prod_t p(z_t | z_{t-1}) p(x_t | z_t)``, natural log. Its gradient with respect
    to ``log_initial`` is the posterior of z_0, to ``log_transition`` the pairwise marginals (summed over time or
    batch where the argument has size 1), to ``log_emission`` the state marginals. An impossible sequence has
    evidence minus infinity and gradients zero. Differentiable once, in reverse mode; the twin
    :func:`emppl.elimination.chain.twin.step_by_step` as often as wanted.

    Args:
        log_initial: (K, *B), log p(z_0); batch axes may have size 1.
        log_transition: (T-1 or 1, K, K, *B) [time, from, to], log p(z_{t+1} | z_t); batch axes may have size 1.
        log_emission: (T, K, *B), log p(x_t | z_t); minus infinity where impossible.
        present: (T, *B) boolean; where false the step does not exist: no emission, no transition, the state is
            carried over. Batch axes may have size 1.
        kernel: a kernel or its name; default: :func:`emppl.elimination.chain.choose.choose_kernel`.

    Returns:
        (*B).

    Reference:
        Rabiner (1989), A tutorial on hidden Markov models.
    """
    static, chain = prepare(log_initial, log_transition, log_emission, present, kernel)
    return _evidence_of(static, chain)


def fused_log_evidence(
    log_initial: jax.Array,
    log_transition: jax.Array,
    emission: EmissionFunction,
    emission_params: Any,
    slices: Any,
    present: jax.Array | None = None,
    *,
    kernel: Kernel | str | None = None,
) -> jax.Array:
    """:func:`log_evidence` with emissions computed inside the loops, so that no T x K table exists.

    The backward pass recomputes the emissions of a few steps at a time and pulls their state marginals back to
    ``emission_params`` by the emission's own derivative: expected sufficient statistics.

    Args:
        log_initial: as there.
        log_transition: as there.
        emission: ``emission(emission_params, slice_t) -> (K, *B)``, log p(x_t | z_t). A pure function that closes
            over no traced array; the same object in every call, or JAX traces again.
        emission_params: floating-point arrays, the only thing besides the first two arguments to be differentiated.
        slices: arrays with leading time axis; constants of the differentiation.
        present: as there.
        kernel: as there.

    Returns:
        (*B).
    """
    static, chain = prepare(log_initial, log_transition, slices, present, kernel, emission, emission_params)
    return _evidence_of(static, chain)


def filtered(
    log_initial: jax.Array, log_transition: jax.Array, log_emission: jax.Array, present: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Filter: what the past says about each state, and how well it predicted each observation; in log space.

    Arguments are those of :func:`log_evidence`.

    Returns:
        (T, K, *B) log p(z_t | x_0..x_t), and (T, *B) log p(x_t | x_0..x_{t-1}), whose sum over time is the log
        evidence (0 at steps that do not exist).
    """
    static, chain = prepare(log_initial, log_transition, log_emission, present)
    states, predictive = logspace.filter_log(static, chain)
    return jnp.reshape(states, log_emission.shape), jnp.reshape(predictive, (static.num_steps, *static.batch_shape))


def prepare(
    log_initial: jax.Array,
    log_transition: jax.Array,
    slices: Any,
    present: jax.Array | None,
    kernel: Kernel | str | None = None,
    emission: EmissionFunction | None = None,
    emission_params: Any = None,
) -> tuple[Static, Chain]:
    """Canonical form of a chain; without an emission the slices are the table of log-densities."""
    if emission is None:
        num_steps, one_step = slices.shape[0], jax.ShapeDtypeStruct(slices.shape[1:], slices.dtype)
    else:
        num_steps = jax.tree.leaves(slices)[0].shape[0]
        one_step = jax.eval_shape(emission, emission_params, first_step(slices))
    initial, transition, exists = canonical(num_steps, one_step.shape, log_initial, log_transition, present)
    num_states, lanes = initial.shape
    if emission is None:
        slices = jnp.reshape(slices, (num_steps, num_states, lanes))
    chosen = resolve(kernel, num_steps, num_states, lanes, one_step.dtype, transition.shape[0] > 1)
    static = Static(num_steps, num_states, one_step.shape[1:], emission, chosen)
    return static, Chain(initial, transition, emission_params, slices, exists)


def _evidence_of(static: Static, chain: Chain) -> jax.Array:
    """(*B) log evidence of every sequence, by the kernel that is named."""
    arrays = chain.log_initial, chain.log_transition, chain.emission_params, chain.slices, chain.present
    return jnp.reshape(_evidence(static, *arrays), static.batch_shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _evidence(static: Static, *arrays: Any) -> jax.Array:
    return _forward(static, *arrays)[0]


def _forward(static: Static, *arrays: Any) -> tuple[jax.Array, tuple]:
    chain = Chain(*arrays)
    evidence, worst, residual = _module(static).forward(static, chain)
    limit = static.num_states * jnp.finfo(worst.dtype).tiny / jnp.finfo(worst.dtype).eps
    suspect = jnp.logical_not(jnp.all(worst > limit))
    evidence = _unless(suspect, evidence, lambda *inside: logspace.forward(static, Chain(*inside)), arrays)
    return evidence, (arrays, residual, suspect)


def _backward(static: Static, saved: tuple, weight: jax.Array) -> tuple:
    arrays, residual, suspect = saved
    gradients = _module(static).backward(static, Chain(*arrays), residual, weight)

    def safe(weight: jax.Array, *arrays: Any) -> Gradients:
        return logspace.backward(static, Chain(*arrays), weight)

    return *_unless(suspect, gradients, safe, (weight, *arrays)), None


_evidence.defvjp(_forward, _backward)


def _module(static: Static) -> ModuleType:
    return blocked if static.kernel.name == "blocked" else scaled


def _unless(suspect: jax.Array, fast: Any, safe: Callable[..., Any], arrays: tuple) -> Any:
    """``safe(*arrays)`` if ``suspect``, else ``fast``.

    A loop of at most one turn rather than a conditional: under ``vmap`` (restarts) a conditional would compute both
    branches always, a loop turns only if a member of the batch needs it. The barrier ties the arrays to the loop's
    state; without it XLA moves work that does not change from turn to turn out of the loop, and does it always.
    """

    def repair(state: tuple) -> tuple:
        inside, _ = jax.lax.optimization_barrier((arrays, state[0]))
        return jnp.zeros_like(suspect), safe(*inside)

    return jax.lax.while_loop(lambda state: state[0], repair, (suspect, fast))[1]
