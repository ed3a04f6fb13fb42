"""Log evidence of a chain; its gradient is the posterior.

The fast kernels work with scaled probabilities, which can underflow. They report the smallest scale they met; below a
limit that depends on the precision alone, value and gradient are computed again in log space.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import emppl.elimination.chain.blocked as blocked
import emppl.elimination.chain.logspace as logspace
import emppl.elimination.chain.scaled as scaled
from emppl.elimination.chain.choose import Kernel, resolve
from emppl.elimination.chain.plain import plain_log_evidence
from emppl.elimination.chain.problem import Chain, Emission, Layout, canonical, check


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
    evidence minus infinity and gradients zero. Differentiable once, in reverse mode; as often as wanted with
    ``kernel="plain"``.

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
    num_steps, num_states, *batch = log_emission.shape
    check(num_steps, num_states, log_initial, log_transition, present)
    layout, chain = prepare(log_initial, log_transition, log_emission, present, kernel)
    return jnp.reshape(evidence_of(layout, chain), batch)


def fused_log_evidence(
    log_initial: jax.Array,
    log_transition: jax.Array,
    emission: Emission,
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
    layout, chain = prepare_fused(log_initial, log_transition, emission, emission_params, slices, present, kernel)
    return jnp.reshape(evidence_of(layout, chain), layout.batch_shape)


def prepare(log_initial, log_transition, log_emission, present, kernel) -> tuple[Layout, Chain]:
    """Canonical form of a chain with a table of emissions."""
    num_steps, num_states, *batch = log_emission.shape
    initial, transition, here = canonical(log_initial, log_transition, present, tuple(batch))
    table = jnp.reshape(log_emission, (num_steps, num_states, initial.shape[1]))
    chosen = resolve(kernel, num_steps, num_states, initial.shape[1], table.dtype, transition.shape[0] > 1)
    return Layout(num_steps, num_states, tuple(batch), None, chosen), Chain(initial, transition, None, table, here)


def prepare_fused(
    log_initial, log_transition, emission, emission_params, slices, present, kernel
) -> tuple[Layout, Chain]:
    """Canonical form of a chain with a fused emission."""
    num_steps = jax.tree.leaves(slices)[0].shape[0]
    one = jax.eval_shape(emission, emission_params, jax.tree.map(lambda array: array[0], slices))
    num_states, *batch = one.shape
    check(num_steps, num_states, log_initial, log_transition, present)
    initial, transition, here = canonical(log_initial, log_transition, present, tuple(batch))
    chosen = resolve(kernel, num_steps, num_states, initial.shape[1], one.dtype, transition.shape[0] > 1)
    layout = Layout(num_steps, num_states, tuple(batch), emission, chosen)
    return layout, Chain(initial, transition, emission_params, slices, here)


def evidence_of(layout: Layout, chain: Chain) -> jax.Array:
    """(N,) log evidence of every lane, by the kernel that the layout names."""
    if layout.kernel.name == "plain":
        return plain_log_evidence(layout, chain)
    return _evidence(
        layout, chain.log_initial, chain.log_transition, chain.emission_params, chain.slices, chain.present
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _evidence(layout: Layout, *arrays):
    return _forward(layout, *arrays)[0]


def _forward(layout: Layout, *arrays):
    chain = Chain(*arrays)
    evidence, worst, residual = _module(layout).forward(layout, chain)
    limit = layout.num_states * jnp.finfo(worst.dtype).tiny / jnp.finfo(worst.dtype).eps
    suspect = jnp.logical_not(jnp.all(worst > limit))
    evidence = _unless(suspect, evidence, lambda *inside: logspace.forward(layout, Chain(*inside)), arrays)
    return evidence, (arrays, residual, suspect)


def _backward(layout: Layout, saved, weight):
    arrays, residual, suspect = saved
    chain = Chain(*arrays)
    gradients = _module(layout).backward(layout, chain, residual, weight)
    safe = functools.partial(_safe_gradients, layout)
    return *_unless(suspect, gradients, safe, (weight, *arrays)), None


def _safe_gradients(layout: Layout, weight, *arrays):
    return logspace.backward(layout, Chain(*arrays), weight)


_evidence.defvjp(_forward, _backward)


def _module(layout: Layout):
    return blocked if layout.kernel.name == "blocked" else scaled


def _unless(suspect: jax.Array, fast, safe, arrays):
    """``safe(*arrays)`` if ``suspect``, else ``fast``.

    A loop of at most one turn rather than a conditional: under ``vmap`` (restarts) a conditional would compute both
    branches always, a loop turns only if a member of the batch needs it. The barrier ties the arrays to the loop's
    state; without it XLA moves work that does not change from turn to turn out of the loop, and does it always.
    """

    def repair(state):
        inside, _ = jax.lax.optimization_barrier((arrays, state[0]))
        return jnp.zeros_like(suspect), safe(*inside)

    return jax.lax.while_loop(lambda state: state[0], repair, (suspect, fast))[1]
