"""Locations and scales that no sums of statistics describe: where such families start, and have corners.

Their arguments are maximised by Newton steps, or as weighted medians, with NumPyro's ``log_prob``.
"""

from __future__ import annotations

import numpyro.distributions as dist

from emppl.families.registry import Family, add


def _start(argument, seed, mean, spread):
    del mean
    return {"loc": seed, "scale": spread}.get(argument)


def _register(distribution: type, *others: str, kinks: tuple[str, ...] = ()) -> Family:
    arguments = dict.fromkeys(("loc", "scale", *others), 0)
    return add(Family(distribution.__name__, (distribution,), 0, arguments, kinks=kinks, start=_start))


LAPLACE = _register(dist.Laplace, kinks=("loc",))
ASYMMETRIC_LAPLACE = _register(dist.AsymmetricLaplace, "asymmetry", kinks=("loc",))
ASYMMETRIC_LAPLACE_QUANTILE = _register(dist.AsymmetricLaplaceQuantile, "quantile", kinks=("loc",))
STUDENT_T = _register(dist.StudentT, "df")
CAUCHY = _register(dist.Cauchy)
GUMBEL = _register(dist.Gumbel)
LOGISTIC = _register(dist.Logistic)
SOFT_LAPLACE = _register(dist.SoftLaplace)
