"""Coordinates around a point inside a constraint."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from emppl.uncertainty import charts


@pytest.mark.parametrize(
    ("constraint", "shape"),
    [
        (constraints.real, (3,)),
        (constraints.positive, ()),
        (constraints.interval(-2.0, 5.0), (2,)),
        (constraints.simplex, (3, 4)),
        (constraints.positive_definite, (2, 3, 3)),
        (constraints.lower_cholesky, (3, 3)),
        (constraints.ordered_vector, (2, 3)),
        (constraints.corr_cholesky, (3, 3)),
    ],
)
def test_chart_jacobian_is_the_derivative_of_its_map(constraint, shape):
    """The sparse lists equal central differences of the moves, and the moves stay inside the constraint."""
    start = jnp.zeros(dist.transforms.biject_to(constraint).inverse_shape(shape))
    with jax.numpy_rank_promotion("allow"):
        point = np.asarray(dist.transforms.biject_to(constraint)(start))
    chart = charts.chart_around(constraint, point, 1e-5)
    rows, columns, values = charts.jacobian(constraint, chart.frame)
    dense = np.zeros((point.size, chart.frame.size))
    np.add.at(dense, (rows, columns), values)
    step = 1e-6

    def at(direction):
        return np.asarray(charts.value_at(constraint, chart.frame, jnp.asarray(direction)))

    unit = np.eye(chart.frame.size) * step
    numerical = np.stack([(at(one) - at(-one)).ravel() / (2 * step) for one in unit], -1)
    np.testing.assert_allclose(at(np.zeros(chart.frame.size)), point, atol=1e-12)
    np.testing.assert_allclose(dense, numerical, atol=1e-8)
    with jax.numpy_rank_promotion("allow"):
        assert np.all(constraint(jnp.asarray(at(unit.sum(0)))))
