"""Checks of the data before a fit, compiled once; every failure names the site, the row and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import DataError, ModelError
from emppl.estep import integrate_all
from emppl.model.model import Model
from emppl.model.site import AlignedSite, with_equal_ranks
from emppl.mstep import ClosedForm
from emppl.numerics.guarded import IMPOSSIBLE_SUM
from emppl.program import Program
from emppl.trace import as_numpyro_expects
from emppl.types import Data, Params, Tables


def data_report(model: Model, data: Data) -> dict[str, dict[str, jax.Array]]:
    """What is wrong with the observed values, as arrays: pure, to be jitted.

    Returns:
        For every observed site: ``"finite"`` and ``"support"``, the flat index of the first bad value or -1;
        for every latent ``"weight"``, the number of cells it has (equal rows counted).
    """
    params = model.placeholders()
    arrays = model.evaluate(params, data)
    report: dict[str, dict[str, jax.Array]] = {}
    for name, factor in model.factors.items():
        site_arrays = factor.at_one_atom(arrays[name])
        if factor.site.kind == "observed":
            report[name] = _over_time(factor, site_arrays)
        if factor.site.kind == "discrete":
            scale = factor.scale(arrays)
            plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
            shape = model.axes.shape(plates)
            ones = jnp.ones(shape)
            weight = ones if scale is None else jnp.broadcast_to(scale, jnp.broadcast_shapes(shape, scale.shape))
            # Weights may count equal rows, or be shares that add up to one.
            report[name] = {"weight": jnp.maximum(jnp.sum(weight), jnp.sum(weight > 0))}
    for name, faults in model.step_faults(arrays).items():
        report[name] = {**report[name], **faults}
    for name in model.free:
        if model.use_prior and model.trace.sites[name].distribution in _UNBOUNDED_BELOW_ONE:
            prior = arrays[name].distribution
            fields = _UNBOUNDED_BELOW_ONE[model.trace.sites[name].distribution]
            report[name] = {"concentration": jnp.stack([jnp.min(getattr(prior, field)) for field in fields]).min()}
    return report


_UNBOUNDED_BELOW_ONE = {
    "Dirichlet": ("concentration",),
    "Beta": ("concentration0", "concentration1"),
    "BetaProportion": ("concentration0", "concentration1"),
    "Kumaraswamy": ("concentration0", "concentration1"),
    "Gamma": ("concentration",),
    "Chi2": ("concentration",),
    "Weibull": ("concentration",),
    "LKJ": ("concentration",),
    "LKJCholesky": ("concentration",),
}


def _over_time(factor: AlignedSite, site_arrays: Any) -> dict[str, jax.Array]:
    """The report on a site inside a scan: over all its steps, the first bad cell of the first bad step."""
    if factor.site.time is None:
        return _value_report(factor, site_arrays)
    report: dict[str, jax.Array] = {}
    for key, positions in factor.by_step(site_arrays, lambda step: _value_report(factor, step)).items():
        step = jnp.argmax(jnp.ravel(positions) >= 0)
        report |= {key: jnp.ravel(positions)[step], f"{key} step": step}
    return report


def _value_report(factor: AlignedSite, site_arrays: Any) -> dict[str, jax.Array]:
    value = site_arrays.value
    rank = value.ndim - len(site_arrays.distribution.event_shape)
    finite = jnp.isfinite(value) if jnp.issubdtype(value.dtype, jnp.inexact) else jnp.ones(value.shape, bool)
    finite = jnp.all(finite, tuple(range(rank, value.ndim)))
    inside = jnp.ones((), bool)
    # What the support depends on: bounds, and numbers of trials (which in an N-mixture are latent).
    bounds = (*factor.family.edges, *factor.family.fixed) if factor.family is not None else ()
    settled = not any(depends.get(f) for depends in (factor.parameters, factor.latents) for f in ("value", *bounds))
    if settled and (factor.is_exponential or not factor.all_parameters | factor.all_latents):
        try:
            with as_numpyro_expects():
                inside = jnp.asarray(site_arrays.distribution.support(value))
        except (NotImplementedError, TypeError, AttributeError):
            pass
    inside, finite = with_equal_ranks(inside, finite)
    inside = inside | ~finite
    seen = jnp.ones((), bool) if site_arrays.mask is None else site_arrays.mask
    if site_arrays.label_mask is not None:
        seen = site_arrays.label_mask
    seen, finite, inside = with_equal_ranks(seen, finite, inside)
    return {"finite": _first(~finite & seen), "support": _first(~inside & seen)}


def _first(bad: jax.Array) -> jax.Array:
    """Flat index of the first bad cell, or -1."""
    flat = bad.ravel()
    return jnp.where(jnp.any(flat), jnp.argmax(flat), -1)


_STEP_FAULTS = {
    "gap": (
        "after a step that does not exist one exists again. Put padding at the end of a sequence; for a missing "
        "observation mask the observation only, so that the chain runs on"
    ),
    "observed": (
        "a step that does not exist has data. Mask the observations of that step as well: `with "
        "numpyro.handlers.mask(mask=t < length)` around both"
    ),
    "unlike": (
        "other latents of the same scan have another mask. Put all latents of a step under one "
        "`with numpyro.handlers.mask(...)`"
    ),
}


def check_values(model: Model, report: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise the first fault of the data in a report of :func:`data_report`: under these no density is what it seems.

    Raises:
        DataError: NaN or infinity, masks that describe no chain.
    """
    for name, findings in report.items():
        site = model.trace.sites[name]
        if "finite" in findings and int(findings["finite"]) >= 0:
            where = _where(model, name, findings, "finite")
            if site.transforms:
                raise DataError(
                    f"Observed site {name!r} holds a value that {site.transforms[0]} cannot have made of "
                    f"{site.distribution}, or NaN or infinity ({where}). Check the data, or choose another "
                    "distribution."
                )
            event = f".to_event({site.reinterpreted})" if site.reinterpreted else ""
            raise DataError(
                f"Observed site {name!r} holds NaN or infinity ({where}). Drop those rows, or leave the cells out of "
                f"the likelihood: numpyro.sample({name!r}, dist.{site.distribution}(...).mask(jnp.isfinite(x)){event}, "
                "obs=x). NaN in an argument, given as it is to obs=, is a missing cell and is left out."
            )
        for fault, words in _STEP_FAULTS.items():
            if bool(findings.get(fault, False)):
                raise DataError(f"The mask of scanned latent {name!r} says which steps exist, but {words}.")


def check_fit(program: Program, report: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise the first reason in a report of :func:`data_report` why the data cannot be fitted.

    Raises:
        DataError: a value outside the support (its density is zero), more components than data.
        ModelError: a prior without a mode.
    """
    for name, findings in report.items():
        kind = program.model.trace.sites[name].distribution
        if "support" in findings and int(findings["support"]) >= 0:
            where = _where(program.model, name, findings, "support")
            raise DataError(
                f"Observed site {name!r} holds a value outside the support of {kind} ({where}). "
                "Check the coding of the data (categories start at 0) or choose another distribution."
            )
        if "concentration" in findings and float(findings["concentration"]) < 1:
            raise ModelError(
                f"The {kind} prior of {name!r} has concentration below 1, where its density is unbounded: it has no "
                "posterior mode. Use concentration 1 (flat) or more, or EM(model, prior=False)."
            )
    for name, rule in program.rules.items():
        if not isinstance(rule, ClosedForm) or not _describes_data(program.model, rule):
            continue
        for latents in filter(None, program.model.dependence.indexed(name)):
            if any(all(plate.size == 1 for plate in program.model.trace.sites[latent].plates) for latent in latents):
                continue  # one choice between models for all the data at once, not one per row
            states = max(program.model.trace.sites[latent].states for latent in latents)
            cells = sum(float(report[latent]["weight"]) for latent in latents)
            if states > cells:
                raise DataError(
                    f"Latent {min(latents)!r} has {states} states but only {cells:g} data cells, so parameter {name!r} "
                    f"has more components than data. Use at most {int(cells)} components."
                )


def _describes_data(model: Model, rule: ClosedForm) -> bool:
    """Whether a rule updates a parameter of an observed site, such as a component's mean."""
    return any(model.factors[target.site].site.kind == "observed" for target in rule.targets)


def _where(model: Model, name: str, findings: Mapping[str, Any], fault: str) -> str:
    """The place of the first bad cell, in words."""
    site, flat = model.trace.sites[name], int(findings[fault])
    latent_free = [
        size
        for dim, size in zip(range(-len(site.batch_shape), 0), site.batch_shape, strict=True)
        if dim not in model.trace.latent_dims.values() and (site.time is None or dim != site.time.dim)
    ]
    shape = tuple(latent_free) + site.event_shape[: site.reinterpreted]
    step = ""
    if site.time is not None:
        first_steps = next((scan.order for scan in model.trace.scans if scan.time == site.time.name), 0)
        step = f" of step {int(findings[f'{fault} step']) + first_steps}"
        if math.prod(shape) == 1:
            return f"first at{step.removeprefix(' of')}"
    if shape and flat < math.prod(shape):
        index = np.unravel_index(flat, shape)
        at = f"index {tuple(int(i) for i in index)}" if len(index) > 1 else f"row {int(index[0])}"
        return f"first at {at}{step}"
    return f"first at flat index {flat}{step}"


def row_tables(model: Model, params: Params, data: Data) -> dict[str, jax.Array]:
    """Total log-probability of every row under every state, for :func:`impossible_rows`."""
    arrays = model.evaluate(params, data)
    tables = model.tables(arrays, model.integrated)
    tables |= {name: integrated.evidence for name, integrated in integrate_all(model, params, data).items()}
    return {"all sites together": _sum_over_inner_plates(model, tables)}


def arrays_with_holes(data: Data) -> str | None:
    """Name the first array among the model's arguments that holds NaN, and where, or None."""
    for number, leaf in enumerate(data, 1):
        if np.issubdtype(leaf.dtype, np.floating) and np.any(np.isnan(leaf)):
            index = ", ".join(str(int(i)) for i in np.argwhere(np.isnan(leaf))[0])
            return f"array {number} among the model's arguments (shape {tuple(leaf.shape)}, first at [{index}])"
    return None


def _sum_over_inner_plates(model: Model, tables: Tables) -> jax.Array:
    keep = model.axes.latents | {model.axes.rows}
    total = jnp.zeros(())
    for table in tables.values():
        inner = tuple(a for a, n in enumerate(model.axes.names) if n not in keep and table.shape[a] > 1)
        total = jnp.sum(table, inner, keepdims=True) + jnp.reshape(
            total, (1,) * (table.ndim - total.ndim) + total.shape
        )
    return total


def impossible_rows(model: Model, tables: Tables) -> str | None:
    """Describe the first row that has probability zero under every state, from log-probability tables."""
    for name, table in tables.items():
        axes = tuple(a for a, n in enumerate(model.axes.names) if n in model.axes.latents)
        dead = ~np.any(np.asarray(table) > IMPOSSIBLE_SUM, axis=axes)
        if np.any(dead):
            index = np.argwhere(dead)[0]
            return f"site {name!r}, row {int(index[-1])}"
    return None
