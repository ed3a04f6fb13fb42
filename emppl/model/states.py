"""Whether the states of every discrete latent stay on their axis, from its values to the tables of all sites."""

from __future__ import annotations

from typing import Any

import jax

from emppl.errors import StatesError
from emppl.jaxpr.cellwise import Apart, Mixed, Place, lanes
from emppl.model.model import Model
from emppl.names import latent_of


def check_states(model: Model) -> None:
    """Refuse sites in which states of a latent meet, or lie along another axis than their own.

    Raises:
        StatesError: the first such site.
    """
    trace, axes = model.trace, model.axes
    atoms = {name: values for name, values in sorted(trace.atoms.items()) if values.size > 1}
    if not atoms:
        return

    def tables(atoms: Any, params: Any, data: Any) -> dict[str, jax.Array]:
        return model.tables(model.evaluate(params, data, atoms=atoms))

    closed = jax.make_jaxpr(tables)(atoms, trace.parameter_shapes, model.shapes)
    entries: list[Any] = [Apart({(name, ""): Place(0, 1, values.size)}) for name, values in atoms.items()]
    found = lanes(closed, entries + [None] * (len(closed.jaxpr.invars) - len(entries)))
    for name, entry in zip(sorted(model.factors), found, strict=True):
        if isinstance(entry, Mixed):
            raise StatesError(_refusal(name, entry.label[0], entry.words))
        for (latent, _), place in entry.axes.items() if entry else ():
            if place != (axes.names.index(latent), 1, axes.sizes[latent]):
                raise StatesError(_refusal(name, latent, "it comes to lie along a plate, or along another latent"))


def _refusal(name: str, axis: str, what: str) -> str:
    latent = latent_of(axis)
    return (
        f"Site {name!r} moves the axis of the states of latent {latent!r}: {what}. States lie on an axis of their own, "
        f"in front of all plates, so what the model puts together must be put behind them. Count axes from the last "
        f"one, and put new ones last: jnp.stack([1 - p[{latent}], p[{latent}]], axis=-1) in place of "
        f"jnp.stack([1 - p[{latent}], p[{latent}]]), x[..., None] in place of x[:, None], axis=-1 in place of axis=0."
    )
