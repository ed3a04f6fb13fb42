"""Models in models/ with several discrete latents that meet in a site, against sums over all their states."""

import itertools

import numpy as np
import pytest
from scipy import optimize, special, stats

import emppl
from models import chest_clinic, spiking_neurons, synchroniser
from tests.kit.fits import fit

# ------------------------------------------------------------------------------------------------------ chest clinic


def fill_in(observed):
    """Every way to fill in the three diseases: ``(8, patients, 8)`` columns as of the model, and is it possible?"""
    asia, smoker, *seen, shadow, breathless = observed
    rows, possible = [], []
    for states in itertools.product((0, 1), repeat=3):
        diseases = [np.full_like(asia, state) for state in states]
        rows.append(np.stack([asia, smoker, *diseases, diseases[0] | diseases[1], shadow, breathless], -1))
        possible.append(np.all([(one < 0) | (one == state) for one, state in zip(seen, states, strict=True)], 0))
    return np.array(rows), np.array(possible)


# Columns: asia, smoker, tuberculosis, cancer, bronchitis, either, shadow, breathless.
NODES = {
    "asia": (0, ()),
    "smoker": (1, ()),
    "tuberculosis": (2, (0,)),
    "cancer": (3, (1,)),
    "bronchitis": (4, (1,)),
    "shadow": (6, (5,)),
    "breathless": (7, (5, 4)),
}


def clinic_step(tables, rows, possible):
    """New tables by expected counts, and the log-likelihood at the old ones."""
    joint = possible.astype(float)
    for name, (node, parents) in NODES.items():
        yes = tables[name][tuple(rows[..., p] for p in parents)]
        joint = joint * np.where(rows[..., node] == 1, yes, 1 - yes)
    evidence = joint.sum(0)
    weights, found = joint / evidence, {}
    for name, (node, parents) in NODES.items():
        counts = np.zeros((2,) * (len(parents) + 1))
        np.add.at(counts, tuple(rows[..., p] for p in (*parents, node)), weights)
        found[name] = counts[..., 1] / counts.sum(-1)
    return found, np.log(evidence).sum()


def test_chest_clinic():
    observed = chest_clinic.data()
    result = fit(chest_clinic.model, *observed)
    assert result.converged
    tables = {name: np.full((2,) * len(parents), 0.3) for name, (_, parents) in NODES.items()}
    for name in set(NODES) - {"asia", "smoker"}:
        tables[name] = np.broadcast_to([0.2, 0.6], tables[name].shape)
    cases, path = fill_in(observed), []
    for _ in range(300):
        tables, value = clinic_step(tables, *cases)
        path.append(value)
    np.testing.assert_allclose(result.history["log_likelihood"][:20], path[:20], rtol=1e-12)
    assert result.log_likelihood == pytest.approx(path[-1], abs=1e-5)
    errors = result.standard_errors()
    for name, table in tables.items():
        found, error = result.params[f"p_{name}"], errors[f"p_{name}"]
        np.testing.assert_array_less(np.abs(found - table), 0.01 * error)
        # The tables that the patients were drawn from are where the standard errors say.
        np.testing.assert_array_less(np.abs(found - np.array(chest_clinic.published[name])), 4 * error)


# --------------------------------------------------------------------------------------------------- spiking neurons


def spikes(presence, baseline, effect, counts):
    """Log joint probability of counts and every combination of causes, ``(bins, combinations)``."""
    states = np.array(list(itertools.product((0, 1), repeat=len(presence))))
    log_rate = baseline + states @ effect
    each = stats.poisson.logpmf(counts[:, None], np.exp(log_rate)).sum(-1)
    return each + (states * np.log(presence) + (1 - states) * np.log1p(-presence)).sum(-1), states


@pytest.mark.slow
def test_spiking_neurons():
    counts, causes = spiking_neurons.data()
    result = fit(spiking_neurons.model, counts, causes, restarts=10)
    assert result.converged
    found = spiking_neurons.oriented(result.params)
    values = [found[name] for name in ("presence", "baseline", "effect")]
    joint, states = spikes(*values, counts)
    # Names and orientation of causes are a matter of convention.
    assert result.log_likelihood == pytest.approx(special.logsumexp(joint, 1).sum(), abs=1e-8)

    def minus(v):
        presence, (baseline, *effect) = special.expit(v[:causes]), v[causes:].reshape(causes + 1, -1)
        return -special.logsumexp(spikes(presence, baseline, np.array(effect), counts)[0], 1).sum()

    at = np.concatenate([special.logit(values[0]), *map(np.ravel, values[1:])])
    best = optimize.minimize(minus, at, method="BFGS", options={"maxiter": 50})
    assert -best.fun <= result.log_likelihood + 1e-4
    assert np.max(np.abs(best.x - at)) < 5e-3
    ours = spiking_neurons.oriented({name: np.array(value) for name, value in spiking_neurons.known.items()})
    for name, value in found.items():
        assert np.max(np.abs(value - ours[name])) < 0.35, name
    # What is known of a bin is known of the combination; the marginals are those of the causes.
    posterior = np.exp(joint - special.logsumexp(joint, 1)[:, None]) @ states
    marginals = np.stack([result.posterior(f"cause_{k}")[:, 1] for k in range(causes)], 1)
    assert sorted(np.abs(posterior - 0.5).sum(0)) == pytest.approx(sorted(np.abs(marginals - 0.5).sum(0)), abs=1e-6)


# ------------------------------------------------------------------------------------------------------ synchroniser


def trellis(phase, delay, gain, noise, received):
    """Log-likelihood by a forward recursion over the three last bits."""
    registers = list(itertools.product((0, 1), repeat=3))

    def sent(register):
        one, other = synchroniser.point(*register)
        return gain * np.exp(1j * phase) * (one + 1j * other) / np.sqrt(2)

    forward = {register: -np.inf for register in registers} | {(0, 0, 0): 0.0}
    signal = received @ [1, 1j]
    for halves in signal:
        after = {register: [] for register in registers}
        for register, value in forward.items():
            for bit in (0, 1):
                now, before = sent((bit, *register[:2])), sent(register)
                off = np.abs(halves - [delay * before + (1 - delay) * now, now]) ** 2
                after[bit, *register[:2]].append(value - np.log(2) - off.sum() / 2 / noise**2)
        forward = {register: special.logsumexp(values) for register, values in after.items()}
    return special.logsumexp(list(forward.values())) - 4 * len(received) * np.log(noise * np.sqrt(2 * np.pi))


@pytest.mark.slow
def test_synchroniser():
    em = emppl.EM(synchroniser.model)
    received = synchroniser.data()
    result = synchroniser.synchronise(em, received)
    assert result.converged
    names = ("phase", "delay", "gain", "noise")
    at = np.array([float(result.params[name]) for name in names])
    assert result.log_likelihood == pytest.approx(trellis(*at, received), abs=1e-8)
    # No phase is likelier, be it quarter turns away: only the code can tell.
    for phase in np.linspace(-np.pi, np.pi, 60):
        assert trellis(phase, *at[1:], received) < result.log_likelihood
    slope = optimize.approx_fprime(at, lambda v: trellis(*v, received), 1e-6)
    errors = np.array([result.standard_errors()[name] for name in names])
    assert np.max(np.abs(slope * errors)) < 1e-2
    # Phase errors over frames: with the code as small as stated, by the fourth power (its quarter turn given) larger.
    off, stated = [], []
    for frame in range(20):
        received = synchroniser.data(frame)
        result = synchroniser.synchronise(em, received)
        blind = synchroniser.fourth_power(received)
        phases = np.array([float(result.params["phase"]), blind])
        miss = phases - synchroniser.known["phase"]
        off.append([(miss[0] + np.pi) % (2 * np.pi) - np.pi, (miss[1] + np.pi / 4) % (np.pi / 2) - np.pi / 4])
        stated.append(float(result.standard_errors()["phase"]))
    coded, blind = np.sqrt(np.mean(np.square(off), 0))
    assert coded < 0.7 * blind
    assert 0.6 < coded / np.mean(stated) < 1.5
