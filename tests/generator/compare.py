"""emppl beside brute force on one generated model: right, refused in words, wrong, or a raw error."""

from __future__ import annotations

import dataclasses
import re
import time
import traceback
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.distribution import validation_enabled
from numpyro.infer.util import log_density

import emppl
from emppl.errors import EMError
from tests.generator.brute import Brute, Rows, brute
from tests.generator.charts import Chart
from tests.generator.plain import Plain
from tests.generator.writer import Program

_FAR = 12.0  # coordinates beyond which a parameter is taken to be on a boundary


@dataclasses.dataclass
class Outcome:
    """What came of one model.

    Attributes:
        status: ``"right"``, ``"refused"``, ``"wrong"`` or ``"raw error"``.
        what: the reason of a refusal, or what is wrong.
        notes: what else is worth counting, such as how a fit ended.
    """

    status: str
    what: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class Wrong(Exception):
    """emppl and brute force differ."""


def numpyro_model(program: Program):
    """The model of a program, for NumPyro."""
    namespace = {"jax": jax, "jnp": jnp, "np": np, "numpyro": numpyro, "dist": dist, "scan": scan}
    namespace["constraints"] = constraints
    exec(program.text, namespace)  # the text is the generator's own
    return namespace["model"]


def compare(program: Program, right: Brute | Rows, depth: int = 1, rng: np.random.Generator | None = None) -> Outcome:
    """Compare what emppl says about a model with what is right.

    Args:
        depth: 0 for the evidence and Q, 1 for the posterior of the latents too, 2 for the M-step too, 3 for a fit too.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    begin, notes = time.time(), []
    try:
        with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _pieces(program, right, depth, rng, notes)
            if depth > 2:
                notes.append(_fit(program, rng))
        outcome = Outcome("right")
    except Wrong as error:
        outcome = Outcome("wrong", str(error))
    except EMError as error:
        outcome = Outcome("refused", reason(error))
    except Exception as error:  # whatever else comes out of emppl is a fault
        where = traceback.extract_tb(error.__traceback__)
        own = [f"{f.filename.split('emppl/')[-1]}:{f.lineno}" for f in where if "/emppl/" in f.filename]
        outcome = Outcome("raw error", f"{type(error).__name__} at {own[-1:]}: {str(error)[:200]}")
    outcome.notes, outcome.seconds = tuple(notes), time.time() - begin
    return outcome


def reason(error: Exception) -> str:
    """The kind of a refusal: its message without names and numbers."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\[[^\]]*\]", "_", str(error).split("\n")[0])
    return f"{type(error).__name__}: {re.sub(r'-?[0-9.]+', '#', text)[:110]}"


def _engine(program: Program) -> emppl.EM:
    latents = {name: eval(f"emppl.{how}", {"emppl": emppl}) for name, how in program.strategies.items()}
    return emppl.EM(numpyro_model(program), latents=latents, progress_bar=False)


def _pieces(program: Program, right: Brute | Rows, depth: int, rng, notes: list) -> None:
    """The E-step, Q and the M-step at the parameters of the program."""
    em, data, params = _engine(program), program.data, program.params
    chart = Chart(program.kinds, params)
    posterior = em.e_step(params, **data)
    _close("log-likelihood", posterior.log_likelihood, right.log_likelihood)
    other = chart.params(chart.vector(params) + 0.3 * rng.normal(size=chart.dimension))
    # A masked latent is uniform to emppl and absent here: a constant, so differences are compared.
    risen = em.q(other, posterior, **data) - em.q(params, posterior, **data)
    _close("difference of Q", risen, right.q(other) - right.q(params))
    if depth > 0:
        _posterior(em, program, right)
    if depth > 1:
        _m_step(em, program, right, posterior, rng, notes)


def _posterior(em: emppl.EM, program: Program, right: Brute | Rows) -> None:
    """Marginals of discrete latents, moments of continuous ones; the evidence as fits compute it."""
    fit = em._fit((), program.data)
    compiled, free = fit.compiled, fit.at(program.params)[0]
    in_fits = compiled.summed_log_likelihood(free, fit.data)
    _close("log-likelihood in a fit", in_fits, right.log_likelihood)
    if expected := right.marginals():
        said = compiled.marginals(free, fit.data)
        for name, table in expected.items():
            _same_posterior(f"posterior of {name}", said[name], table)
    if isinstance(right, Brute) and right.continuous:
        moments = compiled.moments(free, fit.data)
        for name, (mean, variance) in right.moments().items():
            _same_posterior(f"mean of {name}", moments[name][0], mean)
            _same_posterior(f"variance of {name}", _diagonal(moments[name][1], mean), variance)


def _m_step(em: emppl.EM, program: Program, right: Brute | Rows, posterior, rng, notes: list) -> None:
    """One M-step does not lower Q, and many on the same posterior end at its maximum."""
    data, params, chart = program.data, program.params, Chart(program.kinds, program.params)
    new = {name: np.asarray(value) for name, value in em.m_step(params, posterior, **data).items()}

    def objective(values):
        return right.q(values) + right.log_prior(values)

    if _at_boundary(chart, new):
        notes.append("M-step to a boundary")
        return
    before, after = objective(params), objective(new)
    if not after >= before - 1e-8 * (1 + abs(before)):
        raise Wrong(f"M-step lowers Q: {before:.8f} to {after:.8f}")
    for _ in range(200):  # blocks in turn come to the maximum of Q
        old, new = new, {name: np.asarray(v) for name, v in em.m_step(new, posterior, **data).items()}
        if _at_boundary(chart, new):
            notes.append("M-steps to a boundary")
            return
        if all(np.allclose(old[n], new[n], rtol=1e-9, atol=1e-10) for n in new):
            break
    else:
        notes.append("repeated M-steps still move")
        return
    try:
        _is_highest("M-step", objective, chart, new, rng)
    except Wrong:
        if not _unbounded(objective, chart, new):
            raise
        notes.append("Q has no maximum")


def _fit(program: Program, rng: np.random.Generator) -> str:
    """A short fit, and what can be asked of it."""
    em, data, plain = _engine(program), program.data, Plain(program.text)
    result = em.run(jax.random.key(0), init_params=program.params, **data)
    ending = str(getattr(result.stop_reason, "name", result.stop_reason))
    params = {name: np.asarray(value) for name, value in result.params.items()}
    chart = Chart(program.kinds, params)
    if _at_boundary(chart, params):
        return f"{ending}, at a boundary"
    right = brute(plain, program, params)
    _close("log-likelihood of the fit", result.log_likelihood, right.log_likelihood)
    if not result.converged:
        return ending

    def objective(values):
        return brute(plain, program, values).log_likelihood + right.log_prior(values)

    _is_highest("fit", objective, chart, params, rng)
    if isinstance(right, Brute) and right.discrete:
        decoded = result.decode()
        gap = right.score(decoded)
        if not gap < 1e-8:
            raise Wrong(f"decode: log probability {gap:.8f} below the best assignment")
    if 0 < chart.dimension <= 6:
        return f"{ending}, {_standard_errors(result, objective, chart, params)}"
    return ending


def _standard_errors(result, objective, chart: Chart, params: dict) -> str:
    """Standard errors beside the Hessian of the objective by differences."""
    center, h = chart.vector(params), 2e-3
    n = chart.dimension
    steps = h * np.eye(n)

    def at(vector):
        return objective(chart.params(vector))

    hessian = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            a, b = steps[i], steps[j]
            hessian[i, j] = hessian[j, i] = (
                at(center + a + b) - at(center + a - b) - at(center - a + b) + at(center - a - b)
            ) / (4 * h * h)
    values = np.linalg.eigvalsh(-hessian)
    if values[0] < 1e-3 * values[-1] or values[0] < 1e-3:
        return "flat"
    try:
        said = result.standard_errors()
    except ValueError as error:
        raise Wrong(f"no standard errors at a maximum: {str(error)[:150]}") from error
    columns = [(chart.params(center + s), chart.params(center - s)) for s in steps]
    for name in chart.kinds:
        jacobian = np.stack([(up[name] - down[name]).ravel() / (2 * h) for up, down in columns], -1)
        expected = np.sqrt(np.einsum("ai,ij,aj->a", jacobian, np.linalg.inv(-hessian), jacobian))
        if not np.allclose(np.ravel(said[name]), expected, rtol=2e-2, atol=1e-6):
            raise Wrong(f"standard errors of {name}: {np.ravel(said[name])}, right {expected}")
    return "with standard errors"


def _at_boundary(chart: Chart, params: dict) -> bool:
    """Whether a parameter is at an end of its range, where densities may have no values: a variance of zero."""
    try:
        return not np.all(np.abs(chart.vector(params)) < _FAR)
    except np.linalg.LinAlgError:
        return True


def _close(what: str, said, expected: float) -> None:
    if not np.isclose(float(said), expected, rtol=1e-8, atol=1e-7):
        raise Wrong(f"{what}: {float(said):.8f}, right {expected:.8f}")


def _same_posterior(what: str, said, expected: np.ndarray) -> None:
    said = np.asarray(said)
    if said.size != expected.size:
        raise Wrong(f"{what}: shape {said.shape}, right {expected.shape}")
    said, there = said.reshape(expected.shape), np.isfinite(expected)
    if not np.allclose(said[there], expected[there], rtol=1e-6, atol=1e-7):
        raise Wrong(f"{what}: off by {np.max(np.abs(said[there] - expected[there])):.3g}")


def _diagonal(covariance, mean: np.ndarray) -> np.ndarray:
    covariance = np.asarray(covariance)
    return covariance if covariance.size == mean.size else np.diagonal(covariance, axis1=-2, axis2=-1)


def _is_highest(what: str, objective, chart: Chart, params: dict, rng: np.random.Generator) -> None:
    """No small step along a random line goes up. Corners are maxima too, so no derivative is asked for."""
    center, middle = chart.vector(params), objective(params)
    lines = [rng.normal(size=chart.dimension) for _ in range(2)] if chart.dimension else []
    for line in lines:
        for step in (1e-2, -1e-2, 1e-3, -1e-3):
            gain = objective(chart.params(center + step * line / np.linalg.norm(line))) - middle
            if not gain < 1e-6:
                raise Wrong(f"{what} ends at no maximum: a step of {step} gains {gain:.3g} nats")


def _unbounded(objective, chart: Chart, params: dict) -> bool:
    """Whether the objective rises all the way to an end of a range, as where few data leave no variance."""
    center, h = chart.vector(params), 1e-4

    def at(vector):
        return objective(chart.params(vector))

    slope = np.array([(at(center + h * unit) - at(center - h * unit)) / (2 * h) for unit in np.eye(len(center))])
    if np.linalg.norm(slope) < 1e-3:
        return False
    way = slope / np.max(np.abs(slope))
    heights = [at(center + step * way) for step in (0.0, 1.0, 3.0, 6.0, 10.0)]
    return bool(np.all(np.diff(heights) > 0))


def same_density(program: Program, rng: np.random.Generator) -> tuple[float, float]:
    """Log density of a model at random latents: by NumPyro, and by the plain stand-in."""
    plain = Plain(program.text)
    right = Brute(plain, program.data, program.params)
    one = dict(right.assignments[int(rng.integers(len(right.assignments)))])
    one |= right._with_vector(rng.normal(size=right.dimension))
    values = {**program.params, **one}
    with jax.numpy_rank_promotion("allow"), validation_enabled(False):
        model = numpyro.handlers.scale(numpyro_model(program), scale=1.0)
        arrays = jax.tree.map(jnp.asarray, (program.data, values))
        by_numpyro = jax.jit(lambda data, values: log_density(model, (), data, values)[0])(*arrays)
        return float(by_numpyro), plain.log_density(values, program.data)
