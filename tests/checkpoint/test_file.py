"""Fits that are killed and go on from their checkpoint: the same to the last bit as those that were not."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import emppl
import emppl.em
from emppl import SAEM, MonteCarlo, StochasticEM
from emppl.checkpoint import file as checkpoints
from emppl.fit import loop
from tests.strategies.test_discrete import hidden_markov

positive = dist.constraints.positive


class Killed(BaseException):
    """Nothing in the package may catch it."""


def mixture(x, spread=10.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, spread).expand([2]).to_event(1))
    sigma = numpyro.param("sigma", jnp.ones(2), constraint=positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


def counts(y):
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=positive)
    with numpyro.plate("data", len(y)):
        b = numpyro.sample("b", dist.Normal(mu, sd))
        numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


@functools.cache
def overlapping():
    return np.concatenate([np.random.default_rng(0).normal(m, 1, 60) for m in (0, 1.5)])


@functools.cache
def varied_counts():
    """More than Poisson counts do: the maximum is inside, at a mean of 0.494 and a deviation of 0.855."""
    rng = np.random.default_rng(2)
    return rng.poisson(np.exp(rng.normal(0.5, 1.0, 20))).astype(float)


@functools.cache
def paths():
    rng = np.random.default_rng(3)
    return rng.normal(2.5 * ((rng.random((7, 20)) < 0.4).cumsum(0) % 2))


SLOW = pytest.mark.slow
KINDS = {
    "plain": (mixture, overlapping, {"restarts": 3, "tolerance": 0.0, "max_iterations": 150}),
    "squarem": (mixture, overlapping, {"accelerate": "squarem", "tolerance": 0.0, "max_iterations": 150}),
    "optimiser": (mixture, overlapping, {"m_step": {"mu": optax.adam(1e-2)}, "max_iterations": 150}),
    "stochastic": (hidden_markov, paths, {"latents": {"z": StochasticEM()}, "max_iterations": 200}),
    "monte_carlo": (counts, varied_counts, {"latents": {"b": MonteCarlo(20)}, "tolerance": 1e-2}),
    "saem": (counts, varied_counts, {"latents": {"b": SAEM()}, "restarts": 2}),
}


CLOSED = ("monte_carlo", "saem")


def closing_steps(file):
    """How many are in a checkpoint."""
    with np.load(file) as saved:
        return max((int(saved[name]) for name in saved.files if name.endswith("looks.steps")), default=0)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=SLOW if k in ("optimiser", "monte_carlo", "saem") else ()) for k in KINDS],
)
def test_a_killed_fit_goes_on_to_the_same_end(kind, tmp_path, monkeypatch):
    """Killed twice: history, estimates and Monte Carlo errors are those of the fit that was not, bit by bit.

    A fit with a closing phase is killed in that the second time.
    """
    model, data, options = KINDS[kind]
    em = emppl.EM(model, **options)
    run = functools.partial(em.run, jax.random.key(5), data())
    monkeypatch.setattr(checkpoints, "_SHARE", 1e9)  # save at every chance
    monkeypatch.setattr(loop, "_BUFFER", 8)  # short blocks
    file = tmp_path / "fit.npz"
    whole = run()
    original = emppl.em.Progress.__call__
    done = []
    for calls in (1, 2):
        left = iter(range(calls))

        def kill(self, states, left=left, calls=calls):
            original(self, states)
            done.append(int(np.max(states.iteration)))
            late = kind in CLOSED and calls == 2
            if closing_steps(file) > 0 if late else next(left, None) is None:
                raise Killed

        monkeypatch.setattr(emppl.em.Progress, "__call__", kill)
        try:
            run(checkpoint=file)
        except Killed:
            assert file.exists()
    monkeypatch.setattr(emppl.em.Progress, "__call__", original)
    assert len(done) > 3 and 0 < done[1] < whole.num_iterations
    assert (closing_steps(file) > 0) == (kind in CLOSED)
    resumed = run(checkpoint=str(file))
    again = run(checkpoint=file)  # of a finished fit: nothing is left to do
    for result in (resumed, again):
        assert result.stop_reason is whole.stop_reason and result.num_iterations == whole.num_iterations
        assert result.history.keys() == whole.history.keys()
        for name, values in whole.history.items():
            np.testing.assert_array_equal(result.history[name], values, err_msg=name)
        for name, value in whole.params.items():
            np.testing.assert_array_equal(result.params[name], value, err_msg=name)
            np.testing.assert_array_equal(result.monte_carlo_errors[name], whole.monte_carlo_errors[name])
        assert result.log_likelihood == whole.log_likelihood
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.npz"]


def test_a_file_of_another_fit_is_refused_by_what_differs(tmp_path):
    """Model, data, key, start, options, each by name; a file that is none of ours."""
    x = overlapping()
    file = tmp_path / "fit.npz"

    def run(model=mixture, key=0, data=x, start=None, spread=10.0, **options):
        em = emppl.EM(model, max_iterations=2, **options)
        return em.run(jax.random.key(key), data, spread, init_params=start, checkpoint=file)

    run()
    for difference, changed in {
        "differs: the model[.]": {"model": lambda x, spread: mixture(x, spread / 2)},
        "the data": {"data": x + 1e-9},
        "rng_key": {"key": 1},
        r"starting values \(init_params\)": {"start": {"sigma": np.array([1.0, 2.0])}},
        r"tolerance \(None there, 0.1 here\)": {"tolerance": 0.1},
    }.items():
        with pytest.raises(emppl.ParameterError, match=f"another fit.*({difference})"):
            run(**changed)
    run()
    saved = dict(np.load(file))
    for version, words in {1: "an older", 99: "a newer"}.items():
        kept = {name: array for name, array in saved.items() if name != "format"}
        np.savez(file, **kept, **({"format": np.array(version)} if version > 1 else {}))  # the first had no number
        with pytest.raises(emppl.ParameterError, match=f"written by {words} emppl: start the fit again"):
            run()
    file.write_bytes(b"something else")
    with pytest.raises(emppl.ParameterError, match="no checkpoint of emppl"):
        run()
    with pytest.raises(emppl.ParameterError, match="there is no directory"):
        emppl.EM(mixture).run(jax.random.key(0), x, checkpoint=tmp_path / "none" / "fit.npz")


def test_a_directory_is_called_one_and_a_hole_in_a_file_is_no_key_error(tmp_path):
    """Both are errors that say what to do."""
    with pytest.raises(emppl.ParameterError, match=r"is a directory: give a file in it, '.*fit\.npz'"):
        emppl.EM(mixture).run(jax.random.key(0), overlapping(), checkpoint=tmp_path)
    with pytest.raises(emppl.ParameterError, match=r"of another fit: it holds nothing of memory\['mu'\]"):
        checkpoints.restored("memory", {"memory['nu']": np.zeros(2)}, {"mu": 0, "nu": 0})


SCRIPT = """
import sys, time
sys.path[:0] = {path!r}
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import emppl, emppl.em
from tests.checkpoint.test_file import mixture, overlapping

def slow(self, states):
    print(int(states.iteration.max()), flush=True)
    time.sleep(float(sys.argv[2]))

emppl.em.Progress.__call__ = slow
emppl.fit.loop._BUFFER = 8  # short blocks
em = emppl.EM(mixture, tolerance=0.0, max_iterations=200)
result = em.run(jax.random.key(5), overlapping(), checkpoint=sys.argv[1])
np.save(sys.argv[1] + ".history.npy", result.history["objective"])
"""


@pytest.mark.slow
def test_a_process_killed_in_the_middle_goes_on_in_another(tmp_path):
    """SIGKILL between two blocks: the second process ends as one that was never killed."""
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT.format(path=[str(pathlib.Path(__file__).parents[2])]))

    def start(file, pause):
        command = [sys.executable, str(script), str(tmp_path / file), str(pause)]
        # Another order of sets in the process that goes on.
        environment = {**os.environ, "PYTHONHASHSEED": "1" if pause else "11"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    with start("killed.npz", 1) as process:
        while int(process.stdout.readline()) < 24:
            pass
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "killed.npz").exists() and not (tmp_path / "killed.npz.history.npy").exists()
    with start("killed.npz", 0) as resumed, start("whole.npz", 0) as whole:
        assert 16 <= int(resumed.stdout.readline()) < 60
        assert resumed.wait() == 0 and whole.wait() == 0
    histories = [np.load(tmp_path / f"{name}.npz.history.npy") for name in ("killed", "whole")]
    assert len(histories[1]) > 60
    np.testing.assert_array_equal(*histories)
