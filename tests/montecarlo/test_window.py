"""Which draws are remembered."""

import numpy as np

from emppl.montecarlo.window import Window


def test_draws_that_are_forgotten_are_the_oldest():
    window = Window({"b": np.zeros((0, 1, 1))}, np.zeros(0))
    for step in range(1, 30):
        new = {"b": np.full((2, 1, 1), float(step))}
        window = window.after(new, 1 / step, 16)
    assert len(window.shares) == 16
    assert window.draws["b"].min() == 22  # the newest sixteen stay
    np.testing.assert_allclose(window.shares.sum(), 1)
    window = Window({"b": np.zeros((0, 1, 1))}, np.zeros(0))
    for step in (1.0, 0.5, 0.25):
        window = window.after({"b": np.full((1, 1, 1), step)}, step, 16)
    np.testing.assert_allclose(window.shares, [0.375, 0.375, 0.25])
    window = window.after({"b": np.ones((2, 1, 1))}, 1.0, 16)
    np.testing.assert_allclose(window.shares, [0.5, 0.5])
