"""Faults planted in the engine, one at a time: the check of a fit finds every one of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl
from emppl.derivation import derive
from emppl.elimination import chains, reductions, run
from emppl.elimination.chain import twin
from emppl.integrals import exact, integrated, joint
from emppl.jaxpr import separation
from emppl.jaxpr.groups import Meeting
from emppl.model import integral, log_prob_table, model, natural, site
from emppl.reduce import rows
from emppl.trace import as_written, evaluate, site_messages
from tests.kit import fits

RNG = np.random.default_rng(0)
Y = RNG.normal(size=12) * 2
GROUP = np.arange(12) % 4
REPEATED = np.repeat(RNG.poisson(4.0, 6), 200)


def means(z):
    return numpyro.param("mu", jnp.array([-1.0, 1.5]))[z]


def mixture(y, mask=True):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", dist.Normal(means(z), 1.0), obs=y)


def weighted(y, weight):
    with numpyro.handlers.scale(scale=weight):
        mixture(y)


def nested(y):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    with numpyro.plate("outer", y.shape[1], dim=-1):
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("inner", y.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(means(z), 1.0), obs=y)


def mu_of(change):
    """A mixture whose means are a function of the latent as an array."""

    def model(y):
        weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
        a, b = numpyro.param("a", -1.0), numpyro.param("b", 2.5)
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(a + b * change(z), 1.0), obs=y)

    return model


def stacked(y):
    """Two chains whose transition is stacked from a number that depends on the state before."""
    p = numpyro.param("p", jnp.array([0.2, 0.7]), constraint=constraints.unit_interval)

    def step(before, this):
        leave = p[before]
        z = numpyro.sample("z", dist.Categorical(jnp.stack([1 - leave, leave])))
        numpyro.sample("y", dist.Normal(means(z), 1.0), obs=this)
        return z, None

    scan(step, 0, y)


def unplated(y):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    w = numpyro.sample("w", dist.Categorical(weights))
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([[0.3, 0.7], [0.8, 0.2]])[w]))
        numpyro.sample("y", dist.Normal(means(z), 1.0), obs=y)


def labelled(y, labels, known):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
        numpyro.sample("y", dist.Normal(means(z), 1.0), obs=y)


def lognormal(y):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        log_normal = dist.TransformedDistribution(dist.Normal(means(z), 1.0), dist.transforms.ExpTransform())
        numpyro.sample("y", log_normal, obs=y)


def with_prior(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5).expand([2]).to_event(1))
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)


def poisson_mixture(y):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    rate = numpyro.param("rate", jnp.array([2.0, 7.0]), constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)


def hidden_markov(y):
    start = numpyro.param("start", jnp.array([0.2, 0.8]), constraint=constraints.simplex)
    move = numpyro.param("move", jnp.array([[0.9, 0.1], [0.4, 0.6]]), constraint=constraints.simplex)

    def step(before, this):
        z = numpyro.sample("z", dist.Categorical(start if before is None else move[before]))
        numpyro.sample("y", dist.Normal(means(z), 1.0), obs=this)
        return z, None

    z = numpyro.sample("first", dist.Categorical(start))
    scan(step, z, y)


def effects(y, group):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.Normal(0.5, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b[group], 1.0), obs=y)


def pairs(y, group):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.Normal(0.5, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b[group] + b[(group + 1) % 4], 1.0), obs=y)


def other_plate(y):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("schools", len(y)):
        b = numpyro.sample("b", dist.Normal(0.5, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


def backwards(y):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        b = numpyro.sample("b", dist.Normal(0.5, tau))
        numpyro.sample("y", dist.Poisson(jnp.exp(b[::-1] / 4)), obs=y)


def constant_index(y):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.Normal(0.5, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b[jnp.asarray(GROUP)], 1.0), obs=y)


def halves(y):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        u = numpyro.sample("u", dist.Normal(0.5, tau))
        v = numpyro.sample("v", dist.Normal(0.5, 1.0))
        numpyro.sample("y", dist.Normal(u + 2 * v, 1.0), obs=y)


def replaced(owner, name, change):
    """A fault: ``change(right, *arguments)`` in the place of a function."""
    right = getattr(owner, name)

    def plant(monkeypatch):
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: change(right, *args, **kwargs))

    return plant


def unread(monkeypatch):
    """Whether latents are used cell by cell is not looked at."""
    for owner, name in ((derive, "check_states"), (as_written, "_check_site"), (evaluate, "check_layout")):
        monkeypatch.setattr(owner, name, lambda *args: None)


def both(*plants):
    return lambda monkeypatch: [plant(monkeypatch) for plant in plants]


def reversed_states(right, self, array, depends, trailing):
    aligned = right(self, array, depends, trailing)
    return aligned[::-1] if self.name == "y" and "z" in depends and trailing == 0 else aligned


def never_meets(right, self, numbers):
    """Rows that meet are taken for rows that do not: the number of the first index, for everything."""
    found = right(self, numbers)
    return [None if isinstance(one, Meeting) else one for one in found]


INDEXED = {"b": emppl.Gaussian()}
NODES = {"b": emppl.Quadrature(9)}
FAULTS = {
    "states: rows of a latent in another order": (mu_of(lambda z: z[::-1]), (Y,), {}, unread),
    "states: a latent beside the mean over its rows": (mu_of(lambda z: z - z.mean()), (Y,), {}, unread),
    "states: the first row of a latent in all rows": (mu_of(lambda z: z + z[0]), (Y,), {}, unread),
    "states: probabilities stacked in front": (stacked, (Y,), {}, unread),
    "groups: another plate of the same length": (
        other_plate, (Y,), INDEXED, replaced(integral, "lies_in_order", lambda right, *args: True)
    ),
    "groups: backwards in the own plate": (
        backwards, (REPEATED[:100:10],), NODES, replaced(integral, "lies_in_order", lambda right, *args: True)
    ),
    "groups: rows that meet are said not to": (
        pairs, (Y, GROUP), NODES, replaced(separation.Separation, "groups", never_meets)
    ),
    "groups: a constant index is taken for the order of the rows": (
        constant_index, (Y,), NODES, replaced(integral, "lies_in_order", lambda right, *args: True)
    ),
    "table: a mask is ignored": (
        mixture, (Y, Y > 0), {}, replaced(log_prob_table, "with_equal_ranks", lambda right, *a: (*right(*a)[:1], jnp.ones((), bool), *right(*a)[2:]))
    ),
    "table: weights are ignored": (
        weighted, (Y, np.arange(12.0) + 1), {}, replaced(site.AlignedSite, "scale", lambda right, self, arrays: None)
    ),
    "table: labels are ignored": (
        labelled, (Y, GROUP % 2, GROUP > 1), {},
        replaced(log_prob_table, "_step", lambda right, aligned, *args: jnp.where(aligned.labels_of is None, right(aligned, *args), 0.0)),
    ),
    "table: the rows are shifted by one": (
        mixture, (Y,), {}, replaced(site.AlignedSite, "align", lambda right, self, *args: jnp.roll(right(self, *args), 1, -1))
    ),
    "table: states are numbered backwards": (mixture, (Y,), {}, both(unread, replaced(site.AlignedSite, "align", reversed_states))),
    "table: the measure of a transformed value is left out": (
        lognormal, (np.exp(Y),), {}, replaced(site_messages, "undo", lambda right, *args: (right(*args)[0], jnp.zeros(())))
    ),
    "table: a prior counts twice": (with_prior, (REPEATED[::30],), {}, replaced(model, "prior_cells", lambda right, *a: 2 * right(*a))),
    "elimination: a maximum for a sum": (
        mixture, (Y,), {}, replaced(reductions, "logsumexp", lambda right, table, axis: jnp.max(table, axis, keepdims=True))
    ),
    "elimination: the last cell of a plate is left out": (
        unplated, (Y,), {}, replaced(run, "_sum_plates", lambda right, plan, plates, table: right(plan, plates, table[..., :-1]))
    ),
    "elimination: a weight enters the sum": (
        weighted, (Y, np.arange(12.0) + 1), {}, replaced(run, "_rescale", lambda right, table, scale, reference: table)
    ),
    "chain: a transition backwards": (
        hidden_markov, (Y,), {},
        replaced(twin, "step_by_step", lambda right, first, move, *args: right(first, jnp.swapaxes(move, 1, 2), *args)),
    ),
    "chain: the fast kernel forgets the first step": (
        hidden_markov, (Y,), {}, replaced(chains, "fused_log_evidence", lambda right, *args: right(*args) - 0.1)
    ),
    "fast path: a log normaliser is off": (
        mixture, (Y,), {}, replaced(natural.NaturalForm, "natural", lambda right, *args: right(*args) * 1.001)
    ),
    "compression: weights do not add up to the rows": (
        poisson_mixture, (REPEATED,), {},
        replaced(rows.Compression, "apply", lambda right, self, data: dataclasses.replace(right(self, data), weights=right(self, data).weights * 1.01)),
    ),
    "integral: cells of a group are added up wrongly": (
        effects, (Y, GROUP), NODES, replaced(joint.Joint, "_by_index", lambda right, *args: 1.1 * right(*args))
    ),
    "integral: the determinant is left out": (
        halves, (Y,), {"u": emppl.Gaussian(), "v": emppl.Gaussian()},
        replaced(integrated, "half_log_det", lambda right, root: jnp.zeros(root.shape[:-2])),
    ),
    "integral: the mean is off": (
        halves, (Y,), {"u": emppl.Gaussian(), "v": emppl.Gaussian()},
        replaced(exact, "conditional", lambda right, *args: (right(*args)[0] + 0.01, right(*args)[1])),
    ),
    "integral: the precision is off": (
        halves, (Y,), {"u": emppl.Gaussian(), "v": emppl.Gaussian()},
        replaced(exact, "conditional", lambda right, *args: (right(*args)[0], 1.01 * right(*args)[1])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    function, data, latents, plant = FAULTS[fault]
    with monkeypatch.context() as planted:
        plant(planted)
        with pytest.raises(emppl.ModelError, match=r"emppl misreads|emppl gives no result"):
            fits.fit(function, *data, latents=latents, max_iterations=3, verify=True)
