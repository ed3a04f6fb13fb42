"""One contract for every registered family, parameterisation and prior: the update maximises Q, exactly.

The oracle is NumPyro's ``log_prob`` with responsibilities computed here by Bayes' rule, scipy's distributions
with a direct maximiser, and laws (replication, additivity, translation) that any weighted maximiser obeys.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from numpyro.distributions import constraints

import emppl  # noqa: F401  registers the families
from emppl import estep
from emppl.families import registered_families
from tests.kit.brute_force import unconstrained_gradient
from tests.kit.fits import program_of

ROWS, K = 60, 2
WEIGHTS = np.array([0.4, 0.6])
FAR = 2.0**20  # an exactly representable shift of about a million
TRIALS = 7


@dataclasses.dataclass(frozen=True, eq=False)
class Argument:
    """One argument: current values of two components, its constraint, priors that the registry has for it."""

    values: np.ndarray
    constraint: object
    event_rank: int = 0
    priors: tuple = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One parameterisation of a family.

    Attributes:
        build: arguments by name -> distribution.
        arguments: by name.
        data: random generator -> data.
        logpdf: scipy's log density at ``(data, arguments)``, of one component.
        scalars: unconstrained vector -> arguments, for scipy's maximiser, with its size.
        shifts: do data and ``loc`` move together?
    """

    build: Callable
    arguments: dict
    data: Callable
    logpdf: Callable
    scalars: tuple
    shifts: bool = False


def dyadic(values, bits=20):
    """Round to multiples of ``2**-bits``, so that adding ``FAR`` is exact."""
    return np.round(np.asarray(values) * 2.0**bits) / 2.0**bits


BETA, DIRICHLET, GAMMA = dist.Beta(2.0, 3.5), dist.Dirichlet(jnp.array([1.5, 2.0, 4.0])), dist.Gamma(3.0, 2.0)
PROBS = Argument(np.array([0.3, 0.8]), constraints.unit_interval, 0, (BETA,))
LOGITS = Argument(np.array([-0.8, 1.2]), constraints.real)
SIMPLEX = Argument(np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]), constraints.simplex, 1, (DIRICHLET,))
CATEGORY_LOGITS = Argument(np.array([[0.2, 0.5, -0.3], [0.6, -1.0, 0.3]]), constraints.real_vector, 1)
RATE = Argument(np.array([1.5, 4.0]), constraints.positive, 0, (GAMMA,))
LOC = Argument(np.array([-0.5, 1.75]), constraints.real, 0, (dist.Normal(0.75, 0.5),))
SCALE = Argument(
    np.array([0.8, 1.5]),
    constraints.positive,
    0,
    (dist.HalfNormal(0.4), dist.HalfCauchy(0.3), dist.InverseGamma(3.0, 2.0)),
)
COVARIANCES = np.array([[[1.0, 0.3], [0.3, 0.6]], [[2.0, -0.5], [-0.5, 1.0]]])
VECTOR_LOC = Argument(
    np.array([[-0.5, 0.25], [1.75, -1.0]]),
    constraints.real_vector,
    1,
    (
        dist.Normal(jnp.array([0.5, -0.25]), jnp.array([0.5, 1.5])).to_event(1),
        dist.MultivariateNormal(jnp.array([0.5, -0.25]), jnp.array([[1.0, 0.4], [0.4, 0.5]])),
    ),
)
COVARIANCE = Argument(
    COVARIANCES,
    constraints.positive_definite,
    2,
    (dist.InverseWishart(5.0, scale_matrix=jnp.array([[2.0, 0.3], [0.3, 1.0]])),),
)
PRECISION = Argument(
    np.linalg.inv(COVARIANCES),
    constraints.positive_definite,
    2,
    (dist.Wishart(6.0, rate_matrix=jnp.array([[2.0, 0.3], [0.3, 1.0]])),),
)
TRIL = Argument(np.linalg.cholesky(COVARIANCES), constraints.lower_cholesky, 2)


def softmax(v):
    return np.exp(v) / np.exp(v).sum()


def expit(v):
    return 1 / (1 + np.exp(-v))


def tril(v):
    return np.array([[np.exp(v[0]), 0.0], [v[1], np.exp(v[2])]])


def pairs(rng):
    return dyadic(rng.normal(size=(ROWS, 2)) @ np.array([[1.2, 0.4], [0.0, 0.7]]) + rng.choice([-1.0, 2.0], (ROWS, 1)))


def multinomial(rng):
    return np.stack([rng.multinomial(TRIALS, p) for p in rng.dirichlet(np.ones(3), ROWS)])


def gaussian(argument, spread, back):
    """A MultivariateNormal case in one of its three parameterisations."""
    return Case(
        lambda a: dist.MultivariateNormal(a["loc"], **{argument: a[argument]}),
        {"loc": VECTOR_LOC, argument: spread},
        pairs,
        lambda x, a: scipy.stats.multivariate_normal.logpdf(x, a["loc"], back(a[argument])),
        (5, lambda v: {"loc": v[:2], argument: _spread(argument, tril(v[2:]))}),
        shifts=True,
    )


def _spread(argument, root):
    covariance = root @ root.T
    return {"covariance_matrix": covariance, "precision_matrix": np.linalg.inv(covariance), "scale_tril": root}[
        argument
    ]


CASES = {
    "BernoulliProbs": Case(
        lambda a: dist.Bernoulli(probs=a["probs"]),
        {"probs": PROBS},
        lambda rng: rng.integers(0, 2, ROWS),
        lambda x, a: scipy.stats.bernoulli.logpmf(x, a["probs"]),
        (1, lambda v: {"probs": expit(v[0])}),
    ),
    "BernoulliLogits": Case(
        lambda a: dist.Bernoulli(logits=a["logits"]),
        {"logits": LOGITS},
        lambda rng: rng.integers(0, 2, ROWS),
        lambda x, a: scipy.stats.bernoulli.logpmf(x, expit(a["logits"])),
        (1, lambda v: {"logits": v[0]}),
    ),
    "BinomialProbs": Case(
        lambda a: dist.Binomial(TRIALS, probs=a["probs"]),
        {"probs": PROBS},
        lambda rng: rng.integers(0, TRIALS + 1, ROWS),
        lambda x, a: scipy.stats.binom.logpmf(x, TRIALS, a["probs"]),
        (1, lambda v: {"probs": expit(v[0])}),
    ),
    "BinomialLogits": Case(
        lambda a: dist.Binomial(TRIALS, logits=a["logits"]),
        {"logits": LOGITS},
        lambda rng: rng.integers(0, TRIALS + 1, ROWS),
        lambda x, a: scipy.stats.binom.logpmf(x, TRIALS, expit(a["logits"])),
        (1, lambda v: {"logits": v[0]}),
    ),
    "CategoricalProbs": Case(
        lambda a: dist.Categorical(probs=a["probs"]),
        {"probs": SIMPLEX},
        lambda rng: rng.integers(0, 3, ROWS),
        lambda x, a: np.log(a["probs"])[x],
        (3, lambda v: {"probs": softmax(v)}),
    ),
    "CategoricalLogits": Case(
        lambda a: dist.Categorical(logits=a["logits"]),
        {"logits": CATEGORY_LOGITS},
        lambda rng: rng.integers(0, 3, ROWS),
        lambda x, a: np.log(softmax(a["logits"]))[x],
        (3, lambda v: {"logits": np.log(softmax(v))}),
    ),
    "MultinomialProbs": Case(
        lambda a: dist.Multinomial(TRIALS, probs=a["probs"]),
        {"probs": SIMPLEX},
        multinomial,
        lambda x, a: scipy.stats.multinomial.logpmf(x, TRIALS, a["probs"]),
        (3, lambda v: {"probs": softmax(v)}),
    ),
    "MultinomialLogits": Case(
        lambda a: dist.Multinomial(TRIALS, logits=a["logits"]),
        {"logits": CATEGORY_LOGITS},
        multinomial,
        lambda x, a: scipy.stats.multinomial.logpmf(x, TRIALS, softmax(a["logits"])),
        (3, lambda v: {"logits": np.log(softmax(v))}),
    ),
    "Poisson": Case(
        lambda a: dist.Poisson(a["rate"]),
        {"rate": RATE},
        lambda rng: rng.poisson(rng.choice([1.0, 6.0], ROWS)),
        lambda x, a: scipy.stats.poisson.logpmf(x, a["rate"]),
        (1, lambda v: {"rate": np.exp(v[0])}),
    ),
    "Exponential": Case(
        lambda a: dist.Exponential(a["rate"]),
        {"rate": RATE},
        lambda rng: rng.exponential(rng.choice([0.2, 1.0], ROWS)),
        lambda x, a: scipy.stats.expon.logpdf(x, scale=1 / a["rate"]),
        (1, lambda v: {"rate": np.exp(v[0])}),
    ),
    "Normal": Case(
        lambda a: dist.Normal(a["loc"], a["scale"]),
        {"loc": LOC, "scale": SCALE},
        lambda rng: dyadic(rng.normal(size=ROWS) + rng.choice([-1.0, 2.0], ROWS)),
        lambda x, a: scipy.stats.norm.logpdf(x, a["loc"], a["scale"]),
        (2, lambda v: {"loc": v[0], "scale": np.exp(v[1])}),
        shifts=True,
    ),
    "MultivariateNormal covariance": gaussian("covariance_matrix", COVARIANCE, lambda m: m),
    "MultivariateNormal precision": gaussian("precision_matrix", PRECISION, np.linalg.inv),
    "MultivariateNormal tril": gaussian("scale_tril", TRIL, lambda m: m @ m.T),
}


def prior_class(prior):
    """Class of a prior, seen through ``to_event``."""
    return type(prior.base_dist if isinstance(prior, dist.Independent) else prior)


VARIANTS = [
    (case, name, variant)
    for case, one in CASES.items()
    for name, argument in one.arguments.items()
    for variant in ("free", "tied", *(prior_class(prior).__name__ for prior in argument.priors))
]


def test_every_registered_update_and_prior_has_a_case():
    """The table leaves out no argument and no conjugate prior of its families."""
    seen = set()
    for case in CASES.values():
        kind = type(case.build({n: jnp.asarray(a.values) for n, a in case.arguments.items()}))
        for name, argument in case.arguments.items():
            seen.add((kind, name, None))
            seen |= {(kind, name, prior_class(prior)) for prior in argument.priors}
    table = {kind for kind, _, _ in seen}
    for family in registered_families():
        for kind in table.intersection(family.distributions):  # the others are in test_families
            takes = set(kind.arg_constraints)
            for name, update in family.updates.items():
                if name in takes:
                    assert (kind, name, None) in seen
                    for prior in update.priors:
                        assert (kind, name, prior) in seen


# ----------------------------------------------------------------------------------------------- shared pieces


def model(x, weight, name, variant, components=K):
    """A mixture of one family; argument ``variant`` says how each argument is written."""
    case = CASES[name]
    probabilities = jnp.asarray(WEIGHTS if components == K else np.ones(1))
    values = {}
    for argument, one in case.arguments.items():
        how = dict(variant).get(argument, "free")
        start, prior = jnp.asarray(one.values[:components]), prior_of(one, how)
        if how == "tied":
            values[argument] = numpyro.param(argument, start[0], constraint=one.constraint)
        elif prior is None:
            values[argument] = numpyro.param(argument, start, constraint=one.constraint)
        else:
            values[argument] = numpyro.sample(argument, prior.expand([components]).to_event(1))
    tied = {argument for argument, how in variant if how == "tied"}
    with numpyro.plate("rows", len(x)), numpyro.handlers.scale(scale=weight):
        z = numpyro.sample("z", dist.Categorical(probabilities))
        numpyro.sample("x", case.build({n: v if n in tied else v[z] for n, v in values.items()}), obs=x)


def prior_of(argument, how):
    """The prior of an argument in a variant that is named after it."""
    return next((prior for prior in argument.priors if prior_class(prior).__name__ == how), None)


def start_of(case, argument, variant, shift=0.0):
    """Current value of one argument."""
    values = case.arguments[argument].values + (shift if argument == "loc" else 0.0)
    return values[0] if variant == "tied" else values


def update(x, weight, name, variant, params, fixed=None, components=K, held=None):
    """One M-step, by the derived closed forms; the rule that gave each parameter."""
    program, leaves = program_of(
        model, x, weight, name, variant, components, fixed=dict(fixed or {}), held=dict(held or {})
    )

    def step(params, leaves):
        posterior = estep.e_step(program.model, params, leaves)
        found, statistics = estep.from_posterior(program.model, params, posterior, leaves)
        return program.m_step(params, found, leaves, statistics), posterior.log_likelihood

    new, log_likelihood = jax.jit(step)(params, leaves)
    return new, log_likelihood, program.rules


def component_log_probs(case, x, values, tied=()):
    """NumPyro's log density of every row under every component: ``(K, rows)``."""
    with jax.numpy_rank_promotion("allow"):
        spread = {n: v[None, None] if n in tied else v[:, None] for n, v in values.items()}
        x = jnp.asarray(x)
        rows = jnp.broadcast_to(x, (K, *x.shape))  # NumPyro's MultivariateNormal broadcasts no values
        return jnp.broadcast_to(case.build(spread).log_prob(rows), (K, ROWS))


# ------------------------------------------------------------------------------------------------ the contract


def far_too(rows):
    """Rows near the origin and, where data have a location and no prior ties them to the origin, far from it."""
    near = [(*row, 0.0) for row in rows]
    return near + [
        (*row, FAR) for row in rows if CASES[row[0]].shifts and row[-1] not in ("Normal", "MultivariateNormal")
    ]


@pytest.mark.parametrize("name, argument, how, shift", far_too(VARIANTS))
def test_solution_has_zero_gradient(name, argument, how, shift):
    """Q plus log prior, from NumPyro's own densities, is stationary at the update, the other arguments frozen."""
    case = CASES[name]
    x, weight = (
        case.data(np.random.default_rng(1)) + (shift if shift else 0),
        np.random.default_rng(2).uniform(0.5, 2, ROWS),
    )
    variant = ((argument, how),)
    start = {n: jnp.asarray(start_of(case, n, how if n == argument else "free", shift)) for n in case.arguments}
    fixed = {n: v for n, v in start.items() if n != argument}
    new, _, rules = update(x, weight, name, variant, {argument: start[argument]}, fixed)
    assert rules[argument].kind == "closed form"
    tied = {argument} if how == "tied" else set()
    log_joint = component_log_probs(case, x, start, tied) + jnp.log(WEIGHTS)[:, None]
    responsibility = jax.nn.softmax(log_joint, 0) * weight[None, :]
    prior = prior_of(case.arguments[argument], how)

    def objective(values):
        total = jnp.sum(responsibility * component_log_probs(case, x, {**start, **values}, tied))
        if prior is not None:
            with jax.numpy_rank_promotion("allow"):
                total += jnp.sum(prior.log_prob(values[argument]))
        return total

    supports = {argument: case.arguments[argument].constraint}
    at_start = unconstrained_gradient(objective, {argument: start[argument]}, supports)[argument]
    at_solution = unconstrained_gradient(objective, new, supports)[argument]
    assert np.abs(at_start).max() > 0.1, "the start is no test"
    assert np.abs(at_solution).max() <= 1e-8 * np.abs(at_start).max()
    assert objective(new) > objective(start)


SOME = (("Normal", "loc"), ("CategoricalProbs", "probs"))


@pytest.mark.parametrize(
    "name, argument",
    [
        pytest.param(name, argument, marks=() if (name, argument) in SOME else pytest.mark.slow)
        for name, case in CASES.items()
        for argument, one in case.arguments.items()
        if one.event_rank < 2  # matrices are fixed all or none, which an error says
    ],
)
def test_partly_fixed_arrays(name, argument):
    """The first component's value is fixed and stays; the second one's is that of the free update."""
    case = CASES[name]
    x, weight = case.data(np.random.default_rng(1)), np.random.default_rng(2).uniform(0.5, 2, ROWS)
    start = {n: jnp.asarray(start_of(case, n, "free")) for n in case.arguments}
    fixed = {n: v for n, v in start.items() if n != argument}
    held = np.full(start[argument].shape, np.nan)
    held[0] = start[argument][0]
    free, _, _ = update(x, weight, name, (), {argument: start[argument]}, fixed)
    new, _, rules = update(x, weight, name, (), {argument: start[argument]}, fixed, held={argument: held})
    assert rules[argument].kind == "closed form"
    np.testing.assert_array_equal(new[argument][0], held[0])
    np.testing.assert_allclose(new[argument][1], free[argument][1], rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_single_component_equals_scipy(name):
    """With one component and row weights, the update is scipy's direct maximum of the weighted likelihood."""
    case = CASES[name]
    x, weight = case.data(np.random.default_rng(3)), np.random.default_rng(4).uniform(0.5, 2, ROWS)
    start = {n: jnp.asarray(a.values[:1]) for n, a in case.arguments.items()}
    new, log_likelihood, _ = update(x, weight, name, (), start, components=1)
    first = {n: np.asarray(a.values[0]) for n, a in case.arguments.items()}
    np.testing.assert_allclose(log_likelihood, np.sum(weight * case.logpdf(x, first)), rtol=1e-12)
    size, arguments = case.scalars
    found = scipy.optimize.minimize(
        lambda v: -np.sum(weight * case.logpdf(x, arguments(v))), np.zeros(size), method="BFGS", options={"gtol": 1e-8}
    )
    got = {n: np.asarray(v[0]) for n, v in new.items()}
    assert np.sum(weight * case.logpdf(x, got)) >= -found.fun - 1e-9
    best = arguments(found.x)
    for n, value in got.items():
        centred = value - np.mean(value) if n == "logits" and value.ndim else value
        wanted = best[n] - np.mean(best[n]) if n == "logits" and value.ndim else best[n]
        np.testing.assert_allclose(centred, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_weighted_rows_equal_replicated_rows(name):
    """Integer weights give the log-likelihood and the update of rows repeated that many times."""
    case, rng = CASES[name], np.random.default_rng(5)
    x, weight = case.data(rng), rng.integers(0, 4, ROWS)
    start = {n: jnp.asarray(a.values) for n, a in case.arguments.items()}
    repeated = np.repeat(x, weight, 0)
    once, value, _ = update(x, weight.astype(float), name, (), start)
    twice, direct, _ = update(repeated, np.ones(len(repeated)), name, (), start)
    np.testing.assert_allclose(value, direct, rtol=1e-12)
    for n in once:
        np.testing.assert_allclose(once[n], twice[n], rtol=1e-10, atol=1e-12)


def summed(family, x, weight, arguments, fixed):
    """Moments of weighted data about their own reference, without any model."""
    mean = lambda q: jnp.mean(q, 0, keepdims=True)  # noqa: E731
    reference = family.reference(x, mean)
    statistics = family.statistics(x, fixed, reference)
    sums, count = jnp.sum(weight[:, None] * statistics, 0, keepdims=True), jnp.sum(weight, keepdims=True)
    return family.moments(sums, count, reference)


def family_of_case(case):
    """The registry entry of a case, with one component's arguments and what is fixed."""
    arguments = {n: jnp.asarray(a.values[:1]) for n, a in case.arguments.items()}
    built = type(case.build(arguments))
    family = next(f for f in registered_families() if built in f.distributions)
    fixed = {"total_count": jnp.full((1,), TRIALS)} if "total_count" in family.fixed else {}
    return family, arguments, {**fixed, "categories": 3}


@pytest.mark.parametrize("name", CASES)
def test_quantities_of_a_split_add_up(name):
    """Every quantity of every update, from two halves with references of their own, adds up to the whole's."""
    case, rng = CASES[name], np.random.default_rng(6)
    x, weight = jnp.asarray(case.data(rng)), jnp.asarray(rng.uniform(0.5, 2, ROWS))
    family, arguments, fixed = family_of_case(case)
    cut = ROWS // 3
    whole = summed(family, x, weight, arguments, fixed)
    parts = [summed(family, x[s], weight[s], arguments, fixed) for s in (slice(None, cut), slice(cut, None))]
    for argument in case.arguments:
        for contributions in family.updates[argument].contributions:
            total = contributions(whole, arguments, arguments[argument])
            pieces = [contributions(part, arguments, arguments[argument]) for part in parts]
            for key, value in total.items():
                np.testing.assert_allclose(pieces[0][key] + pieces[1][key], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "name, shift", [(name, shift) for name, case in CASES.items() for shift in (0.0, FAR)[: 1 + case.shifts]]
)
def test_natural_form_equals_log_prob(name, shift):
    """Statistics times natural parameters plus offset and base measure is NumPyro's log density.

    Far from the origin the table must be that of the unshifted data: the shift is exact in binary.
    """
    case = CASES[name]
    x = jnp.asarray(case.data(np.random.default_rng(7)))
    expected = component_log_probs(case, x, {n: jnp.asarray(a.values) for n, a in case.arguments.items()})
    family, _, fixed = family_of_case(case)
    arguments = {n: jnp.asarray(start_of(case, n, "free", shift))[:, None] for n in case.arguments}
    x = x[None] + (shift if shift else 0)
    fixed = {n: v[None] if n == "total_count" else v for n, v in fixed.items()}
    reference = family.reference(x, lambda q: jnp.mean(q, 1, keepdims=True))
    statistics = family.statistics(x, fixed, reference)
    natural, offset = family.natural(arguments, reference)
    table = jnp.sum(natural * statistics, -1) + offset + family.base_measure(x, fixed)
    np.testing.assert_allclose(table, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.shifts])
def test_update_is_equivariant_to_translation(name):
    """Moving data and locations by a million moves the updated locations by as much and the scales not at all."""
    case, rng = CASES[name], np.random.default_rng(8)
    x, weight = case.data(rng), rng.uniform(0.5, 2, ROWS)
    near, value, _ = update(x, weight, name, (), {n: jnp.asarray(start_of(case, n, "free")) for n in case.arguments})
    shifted = {n: jnp.asarray(start_of(case, n, "free", FAR)) for n in case.arguments}
    far, far_value, _ = update(x + FAR, weight, name, (), shifted)
    np.testing.assert_allclose(far_value, value, rtol=1e-10)
    for n in near:
        # A location near 2**20 is itself only a multiple of 2**-32.
        np.testing.assert_allclose(far[n] - (FAR if n == "loc" else 0), near[n], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_float32_update_is_close_to_float64(name):
    """In float32 the update agrees with float64 on the same data to the square root of float32's epsilon."""
    case, rng = CASES[name], np.random.default_rng(9)
    x = case.data(rng)
    x = x.astype(np.float32).astype(np.float64) + (1024 if case.shifts else 0) if x.dtype.kind == "f" else x
    weight = np.float32(rng.uniform(0.5, 2, ROWS)).astype(float)
    start = {n: start_of(case, n, "free", 1024.0) for n in case.arguments}
    exact, value, _ = update(x, weight, name, (), {n: jnp.asarray(v) for n, v in start.items()})
    with jax.enable_x64(False):
        small = {n: jnp.asarray(v, jnp.float32) for n, v in start.items()}
        rough, rough_value, _ = update(
            np.float32(x) if x.dtype.kind == "f" else x.astype(np.int32), np.float32(weight), name, (), small
        )
        rough = {n: np.asarray(v) for n, v in rough.items()}
        assert all(v.dtype == np.float32 for v in rough.values())
        rough_value = float(rough_value)
    tolerance = float(np.sqrt(np.finfo(np.float32).eps))
    np.testing.assert_allclose(rough_value, value, rtol=tolerance)
    for n in exact:
        np.testing.assert_allclose(rough[n].astype(float), exact[n], rtol=tolerance, atol=tolerance)


def test_empty_component_keeps_its_parameters():
    """A component with exactly zero responsibility keeps its values instead of becoming NaN."""
    x, weight = np.array([0.0, 1.0, 2.0]), np.ones(3)
    pooled_update = functools.partial(update, x, weight, "Normal", ())
    new, _, _ = pooled_update({"loc": jnp.array([1.0, 1e4]), "scale": jnp.array([1.0, 2.0])})
    np.testing.assert_allclose(new["loc"], [1.0, 1e4], rtol=1e-12)
    np.testing.assert_allclose(new["scale"], [np.sqrt(2 / 3), 2.0], rtol=1e-12)
