"""Worked examples: classical latent-variable models with answers that the literature prints.

Every module holds ``model`` (ordinary NumPyro), ``data()``, the ``published`` answer and ``main()``, which prints
the derived plan and the fit beside that answer. They use nothing but the public interface of emppl.
"""
