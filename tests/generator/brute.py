"""What is right about a generated model: sums over every joint assignment of its discrete latents, one by one.

Continuous latents are integrated under every assignment. The log joint density of the generated ones is quadratic in
them, so its values at few points give the whole of it, and the integral, its moments and expectations are algebra.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
from scipy.special import logsumexp

from tests.generator.plain import Plain
from tests.generator.writer import Program

MOST_ASSIGNMENTS = 1000


class TooMany(Exception):
    """The joint assignments of a model's latents are more than brute force can count."""


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """Quadratic functions of a vector, one for every assignment: value and gradient at 0, Hessians."""

    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray


class Brute:
    """One model at one value of its parameters.

    Args:
        plain: the model.
        data: its arguments.
        params: values by name of ``numpyro.param`` and of the sampled parameters.
    """

    def __init__(self, plain: Plain, data: dict, params: dict):
        self.plain, self.data, self.params = plain, data, dict(params)
        sites = plain.sites(params, data)
        self.sites = [site for site in sites if site.name not in params]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.supports: dict[str, np.ndarray] = {}
        self.present: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(s.name for s in self.sites if s.kind != "data"):
            steps = [site for site in self.sites if site.name == name]
            shape, present = np.shape(steps[0].value), np.stack([site.present for site in steps])
            if steps[0].step is None:
                present = present[0]
            else:
                shape = (len(steps), *shape)
            event = len(shape) - present.ndim
            present = np.broadcast_to(np.reshape(present, (*present.shape, *[1] * event)), shape)
            self.shapes[name], self.present[name] = shape, present
            if steps[0].kind == "discrete":
                self.supports[name] = steps[0].fn.support
        self.discrete = [n for n in self.shapes if n in self.supports]
        self.continuous = [n for n in self.shapes if n not in self.supports]
        self.assignments = self._assignments()

    def _assignments(self) -> list[dict[str, np.ndarray]]:
        cells = [
            (name, index, self.supports[name] if self.present[name][index] else self.supports[name][:1])
            for name in self.discrete
            for index in np.ndindex(self.shapes[name])
        ]
        count = math.prod(len(values) for _, _, values in cells)
        if count * (self.dimension + 1) * (self.dimension + 2) / 2 > MOST_ASSIGNMENTS:
            raise TooMany(f"{count} assignments, {self.dimension} dimensions")
        found = []
        for values in itertools.product(*(values for _, _, values in cells)):
            one = {name: np.zeros(self.shapes[name], int) for name in self.discrete}
            for (name, index, _), value in zip(cells, values, strict=True):
                one[name][index] = value
            found.append(one)
        return found

    @functools.cached_property
    def dimension(self) -> int:
        """Number of continuous latents that are not masked out."""
        return int(sum(self.present[name].sum() for name in self.continuous))

    def _with_vector(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        values, place = {}, 0
        for name in self.continuous:
            value = np.full(self.shapes[name], 0.0)
            size = int(self.present[name].sum())
            value[self.present[name]] = vector[place : place + size]
            values[name], place = value, place + size
        return values

    def log_joint(self, params: dict) -> Quadratic:
        """Log joint density of latents and data, without priors of parameters, as a function of the continuous latents."""
        d, density = self.dimension, functools.partial(self.plain.log_density, data=self.data, leave_out=set(params))
        units = np.eye(d)
        points = [np.zeros(d), *units, *-units, *(units[i] + units[j] for i in range(d) for j in range(i))]
        put = [self._with_vector(point) for point in points]
        table = np.array([[density({**params, **one, **vector}) for vector in put] for one in self.assignments])
        value, up, down = table[:, 0], table[:, 1 : 1 + d], table[:, 1 + d : 1 + 2 * d]
        if not d:
            return Quadratic(value, up, np.zeros((len(table), 0, 0)))
        gradient, diagonal = (up - down) / 2, up + down - 2 * value[:, None]
        hessian = np.zeros((len(table), d, d))
        hessian[:, range(d), range(d)] = diagonal
        pairs = [(i, j) for i in range(d) for j in range(i)]
        for place, (i, j) in enumerate(pairs):
            mixed = table[:, 1 + 2 * d + place] - value - gradient[:, i] - gradient[:, j]
            hessian[:, i, j] = hessian[:, j, i] = mixed - (diagonal[:, i] + diagonal[:, j]) / 2
        return Quadratic(value, gradient, hessian)

    def is_quadratic(self) -> bool:
        """Whether the log joint density is quadratic in the continuous latents, asked at one point far off."""
        point = 3.0 * np.cos(np.arange(self.dimension) + 1.0)
        one, joint = self.assignments[-1], self.joint
        direct = self.plain.log_density(
            {**self.params, **one, **self._with_vector(point)}, self.data, leave_out=set(self.params)
        )
        said = joint.value[-1] + joint.gradient[-1] @ point + point @ joint.hessian[-1] @ point / 2
        return bool(np.isclose(direct, said, rtol=1e-8, atol=1e-8))

    @functools.cached_property
    def joint(self) -> Quadratic:
        """The log joint density at these parameters."""
        return self.log_joint(self.params)

    @functools.cached_property
    def _integrated(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By assignment: log evidence, mean and covariance of the continuous latents."""
        joint = self.joint
        if not self.dimension:
            return joint.value, joint.gradient, joint.hessian
        covariance = np.linalg.inv(-joint.hessian)
        mean = np.einsum("cij,cj->ci", covariance, joint.gradient)
        half = (self.dimension * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1]) / 2
        return joint.value + np.einsum("ci,ci->c", mean, joint.gradient) / 2 + half, mean, covariance

    @functools.cached_property
    def log_likelihood(self) -> float:
        """Log evidence of the data."""
        return float(logsumexp(self._integrated[0]))

    @functools.cached_property
    def posterior(self) -> np.ndarray:
        """Posterior probability of every assignment."""
        return np.exp(self._integrated[0] - self.log_likelihood)

    def log_prior(self, params: dict) -> float:
        """Log density of the sampled parameters."""
        sites = self.plain.sites(params, self.data)
        return float(sum(site.table.sum() for site in sites if site.name in params))

    def q(self, params: dict) -> float:
        """Expected log joint density at other parameters."""
        joint, (_, mean, covariance) = self.log_joint(params), self._integrated
        second = covariance + mean[:, :, None] * mean[:, None, :]
        expected = joint.value + np.einsum("ci,ci->c", joint.gradient, mean)
        expected = expected + np.einsum("cij,cij->c", joint.hessian, second) / 2
        used = self.posterior > 0
        return float(self.posterior[used] @ expected[used])

    def marginals(self) -> dict[str, np.ndarray]:
        """Posterior probabilities of every discrete latent, states last; NaN where a cell is masked out."""
        found = {}
        for name in self.discrete:
            values = np.stack([one[name] for one in self.assignments])
            table = np.stack([np.tensordot(self.posterior, values == v, 1) for v in self.supports[name]], -1)
            found[name] = np.where(self.present[name][..., None], table, np.nan)
        return found

    def moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Posterior mean and variance of every number among the continuous latents."""
        _, means, covariances = self._integrated
        mean = self.posterior @ means
        second = self.posterior @ (means**2 + np.diagonal(covariances, axis1=1, axis2=2))
        m, v = self._with_vector(mean), self._with_vector(second - mean**2)
        return {name: (m[name], v[name]) for name in self.continuous}

    def score(self, decoded: dict[str, np.ndarray]) -> float:
        """How far the log probability of an assignment is below that of the best one."""
        for one, value in zip(self.assignments, self._integrated[0], strict=True):
            if all(
                np.array_equal(one[n][self.present[n]], np.reshape(decoded[n], self.shapes[n])[self.present[n]])
                for n in self.discrete
            ):
                return float(np.max(self._integrated[0]) - value)
        return math.inf


class Rows:
    """A model whose rows count several times: every row by itself, so that weights need not be whole numbers."""

    def __init__(self, parts: list[tuple[float, Brute]]):
        self.parts = parts

    @property
    def log_likelihood(self) -> float:
        """Log evidence of the rows, each as often as it counts."""
        return sum(weight * part.log_likelihood for weight, part in self.parts)

    def q(self, params: dict) -> float:
        """Expected log joint density at other parameters."""
        return sum(weight * part.q(params) for weight, part in self.parts)

    def marginals(self) -> dict[str, np.ndarray]:
        """Posterior probabilities of every discrete latent, states last."""
        each = [part.marginals() for _, part in self.parts]
        return {name: np.concatenate([one[name] for one in each], -2) for name in each[0]}

    def log_prior(self, params: dict) -> float:
        """Log density of the sampled parameters."""
        return self.parts[0][1].log_prior(params)


def brute(plain: Plain, program: Program, params: dict | None = None) -> Brute | Rows:
    """The right answers for a model; by rows where an argument says how often each counts."""
    params, data = program.params if params is None else params, program.data
    if program.weights is None:
        return Brute(plain, data, params)
    weights = data[program.weights]

    def row(place: int) -> dict:
        return {n: np.take(v, [place], program.rows[n]) if n in program.rows else v for n, v in data.items()}

    return Rows([(float(weight), Brute(plain, row(place), params)) for place, weight in enumerate(weights)])
