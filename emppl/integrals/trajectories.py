"""Continuous latents of a scan as one vector per chain, for strategies that need not be exact.

Where the log joint density is not quadratic there is no smoother; but a whole trajectory is a vector like any other.
Its Hessian is banded, so that the few probes of a window give all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from emppl.errors import ModelError
from emppl.integrals.smoother import values_along, whole_states
from emppl.jaxpr.layout import Block, Layout
from emppl.model.integral import Integral, StateSpace
from emppl.parameters.constraints import constraint_name
from emppl.trace import Trace

LONGEST = 2048
"""Most numbers of one trajectory: the dense matrices of longer ones would take the time of everything else."""


@dataclasses.dataclass(frozen=True)
class Trajectories(Layout):
    """A layout whose vectors are whole chains, the first step first.

    Attributes:
        states: how steps follow each other.
    """

    states: StateSpace

    @property
    def per_group(self) -> int:
        """Numbers of one trajectory."""
        return self.states.steps * self.states.dimensions

    @property
    def in_common(self) -> int:
        """Chains share nothing."""
        return 0

    def pack(self, block: Block) -> jax.Array:
        """Trajectories ``(chains, steps * dimensions)`` from first steps and windows, which repeat themselves."""
        states = self.states
        firsts = states.firsts.pack({name: block[name] for name in states.firsts.shapes})
        windows = states.windows.pack({name: block[name] for name in states.windows.shapes})
        newest = whole_states(states, windows, (-1,))[:, -states.dimensions :]
        later = jnp.reshape(newest, (states.chain.length, states.cells, states.dimensions))
        return jnp.concatenate([firsts, jnp.reshape(jnp.moveaxis(later, 1, 0), (states.cells, -1))], 1)

    def unpack(self, vectors: jax.Array) -> dict[str, jax.Array]:
        """Inverse of :meth:`pack`."""
        states = self.states
        steps = jnp.reshape(vectors, (states.cells, states.steps, states.dimensions))
        return values_along(states, jnp.moveaxis(steps, 1, 0))

    def hessian(self, gradient: Callable[[Block], Block], at: Block) -> jax.Array:
        """Second derivatives, ``(chains, entries, entries)``: the sum of those of all windows."""
        states, order, size = self.states, self.states.chain.order, self.states.dimensions

        def curvature(layout: Layout) -> jax.Array:
            def own(block):
                slope = gradient({**at, **block})
                return {name: slope[name] for name in block}

            return layout.hessian(own, {name: at[name] for name in layout.shapes})

        number, cells = states.chain.length, states.cells
        windows = whole_states(states, curvature(states.windows), (-2, -1))
        windows = jnp.reshape(windows, (number, cells, order + 1, size, order + 1, size))
        firsts = jnp.reshape(curvature(states.firsts), (cells, order, size, order, size))
        dense = jnp.zeros((cells, states.steps, size, states.steps, size), windows.dtype)
        dense = dense.at[:, :order, :, :order].set(firsts)
        steps = jnp.arange(number)
        for one in range(order + 1):
            for other in range(order + 1):
                dense = dense.at[:, steps + one, :, steps + other].add(windows[:, :, one, :, other])
        return jnp.reshape(dense, (cells, self.per_group, self.per_group))


def by_trajectory(integral: Integral, trace: Trace) -> Integral:
    """The latents of a scan as an integral over one vector per chain.

    Args:
        integral: the latents, their windows laid out.
        trace: the model.

    Returns:
        The integral without ``states``: to every strategy it is one like those outside of scans.

    Raises:
        ModelError: a latent within bounds, or trajectories that are too long.
    """
    states = integral.states
    assert states is not None
    names = ", ".join(map(repr, integral.latents))
    for name in integral.latents:
        constraint = constraint_name(trace.sites[name].constraint)
        if not constraint.startswith("real"):
            raise ModelError(
                f"The continuous latent {name!r} inside a scan is {constraint}, and no strategy integrates such a "
                "chain yet. Let the chain be one of real numbers, the logarithm or logit of it, say, and transform "
                "these where they are used."
            )
    length = states.steps * states.dimensions
    if length > LONGEST:
        raise ModelError(
            f"The log joint density is not quadratic in {names}, inside a scan, so that its {states.steps:,} steps are "
            f"integrated together: {length:,} numbers, of which {LONGEST:,} are the limit. Cut the series into shorter "
            "ones, in a plate, or write a model that is normal given the parameters."
        )
    parts = states.firsts, states.windows
    shapes = {name: shape for layout in parts for name, shape in layout.shapes.items()}
    layout = Trajectories(shapes, dict(states.firsts.grouped), states.firsts.groups, states)
    return dataclasses.replace(integral, layout=layout, states=None, trajectory=states)
