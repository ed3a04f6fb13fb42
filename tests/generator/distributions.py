"""NumPy's stand-ins for NumPyro's distributions: log-probabilities of cells, masks, events, copies."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

_LOG_2PI = math.log(2 * math.pi)


class Distribution:
    """What all have in common: batch and event shapes, masks, events, copies."""

    event_rank = 0
    support = None  # the values of a discrete one, None otherwise
    present = None  # which cells are not masked out

    def cells(self, value):
        raise NotImplementedError

    def log_prob(self, value):
        table = self.cells(value)
        return table if self.present is None else np.where(self.present, table, 0.0)

    @property
    def batch_shape(self):
        raise NotImplementedError

    @property
    def event_shape(self):
        return ()

    def mask(self, present):
        copy = self._copy()
        copy.present = present if self.present is None else np.logical_and(present, self.present)
        return copy

    def to_event(self, rank=None):
        return Event(self, len(self.batch_shape) if rank is None else rank)

    def expand(self, shape):
        return Expanded(self, tuple(shape))

    def _copy(self):
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy


class Event(Distribution):
    """Some batch axes are axes of one value."""

    def __init__(self, base, rank):
        self.base, self.rank, self.support = base, rank, base.support

    @property
    def batch_shape(self):
        whole = self.base.batch_shape
        return whole[: len(whole) - self.rank]

    @property
    def event_shape(self):
        whole = self.base.batch_shape
        return (*whole[len(whole) - self.rank :], *self.base.event_shape)

    def cells(self, value):
        table = self.base.log_prob(value)
        table = np.broadcast_to(table, np.broadcast_shapes(np.shape(table), self.base.batch_shape))
        return table.sum(tuple(range(-self.rank, 0))) if self.rank else table


class Expanded(Distribution):
    """The same distribution in every cell of a larger shape."""

    def __init__(self, base, shape):
        self.base, self._shape, self.support = base, shape, base.support

    @property
    def batch_shape(self):
        return np.broadcast_shapes(self.base.batch_shape, self._shape)

    @property
    def event_shape(self):
        return self.base.event_shape

    def cells(self, value):
        table = self.base.log_prob(value)
        return np.broadcast_to(table, np.broadcast_shapes(np.shape(table), self._shape))


class Scalar(Distribution):
    """Distributions of one number, with arguments that broadcast."""

    names: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()

    def __init__(self, *arguments, **named):
        given = dict(zip(self.names[-len(self.defaults) :] if self.defaults else (), self.defaults, strict=True))
        given |= dict(zip(self.names, arguments, strict=False)) | named
        self.arguments = [np.asarray(given[name], float) for name in self.names]
        self.prepare()

    def prepare(self):
        pass

    @property
    def batch_shape(self):
        return np.broadcast_shapes(*(a.shape for a in self.arguments))

    def cells(self, value):
        return self.density(np.asarray(value, float), *self.arguments)


class Normal(Scalar):
    names, defaults = ("loc", "scale"), (0.0, 1.0)

    def density(self, x, loc, scale):
        return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * _LOG_2PI


class Laplace(Scalar):
    names, defaults = ("loc", "scale"), (0.0, 1.0)

    def density(self, x, loc, scale):
        return -np.abs(x - loc) / scale - np.log(2 * scale)


class HalfNormal(Scalar):
    names, defaults = ("scale",), (1.0,)

    def density(self, x, scale):
        return math.log(2) - 0.5 * (x / scale) ** 2 - np.log(scale) - 0.5 * _LOG_2PI


class Exponential(Scalar):
    names, defaults = ("rate",), (1.0,)

    def density(self, x, rate):
        return np.log(rate) - rate * x


class Gamma(Scalar):
    names, defaults = ("concentration", "rate"), (1.0,)

    def density(self, x, a, rate):
        return a * np.log(rate) + special.xlogy(a - 1, x) - rate * x - special.gammaln(a)


class InverseGamma(Scalar):
    names, defaults = ("concentration", "rate"), (1.0,)

    def density(self, x, a, rate):
        return a * np.log(rate) - (a + 1) * np.log(x) - rate / x - special.gammaln(a)


class Beta(Scalar):
    names = ("concentration1", "concentration0")

    def density(self, x, a, b):
        return special.xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - special.betaln(a, b)


class Poisson(Scalar):
    names = ("rate",)

    def density(self, x, rate):
        return special.xlogy(x, rate) - rate - special.gammaln(x + 1)


class DiscreteUniform(Scalar):
    names, defaults = ("low", "high"), (0, 1)

    def prepare(self):
        self.support = np.arange(int(self.arguments[0].min()), int(self.arguments[1].max()) + 1)

    def density(self, x, low, high):
        return np.where((x >= low) & (x <= high), -np.log(high - low + 1), -np.inf)


class Delta(Scalar):
    names = ("v",)

    def density(self, x, v):
        return np.where(x == v, 0.0, -np.inf)


class _Successes(Distribution):
    def __init__(self, probs=None, logits=None):
        self.argument, self.by_logits = np.asarray(logits if probs is None else probs, float), probs is None

    @property
    def batch_shape(self):
        return self.argument.shape

    def logs(self):
        """Log-probabilities of a success and of a failure."""
        if self.by_logits:
            return special.log_expit(self.argument), special.log_expit(-self.argument)
        with np.errstate(divide="ignore"):
            return np.log(self.argument), np.log1p(-self.argument)


def _times(count, log):
    return np.where(count == 0, 0.0, count * np.where(count == 0, 0.0, log))


class Bernoulli(_Successes):
    support = np.arange(2)

    def cells(self, value):
        success, failure = self.logs()
        return _times(value, success) + _times(1 - np.asarray(value), failure)


class Binomial(_Successes):
    def __init__(self, total_count=1, probs=None, logits=None):
        super().__init__(probs, logits)
        self.total = np.asarray(total_count)
        self.support = np.arange(int(self.total.max()) + 1)

    @property
    def batch_shape(self):
        return np.broadcast_shapes(self.argument.shape, self.total.shape)

    def cells(self, value):
        value = np.asarray(value)
        success, failure = self.logs()
        with np.errstate(invalid="ignore"):
            ways = (
                special.gammaln(self.total + 1) - special.gammaln(value + 1) - special.gammaln(self.total - value + 1)
            )
        return ways + _times(value, success) + _times(self.total - value, failure)


class Categorical(Distribution):
    def __init__(self, probs=None, logits=None):
        if probs is None:
            self.logs = logits - special.logsumexp(logits, -1, keepdims=True)
        else:
            with np.errstate(divide="ignore"):
                self.logs = np.log(np.asarray(probs, float))
                self.logs = self.logs - np.log(np.sum(probs, -1, keepdims=True))
        self.support = np.arange(self.logs.shape[-1])

    @property
    def batch_shape(self):
        return self.logs.shape[:-1]

    def cells(self, value):
        value = np.asarray(value)
        shape = np.broadcast_shapes(value.shape, self.logs.shape[:-1])
        logs = np.broadcast_to(self.logs, (*shape, self.logs.shape[-1]))
        return np.take_along_axis(logs, np.broadcast_to(value, shape)[..., None], -1)[..., 0]


class Dirichlet(Distribution):
    def __init__(self, concentration):
        self.concentration = np.asarray(concentration, float)

    @property
    def batch_shape(self):
        return self.concentration.shape[:-1]

    @property
    def event_shape(self):
        return self.concentration.shape[-1:]

    def cells(self, value):
        a = self.concentration
        return special.xlogy(a - 1, value).sum(-1) + special.gammaln(a.sum(-1)) - special.gammaln(a).sum(-1)


class MultivariateNormal(Distribution):
    def __init__(self, loc=0.0, covariance_matrix=None, precision_matrix=None, scale_tril=None):
        if scale_tril is not None:
            covariance_matrix = scale_tril @ np.swapaxes(scale_tril, -1, -2)
        self.precision = np.asarray(
            np.linalg.inv(covariance_matrix) if precision_matrix is None else precision_matrix, float
        )
        self.loc = np.asarray(loc, float)
        if self.loc.ndim == 0:
            self.loc = np.full(self.precision.shape[-1], self.loc)

    @property
    def batch_shape(self):
        return np.broadcast_shapes(self.loc.shape[:-1], self.precision.shape[:-2])

    @property
    def event_shape(self):
        return self.loc.shape[-1:]

    def cells(self, value):
        away = np.asarray(value) - self.loc
        square = np.einsum("...i,...ij,...j->...", away, self.precision, away)
        return 0.5 * (np.linalg.slogdet(self.precision)[1] - square - self.loc.shape[-1] * _LOG_2PI)


FAMILIES = (Normal, Laplace, HalfNormal, Exponential, Gamma, InverseGamma, Beta, Poisson, DiscreteUniform, Delta)
FAMILIES += (Bernoulli, Binomial, Categorical, Dirichlet, MultivariateNormal)


def masks(fn):
    """The masks of a distribution and of what it is made of."""
    while isinstance(fn, Distribution):
        if fn.present is not None and not isinstance(fn, Event):
            yield fn.present
        fn = getattr(fn, "base", None)
