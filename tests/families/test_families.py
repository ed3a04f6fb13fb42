"""One contract for every family without a table of its own in ``test_closed_form``, one compiled M-step per family.

The oracle is NumPyro's ``log_prob`` with responsibilities computed here by Bayes' rule, scipy's densities under scipy's
optimiser, and replication. Newton steps solve the likelihood equations, so that the gradient must vanish to rounding.
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
import scipy.special
import scipy.stats
from numpyro.distributions import biject_to, constraints

from emppl import estep
from tests.kit.brute_force import unconstrained_gradient
from tests.kit.fits import fit, program_of

ROWS, K = 80, 2
WEIGHTS = np.array([0.4, 0.6])
FIRST = np.arange(ROWS) % 5 < 2  # which rows come from the first component


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One family.

    Attributes:
        build: arguments by name -> distribution.
        arguments: by name the values of two components and the constraint.
        data: random generator, component -> values of all rows.
        logpdf: scipy's log density at ``(data, arguments)`` of one component, or None.
    """

    build: Callable
    arguments: dict
    data: Callable
    logpdf: Callable | None = None


POSITIVE, REAL, UNIT = constraints.positive, constraints.real, constraints.unit_interval
SHAPES = ([2.0, 6.0], POSITIVE)
LOC, SCALE = ([-1.0, 2.0], REAL), ([1.5, 0.7], POSITIVE)
stats = scipy.stats


def negative_binomial(rng, k):
    return rng.negative_binomial(*[(2.0, 0.4), (6.0, 0.3)][k], ROWS)


def zero_inflated(rng, k):
    return np.where(rng.random(ROWS) < [0.3, 0.1][k], 0, rng.poisson([2.0, 7.0][k], ROWS))


def student(rng, k):
    return [-2.0, 3.0][k] + rng.standard_t([3, 8][k], ROWS)


def location(rng, k):
    return [-2.0, 3.0][k] + [1.0, 0.6][k] * rng.gumbel(size=ROWS)


def mixed_zero(x, gate, log_base):
    return np.where(x == 0, np.log(gate + (1 - gate) * np.exp(log_base)), np.log1p(-gate) + log_base)


def tobit(x, a):
    return np.where(CENSORED, stats.norm.logsf(x, a["loc"], a["scale"]), stats.norm.logpdf(x, a["loc"], a["scale"]))


def check_loss(residual, scale, quantile):
    """Koenker and Bassett's check function as a log density."""
    return np.log(quantile * (1 - quantile) / scale) - residual / scale * (quantile - (residual < 0))


CENSORED = np.arange(ROWS) % 7 == 3

CASES = {
    "Gamma": Case(
        lambda a: dist.Gamma(a["concentration"], a["rate"]),
        {"concentration": SHAPES, "rate": ([1.0, 1.0], POSITIVE)},
        lambda rng, k: rng.gamma([1.5, 8.0][k], 1.0, ROWS),
        lambda x, a: stats.gamma.logpdf(x, a["concentration"], scale=1 / a["rate"]),
    ),
    "InverseGamma": Case(
        lambda a: dist.InverseGamma(a["concentration"], a["rate"]),
        {"concentration": SHAPES, "rate": ([1.0, 1.0], POSITIVE)},
        lambda rng, k: 1 / rng.gamma([1.5, 8.0][k], 1.0, ROWS),
        lambda x, a: stats.invgamma.logpdf(x, a["concentration"], scale=a["rate"]),
    ),
    "Chi2": Case(
        lambda a: dist.Chi2(a["df"]),
        {"df": SHAPES},
        lambda rng, k: rng.chisquare([3.0, 9.0][k], ROWS),
        lambda x, a: stats.chi2.logpdf(x, a["df"]),
    ),
    "Beta": Case(
        lambda a: dist.Beta(a["concentration1"], a["concentration0"]),
        {"concentration1": SHAPES, "concentration0": ([4.0, 2.0], POSITIVE)},
        lambda rng, k: rng.beta([2.0, 9.0][k], [6.0, 2.0][k], ROWS),
        lambda x, a: stats.beta.logpdf(x, a["concentration1"], a["concentration0"]),
    ),
    "Dirichlet": Case(
        lambda a: dist.Dirichlet(a["concentration"]),
        {"concentration": ([[1.0, 2.0, 3.0], [4.0, 2.0, 1.0]], constraints.independent(POSITIVE, 1))},
        lambda rng, k: rng.dirichlet([[1.0, 2.0, 5.0], [6.0, 2.0, 2.0]][k], ROWS),
        lambda x, a: stats.dirichlet.logpdf(x.T, a["concentration"]),
    ),
    "VonMises": Case(
        lambda a: dist.VonMises(a["loc"], a["concentration"]),
        {"loc": ([0.0, 2.0], REAL), "concentration": SHAPES},
        lambda rng, k: rng.vonmises([0.5, 2.0][k], [2.0, 8.0][k], ROWS),
        lambda x, a: stats.vonmises.logpdf(x, a["concentration"], a["loc"]),
    ),
    "HalfNormal": Case(
        lambda a: dist.HalfNormal(a["scale"]),
        {"scale": SCALE},
        lambda rng, k: np.abs(rng.normal(size=ROWS)) * [0.3, 2.0][k],
        lambda x, a: stats.halfnorm.logpdf(x, scale=a["scale"]),
    ),
    "LogNormal": Case(
        lambda a: dist.LogNormal(a["loc"], a["scale"]),
        {"loc": LOC, "scale": SCALE},
        lambda rng, k: np.exp([-2.0, 3.0][k] + rng.normal(size=ROWS)),
        lambda x, a: stats.lognorm.logpdf(x, a["scale"], scale=np.exp(a["loc"])),
    ),
    "GeometricProbs": Case(
        lambda a: dist.GeometricProbs(a["probs"]),
        {"probs": ([0.3, 0.6], UNIT)},
        lambda rng, k: rng.geometric([0.2, 0.7][k], ROWS) - 1,
        lambda x, a: stats.geom.logpmf(x + 1, a["probs"]),
    ),
    "GeometricLogits": Case(
        lambda a: dist.GeometricLogits(a["logits"]),
        {"logits": LOC},
        lambda rng, k: rng.geometric([0.2, 0.7][k], ROWS) - 1,
        lambda x, a: stats.geom.logpmf(x + 1, scipy.special.expit(a["logits"])),
    ),
    "Weibull": Case(
        lambda a: dist.Weibull(a["scale"], a["concentration"]),
        {"scale": ([1.0, 5.0], POSITIVE), "concentration": SHAPES},
        lambda rng, k: [1.0, 5.0][k] * rng.weibull([1.5, 4.0][k], ROWS),
        lambda x, a: stats.weibull_min.logpdf(x, a["concentration"], scale=a["scale"]),
    ),
    "Gumbel": Case(
        lambda a: dist.Gumbel(a["loc"], a["scale"]),
        {"loc": LOC, "scale": SCALE},
        location,
        lambda x, a: stats.gumbel_r.logpdf(x, a["loc"], a["scale"]),
    ),
    "Logistic, log of the scale": Case(
        lambda a: dist.Logistic(a["loc"], jnp.exp(a["log_scale"])),
        {"loc": LOC, "log_scale": ([0.4, -0.3], REAL)},
        location,
        lambda x, a: stats.logistic.logpdf(x, a["loc"], np.exp(a["log_scale"])),
    ),
    "StudentT": Case(
        lambda a: dist.StudentT(a["df"], a["loc"], a["scale"]),
        {"df": ([4.0, 5.0], POSITIVE), "loc": LOC, "scale": SCALE},
        student,
        lambda x, a: stats.t.logpdf(x, a["df"], a["loc"], a["scale"]),
    ),
    "Cauchy": Case(
        lambda a: dist.Cauchy(a["loc"], a["scale"]),
        {"loc": LOC, "scale": SCALE},
        student,
        lambda x, a: stats.cauchy.logpdf(x, a["loc"], a["scale"]),
    ),
    "NegativeBinomial2": Case(
        lambda a: dist.NegativeBinomial2(a["mean"], a["concentration"]),
        {"mean": ([2.0, 9.0], POSITIVE), "concentration": SHAPES},
        negative_binomial,
        lambda x, a: stats.nbinom.logpmf(x, a["concentration"], a["concentration"] / (a["concentration"] + a["mean"])),
    ),
    "NegativeBinomialProbs": Case(
        lambda a: dist.NegativeBinomialProbs(a["total_count"], a["probs"]),
        {"total_count": SHAPES, "probs": ([0.5, 0.6], UNIT)},
        negative_binomial,
        lambda x, a: stats.nbinom.logpmf(x, a["total_count"], 1 - a["probs"]),
    ),
    "NegativeBinomialLogits": Case(
        lambda a: dist.NegativeBinomialLogits(a["total_count"], a["logits"]),
        {"total_count": SHAPES, "logits": ([0.5, 0.6], REAL)},
        negative_binomial,
        lambda x, a: stats.nbinom.logpmf(x, a["total_count"], scipy.special.expit(-a["logits"])),
    ),
    "GammaPoisson": Case(
        lambda a: dist.GammaPoisson(a["concentration"], a["rate"]),
        {"concentration": SHAPES, "rate": ([1.0, 0.5], POSITIVE)},
        negative_binomial,
        lambda x, a: stats.nbinom.logpmf(x, a["concentration"], a["rate"] / (1 + a["rate"])),
    ),
    "BetaBinomial": Case(
        lambda a: dist.BetaBinomial(a["concentration1"], a["concentration0"], 12),
        {"concentration1": SHAPES, "concentration0": ([4.0, 2.0], POSITIVE)},
        lambda rng, k: rng.binomial(12, rng.beta([2.0, 9.0][k], [6.0, 2.0][k], ROWS)),
        lambda x, a: stats.betabinom.logpmf(x, 12, a["concentration1"], a["concentration0"]),
    ),
    "DirichletMultinomial": Case(
        lambda a: dist.DirichletMultinomial(a["concentration"], 15),
        {"concentration": ([[1.0, 2.0, 3.0], [4.0, 2.0, 1.0]], constraints.independent(POSITIVE, 1))},
        lambda rng, k: np.stack(
            [rng.multinomial(15, p) for p in rng.dirichlet([[1.0, 2.0, 5.0], [6.0, 2.0, 2.0]][k], ROWS)]
        ),
        lambda x, a: stats.dirichlet_multinomial.logpmf(x, a["concentration"], 15),
    ),
    "ZeroInflatedPoisson": Case(
        lambda a: dist.ZeroInflatedPoisson(a["gate"], a["rate"]),
        {"gate": ([0.3, 0.4], UNIT), "rate": SHAPES},
        zero_inflated,
        lambda x, a: mixed_zero(x, a["gate"], stats.poisson.logpmf(x, a["rate"])),
    ),
    "ZeroInflated NegativeBinomial2": Case(
        lambda a: dist.ZeroInflatedDistribution(dist.NegativeBinomial2(a["mean"], 3.0), gate=a["gate"]),
        {"gate": ([0.3, 0.4], UNIT), "mean": SHAPES},
        zero_inflated,
        lambda x, a: mixed_zero(x, a["gate"], stats.nbinom.logpmf(x, 3.0, 3.0 / (3.0 + a["mean"]))),
    ),
    "TruncatedNormal": Case(
        lambda a: dist.TruncatedNormal(a["loc"], a["scale"], low=0.0),
        {"loc": ([1.0, 4.0], REAL), "scale": SCALE},
        lambda rng, k: stats.truncnorm.rvs(-1.0, np.inf, [1.0, 4.0][k], 1.0, ROWS, random_state=rng),
        lambda x, a: stats.truncnorm.logpdf(x, -a["loc"] / a["scale"], np.inf, a["loc"], a["scale"]),
    ),
    "RightCensored Normal": Case(
        lambda a: dist.RightCensoredDistribution(
            dist.Normal(a["loc"], a["scale"]), jnp.asarray(CENSORED[: len(CENSORED)], float)
        ),
        {"loc": LOC, "scale": SCALE},
        student,
        tobit,
    ),
    "MultivariateStudentT": Case(
        lambda a: dist.MultivariateStudentT(4.0, a["loc"], a["scale_tril"]),
        {
            "loc": ([[-1.0, 0.0], [2.0, 1.0]], constraints.real_vector),
            "scale_tril": (
                np.linalg.cholesky([[[1.0, 0.3], [0.3, 0.6]], [[2.0, -0.5], [-0.5, 1.0]]]),
                constraints.lower_cholesky,
            ),
        },
        lambda rng, k: [-2.0, 3.0][k] + rng.standard_t(4, (ROWS, 2)) @ np.array([[1.2, 0.4], [0.0, 0.7]]),
        lambda x, a: stats.multivariate_t.logpdf(x, a["loc"], a["scale_tril"] @ a["scale_tril"].T, 4.0),
    ),
    "LowRankMultivariateNormal": Case(
        lambda a: dist.LowRankMultivariateNormal(a["loc"], a["cov_factor"], a["cov_diag"]),
        {
            "loc": ([[-1.0, 0.0, 1.0], [2.0, 1.0, 0.0]], constraints.real_vector),
            # Small enough that, if it is frozen, no variance of the data is below its square: cov_diag would be zero.
            "cov_factor": (np.array([[[0.6], [0.5], [0.4]], [[0.5], [0.6], [0.7]]]), constraints.real_matrix),
            "cov_diag": ([[1.0, 0.8, 0.7], [0.5, 0.6, 0.9]], constraints.independent(POSITIVE, 1)),
        },
        lambda rng, k: (
            [-2.0, 3.0][k] + rng.normal(size=(ROWS, 1)) * [1.2, 0.9, 0.8] + rng.normal(size=(ROWS, 3)) * [0.7, 0.6, 0.8]
        ),
        lambda x, a: stats.multivariate_normal.logpdf(
            x, a["loc"], a["cov_factor"] @ a["cov_factor"].T + np.diag(a["cov_diag"])
        ),
    ),
    "Pareto": Case(
        lambda a: dist.Pareto(0.5, a["alpha"]),
        {"alpha": SHAPES},
        lambda rng, k: 0.5 * (1 + rng.pareto([1.0, 4.0][k], ROWS)),
        lambda x, a: stats.pareto.logpdf(x, a["alpha"], scale=0.5),
    ),
    "AsymmetricLaplace": Case(
        lambda a: dist.AsymmetricLaplace(0.5, a["scale"], a["asymmetry"]),
        {"scale": SCALE, "asymmetry": SHAPES},
        lambda rng, k: 0.5 + rng.laplace([-0.7, 2.0][k], [1.0, 0.5][k], ROWS),
        lambda x, a: stats.laplace_asymmetric.logpdf(x, a["asymmetry"], 0.5, a["scale"]),
    ),
    "AsymmetricLaplaceQuantile": Case(
        lambda a: dist.AsymmetricLaplaceQuantile(0.5, a["scale"], a["quantile"]),
        {"scale": SCALE, "quantile": ([0.3, 0.6], UNIT)},
        lambda rng, k: 0.5 + rng.laplace([-0.7, 2.0][k], [1.0, 0.5][k], ROWS),
        lambda x, a: check_loss(x - 0.5, a["scale"], a["quantile"]),
    ),
    "Kumaraswamy": Case(
        lambda a: dist.Kumaraswamy(a["concentration1"], a["concentration0"]),
        {"concentration1": SHAPES, "concentration0": ([4.0, 2.0], POSITIVE)},
        lambda rng, k: rng.beta([2.0, 9.0][k], [6.0, 2.0][k], ROWS),
    ),
}
QUICK = ("Gamma Beta VonMises LogNormal GeometricProbs Weibull StudentT ZeroInflatedPoisson TruncatedNormal").split()
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES]


def data_of(case, seed):
    rng = np.random.default_rng(seed)
    first, second = case.data(rng, 0), case.data(rng, 1)
    return np.where(FIRST if first.ndim == 1 else FIRST[:, None], first, second)


def start_of(case):
    return {n: jnp.asarray(np.asarray(values)) for n, (values, _) in case.arguments.items()}


def model(x, weight, name, tied=(), priors=()):
    """A mixture of one family; tied arguments are shared by the components."""
    case, values = CASES[name], {}
    for n, start in start_of(case).items():
        prior = dict(priors).get(n)
        if prior is not None:
            values[n] = numpyro.sample(n, prior.expand([K]).to_event(1))
        else:
            values[n] = numpyro.param(n, start[0] if n in tied else start, constraint=case.arguments[n][1])
    with numpyro.plate("rows", len(x)), numpyro.handlers.scale(scale=weight):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS, jnp.result_type(float))))
        numpyro.sample("x", case.build({n: v if n in tied else v[z] for n, v in values.items()}), obs=x)


@functools.cache
def compiled(name, fixed=(), tied=(), priors=(), dtype="float64", held=None):
    """``step(params, x, weight)``: one M-step, compiled once per family; and the rules."""
    case = CASES[name]
    data = data_of(case, 0).astype(_kind(case, dtype)), np.ones(ROWS, dtype)
    first = {} if held is None else {held: first_cell_only(start_of(case)[held])}
    program, _ = program_of(model, *data, name, tied, priors, fixed={n: start_of(case)[n] for n in fixed}, held=first)

    by_sums = program.model.factors["x"].is_exponential and not tied

    def step(params, leaves):
        fused = program.fused
        prepared = estep.prepare(program.model, fused, leaves)
        found = estep.expectations(program.model, fused, params, leaves, prepared)
        # From rows, an M-step stops when little is left to gain; at the same weights it goes on where it stopped. A
        # tied location and the scales of the components are maximised in turn.
        again = lambda _, params: {**params, **program.m_step(params, found, leaves, prepared)}  # noqa: E731
        return jax.lax.fori_loop(0, 1 if by_sums else 100 if tied else 4, again, params)

    run = jax.jit(step)
    return lambda params, x, weight: run(params, [jnp.asarray(x), jnp.asarray(weight)]), program.rules


def first_cell_only(values):
    """The first component's value; NaN, which is free, for the other."""
    held = np.full(values.shape, np.nan)
    held[0] = values[0]
    return held


def _kind(case, dtype):
    return dtype if data_of(case, 0).dtype.kind == "f" else "int64"


def log_probs(case, x, values, tied=()):
    """NumPyro's log density of every row under every component: ``(K, rows)``."""
    with jax.numpy_rank_promotion("allow"):
        spread = {n: v[None, None] if n in tied else v[:, None] for n, v in values.items()}
        rows = jnp.broadcast_to(jnp.asarray(x), (K, *x.shape))
        return jnp.broadcast_to(case.build(spread).log_prob(rows), (K, ROWS))


def gradients(name, x, weight, start, new, tied=(), priors=()):
    """Gradient of Q plus log prior at the start and at the outcome, and both values."""
    case = CASES[name]
    joint = log_probs(case, x, start, tied) + jnp.log(WEIGHTS)[:, None]
    responsibility = jax.nn.softmax(joint, 0) * weight[None, :]
    supports = {n: case.arguments[n][1] for n in new}

    def objective(values):
        total = jnp.sum(responsibility * log_probs(case, x, {**start, **values}, tied))
        return total + sum(jnp.sum(prior.log_prob(values[n])) for n, prior in priors)

    before, after = (unconstrained_gradient(objective, {n: at[n] for n in new}, supports) for at in (start, new))
    return before, after, objective({n: start[n] for n in new}), objective(new), responsibility


def assert_stationary(name, tied=(), fixed=(), priors=()):
    case = CASES[name]
    x, weight = data_of(case, 1), np.random.default_rng(2).uniform(0.5, 2, ROWS)
    start = {n: v[0] if n in tied else v for n, v in start_of(case).items()}
    step, rules = compiled(name, fixed, tied, priors)
    free = {n: v for n, v in start.items() if n not in fixed}
    assert {rules[n].kind for n in free} <= {"closed form", "newton"}
    new = step(free, x, weight)
    before, after, low, high, _ = gradients(name, x, weight, start, new, tied, priors)
    largest = max(np.abs(g).max() for g in before.values())
    assert largest > 0.1, "the start is no test"
    assert high > low
    for n, gradient in after.items():
        assert np.abs(gradient).max() <= 1e-8 * largest, (n, gradient)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_q_is_zero_in_all_arguments_at_once(name):
    assert_stationary(name)


@pytest.mark.parametrize("name", NAMES)
def test_partly_fixed_arrays(name):
    """The first component's value of the first argument is fixed: everything else is where the gradient is zero."""
    case = CASES[name]
    x, weight = data_of(case, 1), np.random.default_rng(2).uniform(0.5, 2, ROWS)
    start, held = start_of(case), next(iter(case.arguments))
    step, _ = compiled(name, held=held)
    new = step(start, x, weight)
    np.testing.assert_array_equal(new[held][0], start[held][0])
    before, after, low, high, _ = gradients(name, x, weight, start, new)
    largest = max(np.abs(g).max() for g in before.values())
    assert high > low
    for n, gradient in after.items():
        assert np.abs(gradient[1 if n == held else 0 :]).max() <= 1e-8 * largest, (n, gradient)


@pytest.mark.parametrize("name", [p for p in NAMES if CASES[p.values[0]].logpdf is not None])
def test_equals_a_direct_maximiser(name):
    """scipy's optimiser on scipy's density, component by component, finds no better point, and the same one."""
    case = CASES[name]
    x, weight = data_of(case, 1), np.random.default_rng(2).uniform(0.5, 2, ROWS)
    start = start_of(case)
    new = compiled(name)[0](start, x, weight)
    responsibility = np.asarray(gradients(name, x, weight, start, new)[-1])
    maps = {n: biject_to(constraint) for n, (_, constraint) in case.arguments.items()}
    sizes = {n: maps[n].inv(start[n][0]).size for n in start}

    def arguments(vector):
        out, begin = {}, 0
        for n, size in sizes.items():
            shape = np.shape(maps[n].inv(start[n][0]))
            out[n] = np.asarray(maps[n](jnp.reshape(jnp.asarray(vector[begin : begin + size]), shape)))
            begin += size
        return out

    for k in range(K):

        def loss(vector, k=k):
            value = -np.sum(responsibility[k] * case.logpdf(x, arguments(vector)))
            return value if np.isfinite(value) else 1e10

        begin = np.concatenate([np.ravel(maps[n].inv(start[n][k])) for n in start])
        rough = scipy.optimize.minimize(loss, begin, method="Nelder-Mead", options={"maxiter": 400})
        found = scipy.optimize.minimize(loss, rough.x, method="BFGS", options={"gtol": 1e-7})
        mine = np.concatenate([np.ravel(maps[n].inv(new[n][k])) for n in start])
        assert loss(mine) <= found.fun + 1e-8
        best = arguments(found.x)
        for n in start:
            # BFGS on differences stops at about 1e-5; along flat directions (df of a t) a little further away.
            np.testing.assert_allclose(new[n][k], best[n], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] != "RightCensored Normal"])
def test_weighted_rows_equal_replicated_rows(name):
    """Rows with weight two, one and zero give what the rows repeated that often give."""
    case = CASES[name]
    x, weight = data_of(case, 3), np.array([2.0, 1.0, 0.0, 1.0] * (ROWS // 4))
    step, _ = compiled(name)
    once = step(start_of(case), x, weight)
    twice = step(start_of(case), np.repeat(x, weight.astype(int), 0), np.ones(ROWS))
    for n in once:
        np.testing.assert_allclose(once[n], twice[n], rtol=1e-8, atol=1e-9)


def one_at_a_time():
    """Every family with one argument tied, and with one frozen."""
    for name, case in CASES.items():
        for argument in case.arguments:
            quick = (name, argument) == ("Gamma", "concentration")
            marks = () if quick else pytest.mark.long
            if (name, argument) != ("StudentT", "loc"):  # with one centre, these data are best fitted by normal tails
                yield pytest.param(name, (argument,), (), marks=marks, id=f"{name}-{argument} tied")
            if len(case.arguments) > 1:
                yield pytest.param(name, (), (argument,), marks=marks, id=f"{name}-{argument} frozen")


@pytest.mark.parametrize("name, tied, fixed", list(one_at_a_time()))
def test_tied_and_frozen_arguments(name, tied, fixed):
    assert_stationary(name, tied, fixed)


@pytest.mark.parametrize(
    "name, priors",
    [
        ("Gamma", (("concentration", dist.LogNormal(0.5, 0.4)), ("rate", dist.Gamma(2.0, 3.0)))),
        pytest.param("Weibull", (("scale", dist.HalfCauchy(2.0)),), marks=pytest.mark.slow),
        pytest.param(
            "StudentT", (("df", dist.Gamma(2.0, 0.1)), ("loc", dist.Normal(0.0, 2.0))), marks=pytest.mark.slow
        ),
    ],
)
def test_any_smooth_prior_is_maximised_exactly(name, priors):
    assert_stationary(name, priors=priors)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "Gamma" else pytest.mark.long) for n in CASES])
def test_float32_is_close_to_float64(name):
    case = CASES[name]
    x, start = data_of(case, 4).astype(_kind(case, "float32")), start_of(case)
    exact = compiled(name)[0](start, x.astype(_kind(case, "float64")), np.ones(ROWS))
    with jax.enable_x64(False):
        small = {n: jnp.asarray(v, jnp.float32) for n, v in start.items()}
        rough = compiled(name, dtype="float32")[0](small, x, np.ones(ROWS, np.float32))
        rough = {n: np.asarray(v) for n, v in rough.items()}
    for n in exact:
        assert rough[n].dtype == np.float32
        # A maximum is as wide as the square root of the rounding of Q.
        np.testing.assert_allclose(rough[n], exact[n], rtol=3e-3)


# ------------------------------------------------------------------------- far from the origin, tiny and huge units

MOVES = {
    "Gamma": {"rate": lambda v, shift, unit: v / unit},
    "LogNormal": {"loc": lambda v, shift, unit: v + np.log(unit)},
    "Weibull": {"scale": lambda v, shift, unit: v * unit},
    "StudentT": {"loc": lambda v, shift, unit: v * unit + shift, "scale": lambda v, shift, unit: v * unit},
    "Gumbel": {"loc": lambda v, shift, unit: v * unit + shift, "scale": lambda v, shift, unit: v * unit},
    "InverseGamma": {"rate": lambda v, shift, unit: v * unit},
    "HalfNormal": {"scale": lambda v, shift, unit: v * unit},
}


@pytest.mark.parametrize(
    "name, shift, unit",
    [
        pytest.param(n, shift, unit, marks=() if n in QUICK else pytest.mark.slow)
        for n in MOVES
        for shift, unit in ((0.0, 2.0**-27), (0.0, 2.0**27), (2.0**20, 1.0))
        if not shift or "loc" in MOVES[n] and n != "LogNormal"
    ],
)
def test_solution_moves_with_the_data(name, shift, unit):
    """Data in units of 1e-8 and 1e8, and a million away from the origin: the solution of the plain data, moved."""
    case = CASES[name]
    # Multiples of 2**-20: the move is exact.
    x, weight = np.ceil(data_of(case, 1) * 2**20) / 2**20, np.random.default_rng(2).uniform(0.5, 2, ROWS)
    move = lambda n, v: MOVES[name].get(n, lambda v, *_: v)(v, shift, unit)  # noqa: E731
    step, _ = compiled(name)
    plain = step(start_of(case), x, weight)
    moved = step({n: move(n, v) for n, v in start_of(case).items()}, x * unit + shift, weight)
    for n in plain:
        # Newton steps end where Q is flat to rounding: its root away. A location of a million is known to 1e-10 only.
        rtol = np.finfo(float).eps ** 0.5 if not shift or n != "loc" else 1e-14
        np.testing.assert_allclose(moved[n], move(n, plain[n]), rtol=rtol)


@pytest.mark.slow
def test_narrow_gamma_keeps_its_digits():
    """Shape of a gamma with a spread of 1e-4 of its mean, against the same equation in long double."""
    from scipy.optimize import brentq

    rng = np.random.default_rng(12)
    x = 1e6 * (1 + 1e-4 * rng.normal(size=ROWS))

    def model(x):
        concentration = numpyro.param("concentration", 1e7, constraint=POSITIVE)
        rate = numpyro.param("rate", 10.0, constraint=POSITIVE)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("z", dist.Categorical(jnp.ones(1)))
            numpyro.sample("x", dist.Gamma(concentration, rate), obs=x)

    result = fit(model, x)
    d = (x.astype(np.longdouble) - 1000000) / 1000000
    gap = float(np.log1p(d.mean()) - np.log1p(d).mean())  # log of the mean minus mean of the log

    def equation(log_k):
        k = np.exp(log_k)
        # log k - digamma(k) for large k, to 1e-30
        return 1 / (2 * k) + 1 / (12 * k**2) - 1 / (120 * k**4) - gap

    wanted = np.exp(brentq(lambda u: equation(u) / gap, 10, 25, xtol=1e-14))
    np.testing.assert_allclose(result.params["concentration"], wanted, rtol=1e-7)
