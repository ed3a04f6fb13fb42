"""Linear-Gaussian models by dense algebra: the oracle of emppl's Gaussian latents, sharing no code with it.

Every model is written twice: for NumPyro, and as ``latents ~ N(mean, cov)``, ``data = offset + design @ latents + noise``
with all latents in one long vector and all numbers of the data in another. ``states`` holds one such description for
every state of the discrete latents.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.stats as stats
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

POSITIVE = constraints.positive


class Dense(NamedTuple):
    """One joint normal distribution; ``cov`` is None under an improper flat prior."""

    mean: Any
    cov: Any
    design: Any
    offset: Any
    noise: Any
    data: Any


def log_evidence(d: Dense):
    if d.cov is not None:
        cov = d.design @ d.cov @ d.design.T + d.noise
        return stats.multivariate_normal.logpdf(d.data, d.offset + d.design @ d.mean, cov)
    mean, cov = posterior(d)
    fit = stats.multivariate_normal.logpdf(d.data, d.offset + d.design @ mean, d.noise)
    return fit + len(mean) / 2 * jnp.log(2 * jnp.pi) + jnp.linalg.slogdet(cov)[1] / 2


def posterior(d: Dense):
    """Mean and covariance of the latents given the data."""
    if d.cov is not None:  # in the form with covariances, which emppl never takes
        cross = d.cov @ d.design.T
        gain = jnp.linalg.solve(d.design @ cross + d.noise, cross.T).T
        return d.mean + gain @ (d.data - d.offset - d.design @ d.mean), d.cov - gain @ cross.T
    information = d.design.T @ jnp.linalg.solve(d.noise, d.design)
    score = d.design.T @ jnp.linalg.solve(d.noise, d.data - d.offset)
    return jnp.linalg.solve(information, score), jnp.linalg.inv(information)


def expected_log_joint(d: Dense, mean, cov):
    """Expectation of the complete-data log-likelihood when the latents are normal with this mean and covariance."""
    value = stats.multivariate_normal.logpdf(d.data, d.offset + d.design @ mean, d.noise)
    value = value - jnp.trace(jnp.linalg.solve(d.noise, d.design @ cov @ d.design.T)) / 2
    if d.cov is not None:
        value = value + stats.multivariate_normal.logpdf(mean, d.mean, d.cov)
        value = value - jnp.trace(jnp.linalg.solve(d.cov, cov)) / 2
    return value


@dataclasses.dataclass(frozen=True)
class Cell:
    """Latents and data that are independent of all others.

    Attributes:
        states: one description per joint state of the discrete latents.
        log_prior: log-probability of these states.
        weight: how many times the cell counts.
    """

    states: list[Dense]
    log_prior: Any = (0.0,)
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Structure:
    """A model twice.

    Attributes:
        model: for NumPyro.
        draw: ``rng -> (data, params)``.
        cells: ``(params, *data) -> cells``.
        places: by latent, for every entry ``(cell, position in the cell's vector)``, in the user's layout.
        latents: how to ask for the latents, if they are not found without.
        discrete: names of the discrete latents.
    """

    model: Callable
    draw: Callable
    cells: Callable
    places: Mapping[str, Any]
    latents: tuple[str, ...] = ()
    discrete: tuple[str, ...] = ()


def _stacked(cells):
    """All cells and states at once: ``(descriptions, log-probabilities of states, weights)``."""
    every = [jax.tree.map(lambda *parts: jnp.stack(parts), *map(_arrays, cell.states)) for cell in cells]
    descriptions = jax.tree.map(lambda *parts: jnp.stack(parts), *every)
    return (
        descriptions,
        jnp.stack([jnp.asarray(c.log_prior) for c in cells]),
        jnp.stack([jnp.asarray(c.weight) for c in cells]),
    )


def _arrays(d):
    return jax.tree.map(jnp.asarray, d)


def _over_all(function):
    return jax.vmap(jax.vmap(function))


def _joint(cells):
    descriptions, log_prior, weights = _stacked(cells)
    return descriptions, log_prior + _over_all(log_evidence)(descriptions), log_prior, weights


def total_log_evidence(cells):
    _, logs, _, weights = _joint(cells)
    return jnp.sum(weights * jax.scipy.special.logsumexp(logs, 1))


def responsibilities(cells):
    """Posterior probabilities of the states, ``(cells, states)``."""
    return jax.nn.softmax(_joint(cells)[1], -1)


def total_q(after, before):
    """Analytic Q: parameters ``after``, posterior at ``before``."""
    new, _, log_prior, weights = _joint(after)
    old, logs, _, _ = _joint(before)
    mean, cov = _over_all(posterior)(old)
    terms = log_prior + _over_all(expected_log_joint)(new, mean, cov)
    return jnp.sum(weights * jnp.sum(jax.nn.softmax(logs, -1) * terms, -1))


def state_means(cells):
    """Posterior mean of the latents in every state, ``(cells, states, entries)``."""
    return _over_all(posterior)(_stacked(cells)[0])[0]


def mixture_moments(cells):
    """Mean and covariance of every cell's latents, discrete latents summed out."""
    shares = responsibilities(cells)
    means, covs = _over_all(posterior)(_stacked(cells)[0])
    mean = jnp.einsum("cs,csi->ci", shares, means)
    off = means - mean[:, None]
    return mean, jnp.einsum("cs,csij->cij", shares, covs) + jnp.einsum("cs,csi,csj->cij", shares, off, off)


# ------------------------------------------------------------------------------------------------------- the models


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape))


def scale(rng, *shape):
    return jnp.asarray(rng.uniform(0.5, 1.5, size=shape))


def covariance(rng, d):
    root = rng.normal(size=(d, d)) / 2 + np.eye(d)
    return jnp.asarray(root @ root.T)


def param(name, shape=(), constraint=constraints.real, start=None):
    if start is None:
        start = (
            jnp.ones(shape)
            if constraint is POSITIVE
            else 0.1 * jnp.reshape(1.0 + jnp.arange(np.prod(shape, dtype=int)), shape)
        )
    return numpyro.param(name, start, constraint=constraint)


def matrix(name, d):
    return numpyro.param(name, jnp.eye(d), constraint=constraints.positive_definite)


def by_cell(count, width):
    """Places of a latent with one vector in every cell."""
    return np.stack(np.meshgrid(np.arange(count), np.arange(width), indexing="ij"), -1)


def in_one(numbers):
    """Places of a latent in the only cell."""
    numbers = np.asarray(numbers)
    return np.stack([np.zeros_like(numbers), numbers], -1)


# Factor analysis: a vector per row, the data a vector of independent normals.
ROWS, D, Q = 7, 4, 2


def _factor_analysis(x, weights=None):
    loading, mu, psi = param("loading", (D, Q)), param("mu", (D,)), param("psi", (D,), POSITIVE)
    weights = jnp.ones(len(x)) if weights is None else weights
    with numpyro.plate("rows", len(x)), numpyro.handlers.scale(scale=weights):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(Q), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(mu + z @ loading.T, psi).to_event(1), obs=x)


def _factor_draw(rng):
    return (normal(rng, ROWS, D),), {"loading": normal(rng, D, Q), "mu": normal(rng, D), "psi": scale(rng, D)}


def _factor_cells(p, x, weights=None):
    weights = np.ones(ROWS) if weights is None else weights
    noise = jnp.diag(p["psi"] ** 2)
    return [
        Cell([Dense(jnp.zeros(Q), jnp.eye(Q), p["loading"], p["mu"], noise, row)], weight=w)
        for row, w in zip(x, weights, strict=True)
    ]


def _weighted_draw(rng):
    (x,), params = _factor_draw(rng)
    return (x, jnp.asarray(rng.integers(0, 4, ROWS) + 0.5 * rng.integers(0, 2, ROWS))), params


# Correlated factors with fixed loadings, a full covariance of the data.
PATTERN = np.array([[1.0, 0.0], [0.7, 0.0], [0.0, 1.0], [0.2, 0.6]])


def _correlated(x):
    phi, sigma, mu = matrix("phi", Q), matrix("sigma", D), param("mu", (D,))
    with numpyro.plate("rows", len(x)):
        f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(Q), covariance_matrix=phi))
        numpyro.sample("x", dist.MultivariateNormal(mu + f @ PATTERN.T, covariance_matrix=sigma), obs=x)


def _correlated_draw(rng):
    params = {"phi": covariance(rng, Q), "sigma": covariance(rng, D), "mu": normal(rng, D)}
    return (normal(rng, ROWS, D),), params


def _correlated_cells(p, x):
    return [Cell([Dense(jnp.zeros(Q), p["phi"], PATTERN, p["mu"], p["sigma"], row)]) for row in x]


# Two latent sites in every cell, one the location of the other; the data in an inner plate.
TIMES = 3


def _two_sites(y):
    mu, slope = param("mu"), param("slope")
    sa, ss, noise = (param(name, (), POSITIVE) for name in ("sa", "ss", "noise"))
    t = jnp.arange(TIMES) - 0.5
    with numpyro.plate("units", len(y), dim=-2):
        a = numpyro.sample("a", dist.Normal(mu, sa))
        s = numpyro.sample("s", dist.Normal(slope * a, ss))
        with numpyro.plate("times", TIMES, dim=-1):
            numpyro.sample("y", dist.Normal(a + s * t, noise), obs=y)


def _two_sites_draw(rng):
    params = {"mu": normal(rng), "slope": normal(rng), "sa": scale(rng), "ss": scale(rng), "noise": scale(rng)}
    return (normal(rng, ROWS, TIMES),), params


def _two_sites_cells(p, y):
    k, va, vs = p["slope"], p["sa"] ** 2, p["ss"] ** 2
    mean = jnp.stack([p["mu"], k * p["mu"]])
    cov = jnp.stack([jnp.stack([va, k * va]), jnp.stack([k * va, k**2 * va + vs])])
    design = np.stack([np.ones(TIMES), np.arange(TIMES) - 0.5], 1)
    noise = p["noise"] ** 2 * jnp.eye(TIMES)
    return [Cell([Dense(mean, cov, design, jnp.zeros(TIMES), noise, row)]) for row in y]


# Nested plates: schools, classes, pupils.
SCHOOLS, CLASSES, PUPILS = 3, 2, 3


def _nested(y, weights=None):
    mu, su, sv, noise = param("mu"), *(param(name, (), POSITIVE) for name in ("su", "sv", "noise"))
    weights = jnp.ones((SCHOOLS, 1, 1)) if weights is None else jnp.reshape(weights, (SCHOOLS, 1, 1))
    with numpyro.plate("schools", SCHOOLS, dim=-3), numpyro.handlers.scale(scale=weights):
        u = numpyro.sample("u", dist.Normal(mu, su))
        with numpyro.plate("classes", CLASSES, dim=-2):
            v = numpyro.sample("v", dist.Normal(0.5 * u, sv))
            with numpyro.plate("pupils", PUPILS, dim=-1):
                numpyro.sample("y", dist.Normal(u + v, noise), obs=y)


def _nested_draw(rng):
    params = {"mu": normal(rng), "su": scale(rng), "sv": scale(rng), "noise": scale(rng)}
    return (normal(rng, SCHOOLS, CLASSES, PUPILS),), params


def _nested_weighted_draw(rng):
    (y,), params = _nested_draw(rng)
    return (y, jnp.asarray(rng.integers(1, 4, SCHOOLS), float)), params


def _nested_cells(p, y, weights=None):
    weights = np.ones(SCHOOLS) if weights is None else weights
    # v = u / 2 + e: the vector of a school is a fixed matrix times (u, e).
    root = np.concatenate([np.ones((1 + CLASSES, 1)), np.eye(1 + CLASSES)[:, 1:]], 1)
    root[1:, 0] = 0.5
    cov = root @ jnp.diag(jnp.concatenate([p["su"][None] ** 2, jnp.full(CLASSES, p["sv"] ** 2)])) @ root.T
    mean = p["mu"] * jnp.array([1.0] + [0.5] * CLASSES)
    design = np.concatenate([np.ones((CLASSES * PUPILS, 1)), np.kron(np.eye(CLASSES), np.ones((PUPILS, 1)))], 1)
    noise = p["noise"] ** 2 * jnp.eye(CLASSES * PUPILS)
    return [
        Cell([Dense(mean, cov, design, jnp.zeros(CLASSES * PUPILS), noise, school.ravel())], weight=w)
        for school, w in zip(y, weights, strict=True)
    ]


# Random intercept and slope of subjects that an index among the data tells apart.
SUBJECTS, OBSERVATIONS = 4, 17


def _subjects(y, t, subject):
    beta, cov, noise = param("beta", (2,)), matrix("cov", 2), param("noise", (), POSITIVE)
    with numpyro.plate("subjects", SUBJECTS):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=cov))
    with numpyro.plate("observations", len(y)):
        own = beta + b[subject]
        numpyro.sample("y", dist.Normal(own[:, 0] + own[:, 1] * t, noise), obs=y)


def _subjects_draw(rng):
    # A subject may have no observation at all.
    subject = jnp.asarray(rng.integers(0, SUBJECTS, OBSERVATIONS))
    params = {"beta": normal(rng, 2), "cov": covariance(rng, 2), "noise": scale(rng)}
    return (normal(rng, OBSERVATIONS), normal(rng, OBSERVATIONS), subject), params


def _subjects_cells(p, y, t, subject):
    one = jnp.eye(SUBJECTS)[subject]
    basis = jnp.stack([jnp.ones(len(y)), t], 1)
    design = (one[:, :, None] * basis[:, None, :]).reshape(len(y), -1)
    cov = jnp.kron(jnp.eye(SUBJECTS), p["cov"])
    noise = p["noise"] ** 2 * jnp.eye(len(y))
    return [Cell([Dense(jnp.zeros(2 * SUBJECTS), cov, design, basis @ p["beta"], noise, y)])]


# Crossed effects: subjects and items meet in every observation.
ITEMS = 3


def _crossed(y, subject, item):
    mu, su, sw, noise = param("mu"), *(param(name, (), POSITIVE) for name in ("su", "sw", "noise"))
    with numpyro.plate("subjects", SUBJECTS):
        u = numpyro.sample("u", dist.Normal(0.0, su))
    with numpyro.plate("items", ITEMS):
        w = numpyro.sample("w", dist.Normal(0.0, sw))
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.Normal(mu + u[subject] + w[item], noise), obs=y)


def _crossed_draw(rng):
    indices = (jnp.asarray(rng.integers(0, n, OBSERVATIONS)) for n in (SUBJECTS, ITEMS))
    params = {"mu": normal(rng), "su": scale(rng), "sw": scale(rng), "noise": scale(rng)}
    return (normal(rng, OBSERVATIONS), *indices), params


def _crossed_cells(p, y, subject, item):
    design = jnp.concatenate([jnp.eye(SUBJECTS)[subject], jnp.eye(ITEMS)[item]], 1)
    variances = jnp.concatenate([jnp.full(SUBJECTS, p["su"] ** 2), jnp.full(ITEMS, p["sw"] ** 2)])
    noise = p["noise"] ** 2 * jnp.eye(len(y))
    return [
        Cell([Dense(jnp.zeros(SUBJECTS + ITEMS), jnp.diag(variances), design, jnp.full(len(y), p["mu"]), noise, y)])
    ]


# Nested groups by indices: the class's mean is its school's effect.
SCHOOL_OF = np.array([0, 0, 1, 2, 2])


def _nested_by_index(y, of_class):
    mu, su, sv, noise = param("mu"), *(param(name, (), POSITIVE) for name in ("su", "sv", "noise"))
    with numpyro.plate("schools", 3):
        u = numpyro.sample("u", dist.Normal(mu, su))
    with numpyro.plate("classes", len(SCHOOL_OF)):
        v = numpyro.sample("v", dist.Normal(u[SCHOOL_OF], sv))
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.Normal(v[of_class], noise), obs=y)


def _nested_by_index_draw(rng):
    of_class = jnp.asarray(rng.integers(0, len(SCHOOL_OF), OBSERVATIONS))
    params = {"mu": normal(rng), "su": scale(rng), "sv": scale(rng), "noise": scale(rng)}
    return (normal(rng, OBSERVATIONS), of_class), params


def _nested_by_index_cells(p, y, of_class):
    number = 3 + len(SCHOOL_OF)
    root = np.eye(number)
    root[3:, :3] = np.eye(3)[SCHOOL_OF]
    variances = jnp.concatenate([jnp.full(3, p["su"] ** 2), jnp.full(len(SCHOOL_OF), p["sv"] ** 2)])
    design = jnp.eye(number)[3 + of_class]
    noise = p["noise"] ** 2 * jnp.eye(len(y))
    cov = root @ jnp.diag(variances) @ root.T
    return [Cell([Dense(jnp.full(number, p["mu"]), cov, design, jnp.zeros(len(y)), noise, y)])]


# Coefficients in no plate: the marginal likelihood of a regression.
def _regression(y, x):
    tau, noise = param("tau", (), POSITIVE), param("noise", (), POSITIVE)
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), tau).to_event(1))
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, noise), obs=y)


def _regression_draw(rng):
    return (normal(rng, OBSERVATIONS), normal(rng, OBSERVATIONS, 3)), {"tau": scale(rng), "noise": scale(rng)}


def _regression_cells(p, y, x):
    noise = p["noise"] ** 2 * jnp.eye(len(y))
    return [Cell([Dense(jnp.zeros(3), p["tau"] ** 2 * jnp.eye(3), x, jnp.zeros(len(y)), noise, y)])]


# A flat prior on every unit's level.
def _flat(y):
    slope, noise = param("slope"), param("noise", (), POSITIVE)
    t = jnp.arange(TIMES) - 0.5
    with numpyro.plate("units", len(y), dim=-2):
        a = numpyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
        with numpyro.plate("times", TIMES, dim=-1):
            numpyro.sample("y", dist.Normal(a + slope * t, noise), obs=y)


def _flat_draw(rng):
    return (normal(rng, ROWS, TIMES),), {"slope": normal(rng), "noise": scale(rng)}


def _flat_cells(p, y):
    offset = p["slope"] * (jnp.arange(TIMES) - 0.5)
    noise = p["noise"] ** 2 * jnp.eye(TIMES)
    return [Cell([Dense(jnp.zeros(1), None, np.ones((TIMES, 1)), offset, noise, row)]) for row in y]


# A mixture of factor analysers.
K = 3


def _mixture(x):
    probs = numpyro.param("probs", jnp.full(K, 1 / K), constraint=constraints.simplex)
    loading, mu, psi = param("loading", (K, D, Q)), param("mu", (K, D)), param("psi", (K, D), POSITIVE)
    with numpyro.plate("rows", len(x)):
        c = numpyro.sample("c", dist.Categorical(probs))
        z = numpyro.sample("z", dist.Normal(jnp.zeros(Q), 1.0).to_event(1))
        loc = mu[c] + jnp.squeeze(loading[c] @ z[..., None], -1)
        numpyro.sample("x", dist.Normal(loc, psi[c]).to_event(1), obs=x)


def _mixture_draw(rng):
    params = {"loading": normal(rng, K, D, Q), "mu": normal(rng, K, D), "psi": scale(rng, K, D)}
    return (normal(rng, ROWS, D),), params | {"probs": jnp.asarray(rng.dirichlet(np.full(K, 5.0)))}


def _mixture_cells(p, x):
    def states(row):
        return [
            Dense(jnp.zeros(Q), jnp.eye(Q), p["loading"][k], p["mu"][k], jnp.diag(p["psi"][k] ** 2), row)
            for k in range(K)
        ]

    return [Cell(states(row), jnp.log(p["probs"])) for row in x]


# A mixture of mixed models: a class per unit, whose coefficients have a mean and a covariance of their own.
def _mixed_mixture(y):
    probs = numpyro.param("probs", jnp.full(2, 0.5), constraint=constraints.simplex)
    mean = param("mean", (2, 2))
    cov = numpyro.param("cov", jnp.broadcast_to(jnp.eye(2), (2, 2, 2)), constraint=constraints.positive_definite)
    noise = param("noise", (), POSITIVE)
    t = jnp.arange(TIMES) - 0.5
    with numpyro.plate("units", len(y), dim=-2):
        c = numpyro.sample("c", dist.Categorical(probs))
        b = numpyro.sample("b", dist.MultivariateNormal(mean[c], covariance_matrix=cov[c]))
        with numpyro.plate("times", TIMES, dim=-1):
            numpyro.sample("y", dist.Normal(b[..., 0] + b[..., 1] * t, noise), obs=y)


def _mixed_mixture_draw(rng):
    cov = jnp.stack([covariance(rng, 2) for _ in range(2)])
    params = {"mean": normal(rng, 2, 2), "cov": cov, "noise": scale(rng)}
    return (normal(rng, ROWS, TIMES),), params | {"probs": jnp.asarray(rng.dirichlet(np.full(2, 5.0)))}


def _mixed_mixture_cells(p, y):
    design = np.stack([np.ones(TIMES), np.arange(TIMES) - 0.5], 1)
    noise = p["noise"] ** 2 * jnp.eye(TIMES)

    def states(row):
        return [Dense(p["mean"][k], p["cov"][k], design, jnp.zeros(TIMES), noise, row) for k in range(2)]

    return [Cell(states(row), jnp.log(p["probs"])) for row in y]


# One choice for all rows at once.
def _common_class(y):
    mu, scales, noise = param("mu", (2,)), param("scales", (2,), POSITIVE), param("noise", (), POSITIVE)
    c = numpyro.sample("c", dist.Categorical(jnp.array([0.3, 0.7])))
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(mu[c], scales[c]))
        numpyro.sample("y", dist.Normal(a, noise), obs=y)


def _common_class_draw(rng):
    return (normal(rng, ROWS),), {"mu": normal(rng, 2), "scales": scale(rng, 2), "noise": scale(rng)}


def _common_class_cells(p, y):
    eye = jnp.eye(len(y))
    states = [
        Dense(jnp.full(len(y), p["mu"][k]), p["scales"][k] ** 2 * eye, eye, jnp.zeros(len(y)), p["noise"] ** 2 * eye, y)
        for k in range(2)
    ]
    return [Cell(states, np.log([0.3, 0.7]))]


# A chain of two numbers, seen through one of them, in a few sequences.
STEPS, SEQUENCES = 5, 3


def _chain(y):
    dynamics, cov, noise = param("dynamics", (2, 2)), matrix("cov", 2), param("noise", (), POSITIVE)

    def step(z, seen):
        with numpyro.plate("sequences", SEQUENCES):
            z = numpyro.sample("z", dist.MultivariateNormal(z @ dynamics.T, covariance_matrix=cov))
            numpyro.sample("y", dist.Normal(z[..., 0], noise), obs=seen)
        return z, None

    scan(step, jnp.ones((SEQUENCES, 2)), y)


def _chain_draw(rng):
    params = {"dynamics": normal(rng, 2, 2) / 2, "cov": covariance(rng, 2), "noise": scale(rng)}
    return (normal(rng, STEPS, SEQUENCES),), params


def _chain_cells(p, y):
    # z = root @ innovations, the first of which is around dynamics @ 1.
    powers = [jnp.eye(2)]
    for _ in range(STEPS):
        powers.append(powers[-1] @ p["dynamics"])
    zero = jnp.zeros((2, 2))
    root = jnp.block([[powers[t - s] if s <= t else zero for s in range(STEPS)] for t in range(STEPS)])
    mean = jnp.concatenate([powers[t + 1] @ jnp.ones(2) for t in range(STEPS)])
    cov = root @ jnp.kron(jnp.eye(STEPS), p["cov"]) @ root.T
    design, noise = np.eye(2 * STEPS)[::2], p["noise"] ** 2 * jnp.eye(STEPS)
    return [Cell([Dense(mean, cov, design, jnp.zeros(STEPS), noise, seen)]) for seen in y.T]


STRUCTURES = {
    "factor analysis": Structure(_factor_analysis, _factor_draw, _factor_cells, {"z": by_cell(ROWS, Q)}),
    "weighted rows": Structure(_factor_analysis, _weighted_draw, _factor_cells, {"z": by_cell(ROWS, Q)}),
    "correlated factors": Structure(_correlated, _correlated_draw, _correlated_cells, {"f": by_cell(ROWS, Q)}),
    "two sites": Structure(
        _two_sites, _two_sites_draw, _two_sites_cells, {"a": by_cell(ROWS, 2)[:, 0], "s": by_cell(ROWS, 2)[:, 1]}
    ),
    "nested plates": Structure(
        _nested,
        _nested_draw,
        _nested_cells,
        {"u": by_cell(SCHOOLS, 1 + CLASSES)[:, 0], "v": by_cell(SCHOOLS, 1 + CLASSES)[:, 1:]},
    ),
    "weighted schools": Structure(
        _nested,
        _nested_weighted_draw,
        _nested_cells,
        {"u": by_cell(SCHOOLS, 1 + CLASSES)[:, 0], "v": by_cell(SCHOOLS, 1 + CLASSES)[:, 1:]},
    ),
    "groups by index": Structure(
        _subjects,
        _subjects_draw,
        _subjects_cells,
        {"b": in_one(np.arange(2 * SUBJECTS).reshape(SUBJECTS, 2))},
        latents=("b",),
    ),
    "crossed": Structure(
        _crossed,
        _crossed_draw,
        _crossed_cells,
        {"u": in_one(np.arange(SUBJECTS)), "w": in_one(SUBJECTS + np.arange(ITEMS))},
        latents=("u", "w"),
    ),
    "nested by index": Structure(
        _nested_by_index,
        _nested_by_index_draw,
        _nested_by_index_cells,
        {"u": in_one(np.arange(3)), "v": in_one(3 + np.arange(len(SCHOOL_OF)))},
        latents=("u", "v"),
    ),
    "no plate": Structure(
        _regression, _regression_draw, _regression_cells, {"beta": in_one(np.arange(3))}, latents=("beta",)
    ),
    "flat prior": Structure(_flat, _flat_draw, _flat_cells, {"a": by_cell(ROWS, 1)[:, 0]}),
    "mixture": Structure(_mixture, _mixture_draw, _mixture_cells, {"z": by_cell(ROWS, Q)}, discrete=("c",)),
    "mixed mixture": Structure(
        _mixed_mixture, _mixed_mixture_draw, _mixed_mixture_cells, {"b": by_cell(ROWS, 2)}, discrete=("c",)
    ),
    "common class": Structure(
        _common_class, _common_class_draw, _common_class_cells, {"a": in_one(np.arange(ROWS))}, discrete=("c",)
    ),
    "chain": Structure(
        _chain,
        _chain_draw,
        _chain_cells,
        {"z": np.swapaxes(by_cell(SEQUENCES, 2 * STEPS).reshape(SEQUENCES, STEPS, 2, 2), 0, 1)},
    ),
}
