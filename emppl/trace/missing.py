"""Missing cells of observations: latents in a multivariate normal, left out where cells are independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions.distribution import Unit
from numpyro.primitives import Messenger

from emppl.errors import ModelError
from emppl.inputs.arguments import Skeleton, known_among
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import with_inputs_for_constants
from emppl.trace.discover import run_once
from emppl.trace.distributions import element_mask, unwrap


class Unseen(dist.Normal):
    """Density of the latent of missing cells: standard normal where the cell is observed, flat where it is missing."""


class MissingCells(Messenger):
    """Integrates out the cells of observations that are NaN.

    Those of a multivariate normal get a latent, which has an entry for every cell. Where the cell is missing, its
    density is flat: what is known of it comes from the observation's own density. Where the cell is there, the entry is
    a standard normal that nothing else touches, which integrates to one. Cells that nothing else depends on are left
    out by a mask: their density integrates to one.

    Args:
        left_out: the observations of which this is so.
    """

    def __init__(self, model: Callable, left_out: frozenset[str] = frozenset()):
        super().__init__(model)
        self.__name__ = getattr(model, "__name__", "model")
        self.left_out = left_out

    def process_message(self, msg: dict[str, Any]) -> None:
        """Fill in one observation, or mask it."""
        if msg["type"] != "sample" or not msg.get("is_observed") or msg["value"] is None:
            return
        if msg["name"] in self.left_out:
            msg["fn"] = _masked(msg["fn"], ~jnp.isnan(msg["value"]))
            return
        base, reinterpreted, masks = unwrap(msg["fn"])
        if not isinstance(base, dist.MultivariateNormal):
            return
        name = msg["name"]
        if reinterpreted:
            raise ModelError(
                f"Site {name!r} is a multivariate normal under to_event, and the data hold NaN. Missing cells are "
                f"integrated out where rows lie in a plate: put the rows of {name!r} in a numpyro.plate, and leave "
                "to_event out."
            )
        value, seen = jnp.asarray(msg["value"]), element_mask(masks)
        is_missing = jnp.isnan(value)
        # In a row that is masked as a whole nothing is known of the cell: it is a standard normal too.
        is_flat = is_missing if seen is None else is_missing & seen[..., None]
        filler = Unseen(jnp.zeros(value.shape, value.dtype), 1.0).mask(~is_flat).to_event(1)
        latent = numpyro.sample(missing_name(name), filler)
        msg["value"] = jnp.where(is_missing, latent, value)


def _masked(fn: Any, seen: jax.Array) -> Any:
    """A distribution of which only some cells count, event axes made of cells included."""
    if isinstance(fn, dist.Independent):
        return _masked(fn.base_dist, seen).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return _masked(fn.base_dist, seen).mask(fn._mask)
    return fn.mask(seen)


def cells_left_out(
    model: Callable, shapes: Sequence[jax.ShapeDtypeStruct], skeleton: Skeleton, holders: Sequence[int]
) -> frozenset[str]:
    """Observations whose missing cells are integrated out by leaving them out.

    Their cells are independent given everything else, and their values are data alone.

    Args:
        model: a NumPyro model.
        holders: positions of the arrays of data that hold NaN.
    """
    names: list[str] = []

    def values(data: list[jax.Array], zero: jax.Array) -> list[jax.Array]:
        messages = run_once(model, data, skeleton, jax.random.key(0), zero)[0].frame.messages
        seen = {name: msg for name, msg in messages.items() if msg["type"] == "sample" and msg.get("is_observed")}
        names.extend(name for name, msg in seen.items() if _has_independent_cells(msg))
        return [jnp.asarray(seen[name]["value"]) for name in names]

    closed = jax.make_jaxpr(values)(list(shapes), jnp.zeros((), jnp.result_type(int)))
    inputs = [("data", str(position)) for position in range(len(shapes))] + [("latent", "")]
    known = {n: leaf.array for n, leaf in known_among(skeleton).items() if leaf.array is not None}
    dependence = Dependence(with_inputs_for_constants(closed, known), tuple(inputs))
    wanted = {("data", str(position)) for position in holders}
    labels = {name: dependence.of_output(number) for number, name in enumerate(names)}
    return frozenset(n for n, own in labels.items() if wanted & own and not any(kind == "latent" for kind, _ in own))


def _has_independent_cells(msg: dict[str, Any]) -> bool:
    base = unwrap(msg["fn"], [])[0]
    value = msg["value"]
    is_number = value is not None and jnp.issubdtype(jnp.result_type(value), jnp.floating)
    # The labels of a partly observed site are masked already.
    return is_number and not isinstance(base, Unit) and not base.event_shape and not msg["name"].endswith("_observed")


def missing_name(site: str) -> str:
    """Name of the latent of a site's missing cells."""
    return f"{site}_missing"
