"""Random plated models as data: a hypothesis strategy for specifications, and one NumPyro model that reads them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from hypothesis import strategies as st
from numpyro.distributions import constraints

MAX_ASSIGNMENTS = 1500
_PLATES = {0: (), 1: ("outer",), 2: ("outer", "inner")}


@dataclasses.dataclass(frozen=True)
class Latent:
    """A discrete latent: its plates, number of states, parents (earlier latents) and parameterisation."""

    level: int
    states: int
    parents: tuple[int, ...]
    kind: str


@dataclasses.dataclass(frozen=True)
class Observed:
    """An observed site: its plates, the latents its arguments are indexed by, its family, its mask."""

    level: int
    parents: tuple[int, ...]
    family: str
    masked: bool


@dataclasses.dataclass(frozen=True)
class Spec:
    """One random model.

    Attributes:
        latents: in order of sampling.
        observed: in order of sampling.
        sizes: number of cells of the outer and the inner plate.
        weight: ``"none"``, ``"scalar"``, ``"outer"`` or ``"inner"``: what ``handlers.scale`` covers.
        masked_cells: does a mask remove whole outer cells, latents and data together?
        tie: pair of latents in the same plates whose sum modulo 2 is observed through a Delta, or None.
        seed: of parameters and data.
    """

    latents: tuple[Latent, ...]
    observed: tuple[Observed, ...]
    sizes: tuple[int, int]
    weight: str
    masked_cells: bool
    tie: tuple[int, int] | None
    seed: int

    @property
    def assignments(self) -> int:
        """Number of joint assignments of all latent cells."""
        outer, inner = self.sizes
        return int(np.prod([float(one.states) ** (1, outer, outer * inner)[one.level] for one in self.latents]))


FAMILIES = {
    # family -> parameters: (suffix, event shape, indexed by the parents?, constraint, prior)
    "bernoulli": [("p", (), True, constraints.unit_interval, dist.Beta(2.0, 3.0))],
    "bernoulli_logits": [("logit", (), True, constraints.real, None)],
    "categorical": [("p", (3,), True, constraints.simplex, dist.Dirichlet(jnp.array([2.0, 1.5, 3.0])))],
    "poisson": [("rate", (), True, constraints.positive, dist.Gamma(2.0, 0.7))],
    "normal": [
        ("loc", (), True, constraints.real, dist.Normal(0.5, 2.0)),
        ("scale", (), True, constraints.positive, dist.InverseGamma(2.0, 1.0)),
    ],
    "normal_shared_scale": [
        ("loc", (), True, constraints.real, dist.Normal(0.5, 2.0)),
        ("scale", (), False, constraints.positive, dist.InverseGamma(2.0, 1.0)),
    ],
    "binomial": [("p", (), True, constraints.unit_interval, dist.Beta(2.0, 3.0))],
    "exponential": [("rate", (), True, constraints.positive, dist.Gamma(2.0, 0.7))],
    "mvn_covariance": [
        ("loc", (2,), True, constraints.real_vector, dist.MultivariateNormal(jnp.zeros(2), 4.0 * jnp.eye(2))),
        ("cov", (2, 2), True, constraints.positive_definite, dist.InverseWishart(4.0, scale_matrix=jnp.eye(2))),
    ],
    "mvn_precision": [
        ("loc", (2,), True, constraints.real_vector, dist.MultivariateNormal(jnp.zeros(2), 4.0 * jnp.eye(2))),
        ("prec", (2, 2), False, constraints.positive_definite, dist.Wishart(5.0, rate_matrix=jnp.eye(2))),
    ],
    "vector_normal": [
        ("loc", (2,), True, constraints.real, dist.Normal(0.5, 2.0)),
        ("scale", (2,), False, constraints.positive, dist.InverseGamma(2.0, 1.0)),
    ],
    "vector_poisson": [("rate", (3,), True, constraints.positive, dist.Gamma(2.0, 0.7))],
}
_UNBOUNDED = ("scale", "cov", "prec")  # parameters that need a prior on two or three data points


@st.composite
def specs(draw, weights=("none", "scalar", "outer", "inner"), max_assignments=MAX_ASSIGNMENTS) -> Spec:
    """Specifications small enough for the brute-force oracle."""
    sizes = draw(st.sampled_from([(2, 2), (2, 3), (3, 2)]))
    count = draw(st.integers(1, 4))
    latents: list[Latent] = []
    for _number in range(count):
        level = draw(st.sampled_from([0, 1, 1, 2, 2]))
        above = [i for i, other in enumerate(latents) if other.level <= level]
        parents = tuple(i for i in above if draw(st.booleans()))[-2:]
        kind = draw(st.sampled_from(["probs", "logits", "bernoulli", "bernoulli_logits"]))
        states = 2 if kind.startswith("bernoulli") else draw(st.integers(2, 4))
        candidate = Latent(level, states, parents, kind)
        if Spec((*latents, candidate), (), sizes, "none", False, None, 0).assignments > max_assignments:
            smaller = dataclasses.replace(
                candidate, states=2, level=0, parents=tuple(i for i in parents if latents[i].level == 0)
            )
            if Spec((*latents, smaller), (), sizes, "none", False, None, 0).assignments > max_assignments:
                break
            candidate = smaller
        latents.append(candidate)
    observed = []
    for _ in range(draw(st.integers(1, 3))):
        level = draw(st.sampled_from([0, 1, 2, 2, 2]))
        above = [i for i, other in enumerate(latents) if other.level <= level]
        parents = tuple(i for i in above if draw(st.booleans()))[-2:]
        observed.append(Observed(level, parents, draw(st.sampled_from(sorted(FAMILIES))), draw(st.booleans())))
    if not any(one.parents for one in observed):
        deepest = max(range(len(latents)), key=lambda i: latents[i].level)
        observed.append(Observed(2, (deepest,), draw(st.sampled_from(sorted(FAMILIES))), False))
    weight = draw(st.sampled_from(weights))
    pairs = [(i, j) for j in range(len(latents)) for i in range(j) if latents[i].level == latents[j].level]
    tie = draw(st.sampled_from([None, *pairs]))
    return Spec(tuple(latents), tuple(observed), sizes, weight, draw(st.booleans()), tie, draw(st.integers(0, 10**6)))


def parameters(spec: Spec) -> dict[str, tuple]:
    """Every parameter of a specification: name -> (shape, event shape, constraint, prior)."""
    found = {}
    for number, latent in enumerate(spec.latents):
        batch = tuple(spec.latents[p].states for p in latent.parents)
        name = f"z{number}_{latent.kind}"
        if latent.kind == "probs":
            event, constraint, prior = (
                (latent.states,),
                constraints.simplex,
                dist.Dirichlet(jnp.full(latent.states, 1.5)),
            )
        elif latent.kind == "logits":
            event, constraint, prior = (latent.states,), constraints.real, None
        elif latent.kind == "bernoulli":
            event, constraint, prior = (), constraints.unit_interval, dist.Beta(2.0, 1.5)
        else:
            event, constraint, prior = (), constraints.real, None
        found[name] = (batch + event, event, constraint, prior)
    for number, site in enumerate(spec.observed):
        batch = tuple(spec.latents[p].states for p in site.parents)
        for suffix, event, indexed, constraint, prior in FAMILIES[site.family]:
            found[f"x{number}_{suffix}"] = ((batch if indexed else ()) + event, event, constraint, prior)
    return found


def random_params(spec: Spec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random constrained values of every parameter."""
    values = {}
    for name, (shape, event, constraint, _) in parameters(spec).items():
        if constraint is constraints.simplex:
            values[name] = rng.dirichlet(np.ones(event[0]) * 2, shape[:-1])
        elif constraint is constraints.unit_interval:
            values[name] = rng.uniform(0.1, 0.9, shape)
        elif constraint is constraints.positive:
            values[name] = rng.uniform(0.5, 2.5, shape)
        elif constraint is constraints.positive_definite:
            root = rng.normal(size=shape)
            values[name] = root @ np.swapaxes(root, -1, -2) + np.eye(event[0])
        else:
            values[name] = rng.normal(size=shape)
    return values


def random_data(spec: Spec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random data, masks and weights of every site."""
    outer, inner = spec.sizes
    batches = {0: (), 1: (outer, 1), 2: (outer, inner)}
    data = {}
    for number, site in enumerate(spec.observed):
        batch = batches[site.level]
        draws = {
            "bernoulli": lambda batch=batch: rng.integers(0, 2, batch),
            "bernoulli_logits": lambda batch=batch: rng.integers(0, 2, batch),
            "categorical": lambda batch=batch: rng.integers(0, 3, batch),
            "poisson": lambda batch=batch: rng.poisson(2.0, batch),
            "binomial": lambda batch=batch: rng.integers(0, 6, batch),
            "exponential": lambda batch=batch: rng.exponential(1.0, batch),
            "vector_normal": lambda batch=batch: rng.normal(size=(*batch, 2)) * 2,
            "mvn_covariance": lambda batch=batch: rng.normal(size=(*batch, 2)) * 2,
            "mvn_precision": lambda batch=batch: rng.normal(size=(*batch, 2)) * 2,
            "vector_poisson": lambda batch=batch: rng.poisson(2.0, (*batch, 3)),
        }
        draw = draws.get(site.family, lambda batch=batch: rng.normal(size=batch) * 2)
        data[f"x{number}"] = np.asarray(draw())
        if site.masked:
            elementwise = site.family.startswith("vector")
            mask = rng.random(data[f"x{number}"].shape if elementwise else batch) < 0.7
            data[f"x{number}_mask"] = np.asarray(mask)
            if data[f"x{number}"].dtype.kind == "f" and not site.family.startswith("mvn"):
                data[f"x{number}"] = np.where(mask, data[f"x{number}"], np.nan)
    if spec.tie is not None:
        data["tie"] = np.asarray(rng.integers(0, 2, batches[spec.latents[spec.tie[0]].level]))
    if spec.weight != "none":
        shape = {"scalar": (), "outer": (outer, 1), "inner": (outer, inner)}[spec.weight]
        data["weight"] = np.asarray(rng.choice([0.5, 1.0, 2.0, 3.0], shape))
    if spec.masked_cells:
        data["cells"] = np.asarray(rng.random((outer, 1)) < 0.7)
    return data


def model(data: Mapping[str, np.ndarray], spec: Spec, priors: bool = False):
    """The NumPyro model of a specification."""
    theta = {}
    for name, (shape, _event, constraint, prior) in parameters(spec).items():
        needs_prior = name.rsplit("_", 1)[1] in _UNBOUNDED
        if prior is not None and (priors or needs_prior):
            theta[name] = numpyro.sample(name, prior.expand(shape[: len(shape) - len(prior.event_shape)]).to_event())
        else:
            theta[name] = numpyro.param(
                name, jnp.asarray(random_params(spec, np.random.default_rng(spec.seed))[name]), constraint=constraint
            )
    plates = {
        "outer": numpyro.plate("outer", spec.sizes[0], dim=-2),
        "inner": numpyro.plate("inner", spec.sizes[1], dim=-1),
    }

    @contextlib.contextmanager
    def inside(level):
        with contextlib.ExitStack() as stack:
            if "cells" in data and level > 0:
                stack.enter_context(numpyro.handlers.mask(mask=data["cells"]))
            covers = {"none": None, "scalar": 0, "outer": 1, "inner": 2}[spec.weight]
            if covers is not None and level >= covers:
                stack.enter_context(numpyro.handlers.scale(scale=data["weight"]))
            for plate in _PLATES[level]:
                stack.enter_context(plates[plate])
            yield

    z: list = []

    def chosen(name, parents):
        return theta[name][tuple(z[p] for p in parents)] if parents else theta[name]

    for number, latent in enumerate(spec.latents):
        argument = chosen(f"z{number}_{latent.kind}", latent.parents)
        build = {
            "probs": lambda a: dist.Categorical(probs=a),
            "logits": lambda a: dist.Categorical(logits=a),
            "bernoulli": lambda a: dist.Bernoulli(probs=a),
            "bernoulli_logits": lambda a: dist.Bernoulli(logits=a),
        }[latent.kind]
        with inside(latent.level):
            z.append(numpyro.sample(f"z{number}", build(argument)))
    if spec.tie is not None:
        first, second = spec.tie
        with inside(spec.latents[first].level):
            numpyro.sample("tie", dist.Delta((z[first] + z[second]) % 2), obs=data["tie"])
    for number, site in enumerate(spec.observed):
        indexed = {s: i for s, _, i, _, _ in FAMILIES[site.family]}
        a = {s: chosen(f"x{number}_{s}", site.parents) if i else theta[f"x{number}_{s}"] for s, i in indexed.items()}
        fn = _distribution(site.family, a)
        mask = data.get(f"x{number}_mask")
        if mask is not None and site.family.startswith("vector"):
            fn = fn.mask(mask)
        if site.family.startswith("vector"):
            fn = fn.to_event(1)
        with inside(site.level):
            if mask is not None and not site.family.startswith("vector"):
                with numpyro.handlers.mask(mask=mask):
                    numpyro.sample(f"x{number}", fn, obs=data[f"x{number}"])
            else:
                numpyro.sample(f"x{number}", fn, obs=data[f"x{number}"])


def _distribution(family, a):
    if family == "bernoulli":
        return dist.Bernoulli(probs=a["p"])
    if family == "bernoulli_logits":
        return dist.Bernoulli(logits=a["logit"])
    if family == "categorical":
        return dist.Categorical(probs=a["p"])
    if family in ("poisson", "vector_poisson"):
        return dist.Poisson(a["rate"])
    if family in ("normal", "normal_shared_scale", "vector_normal"):
        return dist.Normal(a["loc"], a["scale"])
    if family == "binomial":
        return dist.Binomial(5, probs=a["p"])
    if family == "exponential":
        return dist.Exponential(a["rate"])
    if family == "mvn_covariance":
        return dist.MultivariateNormal(a["loc"], covariance_matrix=a["cov"])
    return dist.MultivariateNormal(a["loc"], precision_matrix=a["prec"])
