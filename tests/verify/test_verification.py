"""Every first fit is compared with NumPyro's own density of the model; what is misread gives no result."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl
from emppl.compiled import functions
from emppl.model import log_prob_table
from emppl.verify import verification
from emppl.verify.verification import Verification
from tests.kit import fits
from tests.kit.fits import KEY


def fit(model, *data, verify=True, **options):
    """A fit that is compared."""
    return fits.fit(model, *data, verify=verify, **options)


DATA = np.array([0.3, -1.2, 2.1, 1.9, -0.7])


def mixture(y, change=lambda z: z):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.5]))
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(mu[change(z)], 1.0), obs=y)


def partly_labelled(y, labels, known):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.5]))
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def weighted(y, weight):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(y)), numpyro.handlers.scale(scale=weight):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def ragged(y, length):
    """A hidden Markov model of two states over several sequences."""
    stay = numpyro.param("stay", jnp.array([0.8, 0.7]), constraint=constraints.unit_interval)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.5]))

    def step(carry, this):
        before, t = carry
        with numpyro.plate("sequences", y.shape[1]), numpyro.handlers.mask(mask=t < length):
            probs = jnp.where(jnp.asarray(before)[..., None] == jnp.arange(2), stay, 1 - stay)
            z = numpyro.sample("z", dist.Categorical(probs / probs.sum(-1, keepdims=True)))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=this)
        return (z, t + 1), None

    scan(step, (jnp.zeros(y.shape[1], int), 0), y)


def effects(y, group):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 3):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b[group], 1.0), obs=y)


def level(y):
    s = numpyro.param("s", 1.0, constraint=constraints.positive)

    def step(before, this):
        x = numpyro.sample("x", dist.Normal(before, s))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=this)
        return x, None

    scan(step, 0.0, y)


def counts(y):
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        b = numpyro.sample("b", dist.Normal(0.0, scale))
        numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


def tobit(y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("data", len(y)):
        x = numpyro.sample("x", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Delta(jnp.maximum(x, 0.0)), obs=y)


def zeros(y):
    """Counts, some of which are certainly zero: most draws from the prior are impossible."""
    share = numpyro.param("share", 0.5, constraint=constraints.unit_interval)
    rate = numpyro.param("rate", 2.0, constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        none = numpyro.sample("none", dist.Bernoulli(share))
        numpyro.sample("y", dist.Poisson(jnp.where(none == 1, 0.0, rate)), obs=y)


def scaled_effects(y, group):
    """What is computed from a latent is no latent."""
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 3):
        e = numpyro.deterministic("e", tau * numpyro.sample("b", dist.Normal(0.0, 1.0)))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(e[group], 1.0), obs=y)


def missing_outcomes(y, seen):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.5]))
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y, obs_mask=seen)


def large_counts(y):
    rate = numpyro.param("rate", jnp.array([9000.0, 11000.0]), constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)


@pytest.mark.parametrize(
    "model, data, latents",
    [
        (mixture, (DATA,), {}),
        (partly_labelled, (DATA, np.array([0, 0, 1, 1, 0]), np.array([1, 0, 1, 0, 0], bool)), {}),
        (weighted, (DATA, np.array([1.0, 2.0, 0.5, 1.0, 3.0])), {}),
        (ragged, (np.arange(12.0).reshape(4, 3) / 4 - 1, np.array([4, 2, 3])), {}),
        (effects, (DATA, np.array([0, 1, 2, 0, 1])), {"b": emppl.Gaussian()}),
        (scaled_effects, (DATA, np.array([0, 1, 2, 0, 1])), {"b": emppl.Gaussian()}),
        (missing_outcomes, (DATA, np.array([1, 0, 1, 1, 0], bool)), {}),
        (level, (DATA,), {}),
        (counts, (np.array([0, 3, 1, 2]),), {"b": emppl.Quadrature(9)}),
        (tobit, (np.maximum(DATA, 0),), {}),
        (zeros, (np.array([0, 0, 3, 4, 0, 2, 5, 0, 1]),), {}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_model_that_is_read_rightly_is_compared_and_passes(model, data, latents, monkeypatch):
    checks = []
    monkeypatch.setattr(
        functions, "Verification", lambda *args, **options: checks.append(Verification(*args, **options)) or checks[-1]
    )
    result = fit(model, *data, latents=latents, max_iterations=5)
    assert np.isfinite(result.log_likelihood)
    assert [one.why_not for one in checks] == [None]


def test_a_misread_model_gives_no_result(monkeypatch):
    """Densities are planted wrong; emppl's own likelihood is consistent with them."""
    monkeypatch.setattr(
        log_prob_table, "log_density", lambda *args, right=log_prob_table.log_density: 0.9 * right(*args)
    )
    with pytest.raises(emppl.ModelError, match=r"misreads the model at site '.'.*NumPyro.*verify=False"):
        fit(mixture, DATA, max_iterations=2)
    fit(mixture, DATA, max_iterations=2, verify=False)


def test_a_misread_model_stays_refused(monkeypatch):
    monkeypatch.setattr(
        log_prob_table, "log_density", lambda *args, right=log_prob_table.log_density: 0.9 * right(*args)
    )
    em = emppl.EM(mixture, max_iterations=2, verify=True)
    for _ in range(2):
        with pytest.raises(emppl.ModelError, match="misreads"):
            em.run(KEY, DATA)


def test_no_alarm_for_float32_with_large_counts():
    with jax.enable_x64(False):
        y = np.random.default_rng(0).poisson(10000, 200).astype(np.float32)
        assert np.isfinite(fit(large_counts, y, max_iterations=3).log_likelihood)


@pytest.mark.parametrize("failure", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_a_comparison_that_fails_does_not_cost_the_fit(failure, monkeypatch):
    def fails(*args):
        raise failure

    if isinstance(failure, KeyboardInterrupt):
        monkeypatch.setattr(Verification, "finish", fails)
    else:
        monkeypatch.setattr(Verification, "_compared", fails)
    result = fit(mixture, DATA, max_iterations=3)
    assert np.isfinite(result.log_likelihood) and "not compared" in result.notes[-1]


def test_only_the_first_fit_of_a_derivation_is_compared(monkeypatch):
    begun = []
    begin = Verification.begin
    monkeypatch.setattr(Verification, "begin", lambda self, params: begun.append(1) or begin(self, params))
    em = emppl.EM(mixture, max_iterations=2, verify=True)
    for data in (DATA, DATA + 1, DATA[:4]):
        em.run(KEY, data)
    assert len(begun) == 2


def test_what_numpyro_cannot_run_is_not_compared_and_the_result_says_so(monkeypatch):
    def fails(*args):
        raise ValueError("no such thing")

    monkeypatch.setattr(verification, "draw_latents", fails)
    notes = fit(mixture, DATA, max_iterations=3).notes
    assert notes == ["The fit was not compared with NumPyro's own density: ValueError: no such thing"]


def test_of_many_rows_a_random_part_is_compared(monkeypatch):
    monkeypatch.setattr(functions, "MOST_CELLS_OF_A_CHECK", 100)
    monkeypatch.setattr(functions, "ROWS_OF_A_CHECK", 20)
    parts = []
    monkeypatch.setattr(
        functions, "Verification", lambda *args, **options: parts.append(args[2]) or Verification(*args, **options)
    )
    y = np.random.default_rng(0).normal(size=1500)
    fit(mixture, y, max_iterations=2)
    weights, rows = parts[0]
    assert weights.shape == rows.shape == (20,) and np.all(weights == 1) and np.all(np.isin(rows, y))
    monkeypatch.setattr(
        log_prob_table, "log_density", lambda *args, right=log_prob_table.log_density: 0.9 * right(*args)
    )
    with pytest.raises(emppl.ModelError, match="misreads"):
        fit(mixture, y, max_iterations=2)


def test_many_cells_without_rows_of_their_own_are_not_compared(monkeypatch):
    monkeypatch.setattr(functions, "MOST_CELLS_OF_A_CHECK", 3)
    (note,) = fit(level, DATA, max_iterations=2).notes
    assert "not compared with NumPyro's own density" in note and "table cells" in note


def test_nothing_is_compared_after_an_interrupt(monkeypatch):
    monkeypatch.setattr(Verification, "look", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Verification, "finish", lambda *args: pytest.fail("compared"))
    y = np.random.default_rng(0).normal(size=100)
    assert fit(mixture, y, tolerance=0.0).stop_reason is emppl.StopReason.INTERRUPTED
