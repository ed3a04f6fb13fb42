"""One model: does emppl run it, and is the log-likelihood that of NumPyro or of a hand-written marginal?"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import warnings
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.infer.util import compute_log_probs
from registry import Arguments, Entry
from source import definitions

import emppl

_ITERATIONS = 30  # enough to leave the starting values; nobody reads these estimates


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        status: "runs", "refused", "fails" (any other exception), "absent" (a package is) or "too slow".
        reason: the first sentence of a refusal, or the exception.
        difference: of log densities, emppl's minus the other one; None where nothing was compared.
        compared: with what.
    """

    status: str
    reason: str = ""
    difference: float | None = None
    compared: str = ""


def outcome(entry: Entry, checkout: pathlib.Path) -> Outcome:
    """Run a model on small data."""
    numpyro.enable_x64()
    found = definitions(checkout / entry.file, entry.assigned)
    try:
        arguments = entry.make(found, np.random.default_rng(0))
    except ImportError as error:
        return Outcome("absent", str(error))
    model, args, kwargs = arguments
    em = emppl.EM(model, max_iterations=_ITERATIONS, progress_bar=False, **entry.options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = em.run(jax.random.key(0), *args, **kwargs)
    except (emppl.ModelError, emppl.DataError, emppl.ParameterError) as error:
        absent = [name for name in sorted(found.absent) if f"name '{name}' is not defined" in str(error)]
        return Outcome("absent", f"needs {absent[0]}") if absent else Outcome("refused", _first_sentence(str(error)))
    except Exception as error:
        return Outcome("fails", f"{type(error).__name__}: {_first_sentence(str(error))}")
    return _compared(entry, em, result.declared_params, arguments)


def _compared(entry: Entry, em: emppl.EM, params: dict[str, Any], arguments: Arguments) -> Outcome:
    model, args, kwargs = arguments
    params = {name: _inside(value) for name, value in params.items()}
    mine = float(em.log_likelihood(params, *args, **kwargs))
    if entry.marginal is not None:
        return Outcome("runs", "", mine - entry.marginal(params, *args, **kwargs), "marginal by hand")
    if entry.continuous:
        return Outcome("runs")
    try:
        other = _numpyro_density(entry, model, args, kwargs, params)
    except Exception as error:
        return Outcome("runs", f"NumPyro: {type(error).__name__}: {_first_sentence(str(error))}")
    return Outcome("runs", "", mine - other, "NumPyro's enumeration" if entry.latent else "NumPyro's density")


def _inside(value: Any) -> Any:
    """Probabilities away from zero, where NumPyro's Dirichlet density is NaN."""
    array = np.asarray(value) if isinstance(value, np.ndarray | jax.Array) else np.zeros(())
    is_simplex = array.ndim and array.shape[-1] > 1 and (array >= 0).all() and np.allclose(array.sum(-1), 1)
    return 0.99 * array + 0.01 / array.shape[-1] if is_simplex else value


def _numpyro_density(entry: Entry, model: Any, args: tuple, kwargs: dict, params: dict[str, Any]) -> float:
    """NumPyro's own log-likelihood: its log density of data and parameters, without the priors of these."""
    sites = compute_log_probs(numpyro.handlers.seed(model, 0), args, kwargs, params)[0]
    prior = float(sum(value for name, value in sites.items() if name in params))
    if not entry.latent:
        return float(sum(sites.values())) - prior
    from numpyro.contrib.funsor import config_enumerate, enum
    from numpyro.contrib.funsor import log_density as enumerated
    from numpyro.infer.util import _guess_max_plate_nesting

    seeded = numpyro.handlers.seed(model, 0)
    substituted = numpyro.handlers.substitute(seeded, params)
    nesting = _guess_max_plate_nesting(numpyro.handlers.trace(substituted).get_trace(*args, **kwargs))
    return float(enumerated(enum(config_enumerate(seeded), -nesting - 1), args, kwargs, params)[0]) - prior


def _first_sentence(text: str) -> str:
    """What an error says first, without the place of files on this machine."""
    first = re.split(r"\. | The error occurred ", " ".join(text.split()))[0]
    return re.sub(r"\S*/(\S+\.py)", r"\1", first)[:300]
