"""A receiver that finds carrier phase and symbol timing of a coded signal whose symbols it does not know.

A convolutional code turns every bit into two, which are sent as one point of a square (QPSK). What arrives is turned by
the carrier's phase, and in the first half of every symbol the one before it still lasts for a while; the receiver
integrates over halves of symbols. Bits are summed out along the code's trellis, so that the code itself says which
phase is the right one: expectation-maximisation with soft decisions of the decoder. The fourth power of the signal, the
usual estimate without decisions, leaves quarter turns open, and is lost in the noise where a code still works.

Reference:
    Noels et al. (2003), Turbo synchronization: an EM algorithm interpretation, IEEE ICC 4:2933-2937; Viterbi and
    Viterbi (1983), Nonlinear estimation of PSK-modulated carrier phase, IEEE Trans. Inf. Theory 29:543-551 (the fourth
    power). Simulated.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

known = {"phase": 0.6, "delay": 0.3, "gain": 1.0, "noise": 0.6}
"""Truth of the simulation; the noise is that of one half symbol in one direction."""

memory = 3
"""Earlier bits that a step sees: two in the code's register, one more in the symbol before."""


def point(bit, last, last_but_one):
    """The point of the square for a bit, by the code with generators 7 and 5 (octal)."""
    return 1 - 2 * (bit ^ last ^ last_but_one), 1 - 2 * (bit ^ last_but_one)


def model(received):
    """Bits along a trellis; phase, delay, gain and noise of the channel are estimated.

    Args:
        received: by symbol, half of the symbol and direction (in phase, in quadrature), ``(symbols, 2, 2)``.
    """
    phase = numpyro.param("phase", 0.0)
    delay = numpyro.param("delay", 0.25, constraint=constraints.unit_interval)
    gain = numpyro.param("gain", 1.0, constraint=constraints.positive)
    noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
    cosine, sine = gain * jnp.cos(phase) / jnp.sqrt(2), gain * jnp.sin(phase) / jnp.sqrt(2)

    def symbol(register, halves):
        last, second, third = register
        bit = numpyro.sample("bit", dist.Bernoulli(0.5))
        now, before = point(bit, last, second), point(last, second, third)
        mixed = [delay * old + (1 - delay) * new for old, new in zip(before, now, strict=True)]
        means = [
            direction
            for one, other in (mixed, now)
            for direction in (cosine * one - sine * other, sine * one + cosine * other)
        ]
        loc = jnp.stack(jnp.broadcast_arrays(*means), -1)
        numpyro.sample("received", dist.Normal(loc, noise).to_event(1), obs=halves.reshape(4))
        return (bit, last, second), None

    scan(symbol, (0, 0, 0), received, history=memory)


def data(frame: int = 0, symbols: int = 100) -> np.ndarray:
    """One frame; bits and noise differ between frames."""
    rng = np.random.default_rng([2003, frame])
    bits = np.concatenate([np.zeros(3, int), rng.integers(0, 2, symbols)])
    one, other = point(bits[2:], bits[1:-1], bits[:-2])
    points = (one + 1j * other) / np.sqrt(2)
    halves = np.stack([known["delay"] * points[:-1] + (1 - known["delay"]) * points[1:], points[1:]], 1)
    sent = known["gain"] * np.exp(1j * known["phase"]) * halves
    return np.stack([sent.real, sent.imag], -1) + known["noise"] * rng.standard_normal((symbols, 2, 2))


def fourth_power(received) -> float:
    """Phase without decisions, between -pi/4 and pi/4."""
    signal = received.mean(1) @ [1, 1j]
    return float(np.angle(-np.mean(signal**4)) / 4)


def synchronise(em: emppl.EM, received) -> emppl.EMResult:
    """The likeliest of the fits that start at the four phases which the fourth power cannot tell apart."""
    found = [
        em.run(jax.random.key(0), received, init_params={"phase": fourth_power(received) + turn * np.pi / 2})
        for turn in range(4)
    ]
    return max(found, key=lambda result: result.log_likelihood)


def main() -> None:
    """Synchronise to one frame and print the answer beside the truth."""
    jax.config.update("jax_enable_x64", True)
    received = data()
    em = emppl.EM(model)
    print(em.plan(received))
    result = synchronise(em, received)
    result.print_summary()
    print("fourth power, without the code:", fourth_power(received))
    print("known truth of the simulation:", known)


if __name__ == "__main__":
    main()
