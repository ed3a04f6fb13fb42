"""Every registered family: its description obeys the laws of families/check.py, and a test knows its M-step.

The laws of the M-step are in the tables of families/test_families.py and mstep/test_closed_form.py, which check them
for every family that has a row there.
"""

import jax
import jax.numpy as jnp
import pytest

from emppl.families import registered_families
from emppl.families.check import check_family
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
