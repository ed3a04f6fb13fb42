"""Every registered family: its description obeys the laws of families/check.py, and a test knows its M-step.

The laws of the M-step are in the tables of families/test_families.py and mstep/test_closed_form.py, which check them
for every family that has a row there.
"""

import jax
import jax.numpy as jnp
import pytest
from numpyro.distributions import constraints

from emppl.families import registered_families
from emppl.families.check import _examples, check_family
from tests.families import test_families
from tests.mstep import test_closed_form


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=() if f.name in ("Gamma", "HalfNormal") else pytest.mark.slow, id=f.name)
        for f in registered_families()
    ],
)
def test_description_obeys_its_laws(family):
    """Natural form, additivity, and zero gradient at every ``solve`` with every prior."""
    with jax.numpy_rank_promotion("allow"):
        check_family(family)


def _is_numpyros(kind) -> bool:
    """Not registered by an example of the documentation that ran in the same process."""
    return kind.__module__.startswith("numpyro.")


def test_every_family_has_a_case():
    seen = set()
    for case in test_families.CASES.values():
        seen.add(type(case.build({n: v[:, None] for n, v in test_families.start_of(case).items()})))
    for case in test_closed_form.CASES.values():
        seen.add(type(case.build({n: jnp.asarray(a.values) for n, a in case.arguments.items()})))
    missing = {
        kind.__name__ for family in registered_families() for kind in family.distributions if _is_numpyros(kind)
    } - {k.__name__ for k in seen}
    # Laplace and Uniform have tests of their own there. SoftLaplace would test nothing that Gumbel and Logistic do not.
    assert missing == {"Uniform", "Laplace", "SoftLaplace"}


def bounded_updates():
    """Every update that says where the maximum between two bounds is: ``(distribution, its arguments, which, update)``."""
    for family in registered_families():
        for distribution in filter(_is_numpyros, family.distributions):
            for arguments in _examples(family, distribution):
                for name, update in family.updates.items():
                    if update.within is not None and name in arguments:
                        one = {n: value[0] for n, value in arguments.items()}
                        yield pytest.param(distribution, one, name, update, id=f"{distribution.__name__}.{name}")


@pytest.mark.parametrize("distribution, arguments, name, update", list(bounded_updates()))
def test_the_maximum_between_two_bounds(distribution, arguments, name, update):
    """Against the best of a grid, by NumPyro's log_prob, for intervals on either side of the maximum and around it."""
    value = distribution(**arguments).sample(jax.random.key(0), (50,))
    support = distribution.arg_constraints[name]
    lowest, highest = (-3.0, 3.0) if support is constraints.real else (0.01, 6.0)
    highest = 0.99 if support is constraints.unit_interval else highest

    def log_likelihood(grid):
        return distribution(**{**arguments, name: grid[:, None]}).log_prob(value[None, :]).sum(-1)

    everywhere = jnp.linspace(lowest, highest, 40_001)
    best = everywhere[jnp.argmax(log_likelihood(everywhere))]
    assert lowest < best < highest
    for low, high in ((lowest, (lowest + best) / 2), ((lowest + best) / 2, highest), ((best + highest) / 2, highest)):
        grid = jnp.linspace(low, high, 1001)
        found = update.within(best, jnp.asarray(low), jnp.asarray(high))
        assert low <= found <= high
        assert log_likelihood(found[None])[0] >= log_likelihood(grid).max() - 1e-6
