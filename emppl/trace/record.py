"""What a trace keeps: static facts about sites and plates, and the arrays of one evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from numpyro.distributions import Delta, Distribution

from emppl.inputs.trees import ParamTree
from emppl.types import Data


@dataclasses.dataclass(frozen=True)
class Plate:
    """One plate, or the time axis of a scan.

    Attributes:
        name: its name.
        dim: its (negative) batch dimension.
        size: number of cells.
        full_size: number of cells before subsampling.
        is_time: whether its cells are the later steps of a scan, so that cells depend on each other.
    """

    name: str
    dim: int
    size: int
    full_size: int = 0
    is_time: bool = False


@dataclasses.dataclass(frozen=True)
class Scan:
    """Latents of one ``scan`` that later steps refer to.

    The first ``order`` steps are run one by one; their latents have names of their own (:mod:`emppl.names`).
    All later steps share the time axis: there a latent has its own axis, and one for each earlier step that the model
    still refers to.

    Attributes:
        time: name of the time axis.
        length: number of steps on the time axis, the first ones not counted.
        order: how many steps back the carry reaches.
        depths: by discrete latent, how many steps back the carry holds it; zero for one that no later step sees.
        hidden: the same by continuous latent.
    """

    time: str
    length: int
    order: int
    depths: Mapping[str, int]
    hidden: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def slots(self) -> tuple[tuple[str, int], ...]:
        """The state between two steps: ``(latent, steps back)``."""
        return tuple((name, lag) for name, depth in self.depths.items() for lag in range(depth))


@dataclasses.dataclass(frozen=True)
class AtomAxis:
    """A continuous latent that is integrated out: it takes several values at once.

    Attributes:
        axis: name of the axis of its atoms (sigma points, nodes or draws), common to latents that are integrated
            together.
        given: discrete latents; it has atoms of its own for each of their states.
    """

    axis: str
    given: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Site:
    """Static facts about one site.

    Attributes:
        name: the site's name.
        kind: ``"param"``, ``"continuous"`` (unobserved), ``"integrated"`` (unobserved and continuous, but a latent),
            ``"discrete"`` (unobserved), ``"observed"`` or ``"factor"``.
        distribution: class name of the innermost distribution, for messages.
        plates: the plates it sits in.
        shape: shape of its value (for a discrete latent: one cell per plate cell).
        event_shape: event shape of its distribution, ``to_event`` axes first.
        batch_shape: batch shape of its log-probability, latent axes included.
        reinterpreted: number of batch axes of the innermost distribution that ``to_event`` summed.
        constraint: support (unobserved sites and params), else None.
        states: number of atoms of a discrete latent, else 0.
        labels: for a partly observed latent, the name of the site that carries its labels.
        is_scanned: whether it lies inside a ``scan``.
        transforms: of an observed ``TransformedDistribution``, the transforms that were undone, the outermost first;
            ``distribution`` is then the base.
    """

    name: str
    kind: str
    distribution: str
    plates: tuple[Plate, ...]
    shape: tuple[int, ...]
    dtype: Any
    event_shape: tuple[int, ...] = ()
    batch_shape: tuple[int, ...] = ()
    reinterpreted: int = 0
    constraint: Any = None
    states: int = 0
    labels: str | None = None
    is_scanned: bool = False
    transforms: tuple[str, ...] = ()

    def event_rank(self, argument: str, kind: type[Distribution]) -> int | None:
        """How many of an argument's last axes are not batch axes of the innermost distribution, of that class.

        None: the class does not say.
        """
        if issubclass(kind, Delta) and argument == "v":  # as many as its ``event_dim``, which is no fact of the class
            return len(self.event_shape)
        try:
            return self.reinterpreted + (0 if argument == "log_factor" else kind.arg_constraints[argument].event_dim)
        except (KeyError, NotImplementedError):  # an own distribution: ``constraints.dependent`` says nothing
            return None

    @property
    def time(self) -> Plate | None:
        """The time axis of a site inside a ``scan``."""
        return next((plate for plate in self.plates if plate.is_time), None)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A model seen once for data of given shapes.

    Attributes:
        sites: static facts by site name, in model order.
        atoms: for every discrete latent its atoms, shaped ``(states, 1, ..., 1)``.
        latent_dims: the (negative) batch dimension of every latent's axis.
        plates: every plate by name.
        distributions: class of every sample site's innermost distribution.
        jaxpr: the traced computation; its inputs and outputs are named by ``inputs`` and ``outputs``.
        evaluate: ``evaluate(params, atoms, data, wanted=None) -> {site: SiteArrays}``, pure; ``wanted`` restricts it
            to some ``(site, field)`` pairs, the other fields are None. ``atoms`` holds those of discrete latents, and
            of integrated ones with a leading axis.
        initial: ``initial(rng_key, data) -> params``: declared values of params, prior draws of sampled parameters.
        scans: one per ``scan`` with latents that later steps refer to.
        timed: for sites inside a ``scan``, the paths of the fields that vary over time; these have a leading time axis.
        atom_axes: latents that are integrated out.
        over_atoms: for sites that depend on one, the axis of its atoms and the paths of the fields that vary along it;
            these have it as their leading axis, before time.
        reparametrised: by site that ``handlers.reparam`` puts in the place of another one, the name of that one and the
            parameters that its prior depends on.
        value_shapes: shape of one atom of every integrated latent: states of discrete latents, plates, event.
        trees: params that are trees of arrays, each of which is a site.
        starts: of every scan, the parameters in what is carried into its first step in the place of latents.
    """

    sites: dict[str, Site]
    atoms: dict[str, np.ndarray]
    latent_dims: dict[str, int]
    plates: dict[str, Plate]
    jaxpr: ClosedJaxpr
    inputs: tuple[tuple[str, str], ...]
    outputs: dict[tuple[str, ...], int]
    distributions: dict[str, type]
    evaluate: Any
    initial: Callable[[jax.Array, Data], dict[str, jax.Array]]
    scans: tuple[Scan, ...] = ()
    timed: Mapping[str, frozenset[tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    atom_axes: Mapping[str, AtomAxis] = dataclasses.field(default_factory=dict)
    over_atoms: Mapping[str, tuple[str, frozenset[tuple[str, ...]]]] = dataclasses.field(default_factory=dict)
    value_shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    trees: Mapping[str, ParamTree] = dataclasses.field(default_factory=dict)
    reparametrised: Mapping[str, tuple[str, frozenset[str]]] = dataclasses.field(default_factory=dict)
    starts: tuple[frozenset[str], ...] = ()

    def without(self, names: Sequence[str]) -> Trace:
        """The same model when some continuous sites, on which nothing depends, are left out."""
        zeros = {name: np.zeros(self.sites[name].shape, self.sites[name].dtype) for name in names}

        def keep(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in values.items() if name not in zeros}

        return dataclasses.replace(
            self,
            sites=keep(self.sites),
            evaluate=Without(self.evaluate, zeros),
            initial=lambda *inputs: keep(self.initial(*inputs)),
        )

    def rewritten(self, rewrite: Callable[[ClosedJaxpr], ClosedJaxpr]) -> Trace:
        """The same model by another computation with the same inputs and outputs."""
        return dataclasses.replace(self, jaxpr=rewrite(self.jaxpr), evaluate=self.evaluate.rewritten(rewrite))

    @property
    def parameters(self) -> list[str]:
        """Names of params and unobserved continuous sites, in model order."""
        return [name for name, site in self.sites.items() if site.kind in ("param", "continuous")]

    @property
    def parameter_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the parameters, for what is traced abstractly."""
        return {name: jax.ShapeDtypeStruct(self.sites[name].shape, self.sites[name].dtype) for name in self.parameters}


@dataclasses.dataclass(frozen=True)
class Without:
    """The evaluation of a trace without some sites, on which nothing depends.

    Attributes:
        evaluate: the evaluation with them.
        zeros: values for them.
    """

    evaluate: Any
    zeros: Mapping[str, np.ndarray]

    def __call__(self, params: Mapping[str, Any], *inputs: Any) -> dict[str, Any]:
        """Arrays of the other sites."""
        arrays = self.evaluate({**params, **self.zeros}, *inputs)
        return {name: value for name, value in arrays.items() if name not in self.zeros}

    def rewritten(self, rewrite: Callable[[ClosedJaxpr], ClosedJaxpr]) -> Without:
        """The same by another computation."""
        return Without(self.evaluate.rewritten(rewrite), self.zeros)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SiteArrays:
    """What ``Trace.evaluate`` returns for one sample site.

    Attributes:
        distribution: the innermost distribution, with its arguments un-broadcast.
        arguments: the arguments the user gave it, by name (as the user parameterised it).
        value: observed value, atoms or parameter value.
        mask: None, or a boolean array over the innermost distribution's batch shape.
        label_mask: for label sites, which cells are known.
        cell_weight: None, or the weight (``handlers.scale``) of every plate cell.
        log_measure: None, or what a transformation of the value adds to its log-probability.
    """

    distribution: Any
    arguments: dict[str, jax.Array]
    value: jax.Array
    mask: Any = None
    label_mask: Any = None
    cell_weight: Any = None
    log_measure: Any = None
