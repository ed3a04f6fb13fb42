"""NumPyro's examples with something to sum or to integrate, and small data for each."""

from __future__ import annotations

from types import SimpleNamespace

import jax.numpy as jnp
import marginals
import numpy as np
from registry import Arguments, entry
from source import Definitions

import emppl

Rng = np.random.Generator


# ------------------------------------------------------------------------------------------------------- annotation.py
def _ratings(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Annotators and their labels, items by positions: three classes, four annotators, who are right most times."""
    positions = np.broadcast_to(np.array([0, 0, 1, 2, 3]), (12, 5))
    truth = rng.integers(0, 3, 12)[:, None]
    labels = np.where(rng.random((12, 5)) < 0.7, truth, rng.integers(0, 3, (12, 5)))
    labels[0, 0] = 2
    return np.array(positions), labels


def _annotation(name: str, latent: str = "discrete") -> None:
    @entry("annotation.py", name, latent)
    def make(found: Definitions, rng: Rng) -> Arguments:
        positions, labels = _ratings(rng)
        only_labels = name in ("multinomial", "item_difficulty")
        return found[name], (labels,) if only_labels else (positions, labels), {}


for _name in ("multinomial", "dawid_skene", "mace", "hierarchical_dawid_skene"):
    _annotation(_name)
for _name in ("item_difficulty", "logistic_random_effects"):
    _annotation(_name, "continuous")


# ------------------------------------------------------------------------------------------- baseball.py and relatives
def _baseball(name: str, marginal: object) -> None:
    @entry("baseball.py", name, "continuous", marginal=marginal)
    def make(found: Definitions, rng: Rng) -> Arguments:
        at_bats = np.full(8, 45)
        return found[name], (at_bats, rng.binomial(at_bats, rng.beta(6, 18, 8))), {}


_baseball("partially_pooled", marginals.beta_binomial)
_baseball("partially_pooled_with_logit", marginals.logit_normal_binomial)


# ----------------------------------------------------------------------------------------------- capture_recapture.py
def _capture(name: str, latent: str) -> None:
    @entry("capture_recapture.py", name, latent)
    def make(found: Definitions, rng: Rng) -> Arguments:
        seen = rng.random((15, 4)) < 0.5
        seen[np.arange(15), rng.integers(0, 3, 15)] = True
        return found[name], (jnp.array(seen.astype(int)), jnp.array(rng.integers(0, 2, 15))), {}


for _name in ("model_1", "model_2", "model_4", "model_5"):
    _capture(_name, "discrete")
_capture("model_3", "continuous")


# --------------------------------------------------------------------------------------------------------- hmm_enum.py
def _chorales(name: str) -> None:
    @entry("hmm_enum.py", name, "discrete", {"prior": False})
    def make(found: Definitions, rng: Rng) -> Arguments:
        notes = jnp.array(rng.integers(0, 2, (3, 6, 4)))
        return found[name], (notes, jnp.array([6, 4, 5]), SimpleNamespace(hidden_dim=4)), {"include_prior": True}


for _name in ("model_1", "model_2", "model_3", "model_4", "model_6"):
    _chorales(_name)


# -------------------------------------------------------------------------------------------------- one or two a file
@entry("toy_mixture_model_discrete_enumeration.py", "model", "discrete")
def toy_mixture(found: Definitions, rng: Rng) -> Arguments:
    """Observed A and C, B between them summed out."""
    observed = {"A": jnp.array(rng.integers(0, 2, 20)), "C": jnp.array(rng.integers(0, 2, 20))}
    return found["model"], ({"A": jnp.ones(1)}, observed, 20), {}


@entry("gaussian_shells.py", "model", "discrete")
def gaussian_shells(found: Definitions, rng: Rng) -> Arguments:
    """A density of ``x`` with one discrete latent."""
    return found["model"], (jnp.array([-3.5, 0.0]), jnp.array([3.5, 0.0]), 2.0, 0.1), {"enum": True}


@entry(
    "ssbvm_mixture.py", "ss_model", "discrete", {"prior": False, "estimate": ["phi_conc", "psi_conc"]}, assigned=("pi",)
)
def bivariate_angles(found: Definitions, rng: Rng) -> Arguments:
    """Two clusters of pairs of angles."""
    angles = np.concatenate([rng.normal((-1.2, 2.4), 0.2, (15, 2)), rng.normal((1.0, -0.6), 0.2, (15, 2))])
    return found["ss_model"], (jnp.array(angles), 30), {"num_mix_comp": 2}


@entry("mortality.py", "model", "continuous", assigned=("reparam_config",))
def mortality(found: Definitions, rng: Rng) -> Arguments:
    """Deaths by age, place (nested in regions) and year."""
    age, space, time = (index.ravel() for index in np.indices((4, 4, 3)))
    population = rng.integers(500, 1000, age.size)
    deaths = rng.binomial(population, 1 / (1 + np.exp(4 - 0.5 * age)))
    return found["model"], (age, space, time, np.array([0, 0, 1, 1]), population), {"deaths": deaths}


@entry("ucbadmit.py", "glmm", "continuous", {"latents": {"z": emppl.Laplace()}}, marginal=marginals.admissions)
def admissions(found: Definitions, rng: Rng) -> Arguments:
    """Two rows a department: an intercept and a slope for each."""
    dept, male = np.repeat(np.arange(6), 2), np.tile([1, 0], 6)
    applications = rng.integers(30, 80, 12)
    logits = np.repeat(rng.normal(-0.5, 1, 6), 2) + 0.2 * male
    return found["glmm"], (dept, male, applications, rng.binomial(applications, 1 / (1 + np.exp(-logits)))), {}


@entry("stochastic_volatility.py", "model", "continuous", {"latents": {"s": emppl.Laplace()}})
def stochastic_volatility(found: Definitions, rng: Rng) -> Arguments:
    """Twenty returns."""
    return found["model"], (jnp.array(rng.standard_t(5, 20) * 0.5),), {}


@entry("dais_demo.py", "model", "continuous")
def dais(found: Definitions, rng: Rng) -> Arguments:
    """A binary outcome of a Gaussian process."""
    return found["model"], (jnp.linspace(-1, 1, 6), jnp.array(rng.integers(0, 2, 6))), {}


@entry("vae.py", "model", "continuous")
def decoder(found: Definitions, rng: Rng) -> Arguments:
    """A decoder of two Gaussian latents."""
    return found["model"], (jnp.array(rng.integers(0, 2, (12, 6)).astype(float)),), {"hidden_dim": 4, "z_dim": 2}


@entry("prodlda.py", "model", "continuous")
def topics(found: Definitions, rng: Rng) -> Arguments:
    """Six documents of ten words."""
    hyperparams = {"vocab_size": 8, "num_topics": 3, "dropout_rate": 0.2, "batch_size": 6, "hidden": 4}
    return found["model"], (jnp.array(rng.integers(0, 4, (6, 8))), hyperparams), {"is_training": True}


@entry("stein_dmm.py", "model", "continuous")
def deep_markov(found: Definitions, rng: Rng) -> Arguments:
    """Four sequences of five chords."""
    seqs, lengths = jnp.array(rng.integers(0, 2, (4, 5, 3))), jnp.array([5, 4, 5, 3])
    sizes = {"latent_dim": 2, "emission_dim": 3, "transition_dim": 3, "data_dim": 3, "gru_dim": 3}
    return found["model"], (seqs, seqs[:, ::-1], lengths), {"subsample_size": 4, **sizes}


@entry("cvae-flax/models.py", "cvae_model", "continuous")
def conditional_decoder(found: Definitions, rng: Rng) -> Arguments:
    """Two images."""
    return found["cvae_model"], (jnp.array(rng.random((2, 14, 14))),), {"y": jnp.array(rng.integers(0, 2, (2, 28, 28)))}
