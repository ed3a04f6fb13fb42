"""A fit by draws: Monte Carlo EM, SAEM, stochastic EM, and the phase that closes them."""
