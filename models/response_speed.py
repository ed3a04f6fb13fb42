"""Speed against accuracy: response times and correctness of one person, who switches between guessing and thinking.

Three series of unequal length, padded. The pay-off for accuracy, which the experimenter varied, drives the switching:
the transitions are a logistic regression on it (an input-output hidden Markov model).

Reference:
    Dutilh, Wagenmakers, Visser and van der Maas (2011), A phase transition model for the speed-accuracy trade-off in
    response time experiments, Cognitive Science 35 (data); Visser and Speekenbrink (2010), depmixS4: an R package for
    hidden Markov models, J. Stat. Soft. 36(7): log-likelihood -84.34175 (times only) and -248.97 (with pay-off), quoted
    from memory, and what an independent maximiser finds. -296.115 (times and correctness) is in the tests of depmixS4,
    at estimates rounded to three digits; the maximum is -296.108.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

published = {"log_likelihood": {"times": -84.34175, "both": -296.115, "with_pay_off": -248.97}}


def model(times, lengths, correct=None, pay_off=None):
    """Each trial is done in one of two states, guessing (fast) or thinking (slow).

    Args:
        times: logarithms of response times, ``(trials, series)``, padded.
        lengths: trials of every series, ``(series,)``.
        correct: was the answer correct? Same shape; None leaves it out of the model.
        pay_off: the scaled pay-off that drives the transition into each trial; None for constant transitions.
    """
    initial = numpyro.param("initial", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    location = numpyro.param("location", jnp.array([5.5, 6.4]))
    scale = numpyro.param("scale", jnp.array([0.2, 0.2]), constraint=constraints.positive)
    if pay_off is None:
        stay = jnp.array([[0.9, 0.1], [0.1, 0.9]])
        transition = numpyro.param("transition", stay, constraint=constraints.simplex)
    else:
        intercept = numpyro.param("intercept", jnp.array([-1.0, 2.0]))
        slope = numpyro.param("slope", jnp.array([1.0, 1.0]))
    if correct is not None:
        accuracy = numpyro.param("accuracy", jnp.array([0.5, 0.9]), constraint=constraints.unit_interval)

    def trial(carry, data):
        before, number = carry
        with numpyro.plate("series", lengths.shape[0]), numpyro.handlers.mask(mask=number < lengths):
            if pay_off is None:
                moved = transition[before]
            else:
                slow = jax.nn.sigmoid(intercept[before] + slope[before] * data["pay_off"])
                moved = jnp.stack([1 - slow, slow], -1)
            state = numpyro.sample("state", dist.Categorical(jnp.where(number == 0, initial, moved)))
            numpyro.sample("times", dist.Normal(location[state], scale[state]), obs=data["times"])
            if correct is not None:
                numpyro.sample("correct", dist.Bernoulli(accuracy[state]), obs=data["correct"])
        return (state, number + 1), None

    columns = {"times": times, "correct": correct, "pay_off": pay_off}
    columns = {name: column for name, column in columns.items() if column is not None}
    scan(trial, (jnp.zeros(lengths.shape[0], int), 0), columns)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Times, lengths, correctness, and the scaled pay-off of the trial before."""
    table = np.loadtxt(pathlib.Path(__file__).parent / "data" / "speed.csv", delimiter=",", skiprows=1)
    series = [table[table[:, 0] == number] for number in (1, 2, 3)]
    lengths = np.array([len(rows) for rows in series])
    scaled = (table[:, 3] - table[:, 3].mean()) / table[:, 3].std(ddof=1)
    times, correct, pay_off = np.zeros((3, lengths.max(), 3))
    for number, rows in enumerate(series):
        mine = scaled[table[:, 0] == number + 1]
        times[: len(rows), number], correct[: len(rows), number] = rows[:, 1], rows[:, 2]
        pay_off[1 : len(rows), number] = mine[:-1]
    return times, lengths, correct.astype(int), pay_off


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    times, lengths, correct, pay_off = data()
    em = emppl.EM(model)
    print(em.plan(times, lengths, correct, pay_off))
    for name, columns in {"times": (), "both": (correct,), "with_pay_off": (correct, pay_off)}.items():
        result = em.run(jax.random.key(0), times, lengths, *columns)
        print(name, result.log_likelihood, "published:", published["log_likelihood"][name])
    result.print_summary()


if __name__ == "__main__":
    main()
