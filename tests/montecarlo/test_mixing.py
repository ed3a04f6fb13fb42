"""What the chains say of themselves, against NumPyro's diagnostics."""

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from emppl.montecarlo.mixing import effective_draws, split_r_hat


def test_diagnostics_agree_with_numpyro():
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((4, 400, 3))
    chains = np.zeros_like(noise)
    for step in range(1, 400):
        chains[:, step] = np.array([0.0, 0.5, 0.95]) * chains[:, step - 1] + noise[:, step]
    chains[0, :, 0] += 1  # one chain elsewhere
    np.testing.assert_allclose(split_r_hat(chains), split_gelman_rubin(chains), rtol=1e-10)
    np.testing.assert_allclose(effective_draws(chains), effective_sample_size(chains), rtol=0.05)
