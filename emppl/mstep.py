"""The M-step: every parameter's rule carried out on expected statistics, blocks in turn (ECM).

Each block maximises Q plus the log prior with the others held at their newest values, so the objective
never falls.

Reference:
    Meng and Rubin (1993), Maximum likelihood estimation via the ECM algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.axes import reduce_to
from emppl.estep import Expectations, Posterior, has_statistics
from emppl.factors import Prepared
from emppl.numerics import weighted
from emppl.parameters import constrain, unconstrain
from emppl.program import Program
from emppl.rules import Rule, prior_arguments


def m_step(program: Program, params, expectations: Expectations, leaves, prepared: Mapping[str, Prepared]) -> dict:
    """New parameters from expectations.

    Args:
        program: the derived algorithm.
        params: current constrained values (blocks that are updated later see them).
        expectations: from the E-step.
        leaves: the data.
        prepared: statistics and their references, by site.

    Returns:
        New constrained values of the free parameters.
    """
    params = dict(params)
    moments = {
        name: program.factors[name].moments(_sums(program, name, params, expectations, leaves, prepared), one.reference)
        for name, one in prepared.items()
        if any(rule.kind == "closed form" and _touches(rule, name) for rule in program.rules.values())
    }
    closed = [rule for rule in program.rules.values() if rule.kind == "closed form"]
    for rule in sorted(closed, key=lambda rule: rule.update.order if rule.update else 0):
        params[rule.parameter] = _closed_form(program, rule, params, moments, leaves)
    for rule in program.rules.values():
        if rule.kind == "quadratic":
            params[rule.parameter] = _newton_step(program, rule.parameter, params, expectations.weights, leaves)
    for rule in program.rules.values():
        if rule.kind == "user" and rule.user is not None:
            params[rule.parameter] = _user_update(program, rule, params, expectations, leaves)
    numeric = [rule.parameter for rule in program.rules.values() if rule.kind == "optax"]
    if numeric:
        params.update(_optax_block(program, numeric, params, expectations.weights, leaves))
    return params


def from_posterior(program: Program, params, posterior: Posterior, leaves, local: bool = False):
    """Expectations and statistics from posterior weights: the plain path.

    Args:
        program: the derived algorithm.
        params: the parameters at which the E-step was done.
        posterior: its outcome.
        leaves: the data.
        local: centre statistics at each component's own location.

    Returns:
        ``(expectations, prepared)``.
    """
    arrays = program.evaluate(params, leaves)
    prepared = {
        name: program.factors[name].prepare(arrays, local=local)
        for name in program.factors
        if has_statistics(program, name)
    }
    return Expectations(posterior.log_likelihood, {}, posterior.weights, jnp.zeros(())), prepared


def _touches(rule: Rule, site: str) -> bool:
    return any(target.site == site for target in rule.targets)


def _sums(program: Program, name: str, params, expectations: Expectations, leaves, prepared) -> jax.Array:
    if name in expectations.sums:
        return expectations.sums[name]
    factor = program.factors[name]
    arrays = program.evaluate(params, leaves, frozenset([(name, "arguments")]))
    shape = jax.eval_shape(lambda: factor.natural(factor.arguments(arrays), prepared[name].reference)).shape
    return factor.expected_statistics(expectations.weights[name], shape, prepared[name])


# --------------------------------------------------------------------------------------------- closed forms


def _closed_form(program: Program, rule: Rule, params, moments, leaves) -> jax.Array:
    update, name = rule.update, rule.parameter
    assert update is not None
    value = params[name]
    for stage, contributions in enumerate(update.contributions):
        here = {**params, name: value}
        wanted = {(target.site, "arguments") for target in rule.targets} | {(name, "distribution")}
        arrays = program.evaluate(here, leaves, frozenset(wanted))
        pooled = _pool(program, rule, here, arrays, contributions, moments, leaves)
        if rule.prior not in (None, "flat"):
            prior = next(rule_ for dist_, rule_ in update.priors.items() if dist_.__name__ == rule.prior)
            pooled = prior(pooled, prior_arguments(arrays[name].distribution, value.ndim))
        value = update.solve(pooled, value, stage)
    return value


def _pool(program: Program, rule: Rule, params, arrays, contributions, moments, leaves) -> dict[str, jax.Array]:
    """Sum every quantity over all cells, of all sites, that share an entry of the parameter."""
    name = rule.parameter

    wanted = frozenset((target.site, "arguments") for target in rule.targets)

    def selected(value):
        there = program.evaluate({**params, name: value}, leaves, wanted)
        return [program.factors[t.site].argument(there, t.argument) for t in rule.targets]

    current, pull_back = jax.vjp(selected, params[name])
    parts = []
    for target, argument in zip(rule.targets, current, strict=True):
        factor = program.factors[target.site]
        quantities = contributions(moments[target.site], factor.arguments(arrays), argument)
        parts.append({key: _to_argument(quantity, argument) for key, quantity in quantities.items()})

    def pooled(key):
        extra = parts[0][key].ndim - current[0].ndim
        back = lambda *cotangents: pull_back(list(cotangents))[0]  # noqa: E731
        for _ in range(extra):
            back = jax.vmap(back)
        return back(*(part[key] for part in parts))

    return {key: pooled(key) for key in parts[0]}


def _to_argument(quantity: jax.Array, argument: jax.Array) -> jax.Array:
    """Sum a quantity over the cells that share an entry of the argument."""
    extra = quantity.shape[: quantity.ndim - argument.ndim]
    full = jnp.broadcast_shapes(quantity.shape[len(extra) :], argument.shape)
    return reduce_to(jnp.broadcast_to(quantity, extra + full), extra + argument.shape)


# ------------------------------------------------------------------------------------------ Q as a function


def q_of(program: Program, names, params, weights, leaves):
    """``Q(block) + log prior(block)`` as a function of some parameters, up to terms that do not hold them."""

    def objective(block: Mapping[str, jax.Array]) -> jax.Array:
        arrays = program.evaluate({**params, **block}, leaves)
        total = jnp.zeros((), jnp.result_type(float))
        total = total + program.log_prior_from(arrays)
        for factor_name, factor in program.factors.items():
            if factor.all_parameters & set(names):
                total = total + jnp.sum(weighted(weights[factor_name], factor.table(arrays)))
        return total

    return objective


def _newton_step(program: Program, name: str, params, weights, leaves) -> jax.Array:
    """Exact maximiser of a quadratic: one Newton step, with a minimum-norm step in flat directions.

    A quadratic without a maximum (convex, or sloping along a flat direction) gives NaN, which the loop reports.
    """
    objective = q_of(program, [name], params, weights, leaves)
    shape = params[name].shape
    flat = lambda vector: objective({name: vector.reshape(shape)})  # noqa: E731
    start = params[name].ravel()
    gradient, hessian = jax.grad(flat)(start), jax.hessian(flat)(start)
    unit = jnp.sqrt(jnp.maximum(-jnp.diagonal(hessian), jnp.finfo(start.dtype).tiny))
    scaled = -hessian / (unit[:, None] * unit[None, :])
    wanted = gradient / unit
    step = jnp.linalg.lstsq(scaled, wanted)[0]
    slack = jnp.finfo(start.dtype).eps ** 0.5
    solved = jnp.linalg.norm(scaled @ step - wanted) <= slack * (1 + jnp.linalg.norm(wanted))
    concave = jnp.all(jnp.diagonal(hessian) <= 0) & (jnp.linalg.eigvalsh(scaled)[0] >= -slack * start.size)
    return jnp.where(solved & concave, start + step / unit, jnp.nan).reshape(shape)


def _user_update(program: Program, rule: Rule, params, expectations: Expectations, leaves) -> jax.Array:
    posterior = Posterior(expectations.log_likelihood, expectations.weights)
    value = rule.user(params, posterior)  # type: ignore[misc]
    return jnp.asarray(value, params[rule.parameter].dtype).reshape(params[rule.parameter].shape)


_INNER_STEPS = 20


def _optax_block(program: Program, names: list[str], params, weights, leaves) -> dict[str, Any]:
    """L-BFGS on the unconstrained values of a block; the step is kept only if Q does not fall."""
    import optax

    constraints = {name: program.trace.sites[name].constraint for name in names}
    objective = q_of(program, names, params, weights, leaves)

    def loss(free):
        return -objective({name: constrain(constraints[name], value) for name, value in free.items()})

    start = {name: unconstrain(constraints[name], params[name]) for name in names}
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def keep_going(carry):
        _, state, number = carry
        gradient = optax.tree_utils.tree_get(state, "grad")
        value = optax.tree_utils.tree_get(state, "value")
        size = optax.tree_utils.tree_norm(gradient)
        small = jnp.finfo(value.dtype).eps ** 0.5
        return (number < _INNER_STEPS) & ((number == 0) | (size > small * (1 + jnp.abs(value))))

    def step(carry):
        free, state, number = carry
        value, gradient = value_and_grad(free, state=state)
        updates, state = solver.update(gradient, state, free, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(free, updates), state, number + 1

    free, _, _ = jax.lax.while_loop(keep_going, step, (start, solver.init(start), 0))
    found = {name: constrain(constraints[name], value) for name, value in free.items()}
    before, after = objective({name: params[name] for name in names}), objective(found)
    better = after >= before
    return {name: jnp.where(better, found[name], params[name]) for name in names}
