"""One measurement in a process of its own: ``python -m benchmarks.job G1 emppl``; prints one line of JSON.

With ``--once`` it only fits once, so that the caller can time the whole process.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import resource
import statistics
import time
import warnings

from benchmarks.workloads import SYMBOLS, WORKLOADS, load

_REPEATS = {"OF": 50, "L1": 5}


def _emppl(work, data, start, precision="float64"):
    import jax

    jax.config.update("jax_enable_x64", precision == "float64")
    import emppl
    from benchmarks.models import MODELS, initial

    em = emppl.EM(MODELS[work.kind], tolerance=0.0, progress_bar=False)
    key, params = jax.random.key(0), initial(work.kind, start)

    def fit(iterations):
        em.max_iterations = iterations
        result = em.run(key, data, K=work.components, init_params=params)
        if result.num_iterations != iterations:
            raise RuntimeError(
                f"stopped after {result.num_iterations} of {iterations} iterations: {result.stop_reason}"
            )
        return result.log_likelihood

    return fit


def _handwritten(work, data, start):
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks.handwritten import Fit

    compiled = Fit(work.kind, work.columns)
    return lambda iterations: compiled(data, start, iterations)


class _Marks(list):
    def per_iteration(self):
        """Median time between the starts of successive E-steps, the first left out."""
        return statistics.median(after - before for before, after in zip(self[1:], self[2:], strict=False))


def _scikit_learn(work, data, start, marks):
    import numpy as np
    from sklearn.mixture import GaussianMixture

    class Timed(GaussianMixture):
        def _e_step(self, *args, **kwargs):
            marks.append(time.perf_counter())
            return super()._e_step(*args, **kwargs)

    precision = np.linalg.inv(start["spread"]) if work.kind == "full" else 1 / start["spread"]

    def fit(iterations):
        marks.clear()
        mixture = Timed(
            work.components,
            covariance_type={"full": "full", "diagonal": "diag"}[work.kind],
            tol=0.0,
            reg_covar=0.0,
            max_iter=iterations,
            weights_init=start["weights"],
            means_init=start["means"],
            precisions_init=precision,
        ).fit(data)
        return lambda: mixture.score(data) * len(data)

    return fit


def _stepmix(work, data, start, marks):
    from stepmix.stepmix import StepMix

    class Timed(StepMix):
        def _initialize_parameters(self, *args):
            super()._initialize_parameters(*args)
            self.weights_ = start["weights"].copy()
            self._mm.parameters["pis"] = start["probabilities"].copy()

        def _e_step(self, *args, **kwargs):
            marks.append(time.perf_counter())
            return super()._e_step(*args, **kwargs)

    def fit(iterations):
        marks.clear()
        model = Timed(
            work.components, measurement="binary", max_iter=iterations, abs_tol=0.0, rel_tol=0.0, n_init=1,
            progress_bar=0, random_state=0,
        ).fit(data)  # fmt: skip
        return lambda: model.score(data) * len(data)

    return fit


def _hmmlearn(work, data, start, marks):
    import logging

    import numpy as np
    from hmmlearn import hmm

    logging.disable(logging.WARNING)  # it warns of every step that rounding turns into a decrease
    options = dict(tol=-np.inf, init_params="", implementation="scaling")
    lengths = [len(data)] * (1 if work.kind == "chain" else data.shape[1])
    rows = data if work.kind == "chain" else data.T.reshape(-1, 1)

    def fit(iterations):
        marks.clear()
        if work.kind == "chain":
            model = hmm.GaussianHMM(
                work.components, "diag", 1e-12, covars_prior=0.0, covars_weight=0.0, n_iter=iterations, **options
            )
            model.n_features, model.means_, model.covars_ = data.shape[1], start["means"], start["scale"] ** 2
        else:
            model = hmm.CategoricalHMM(work.components, n_iter=iterations, **options)
            model.n_features, model.emissionprob_ = SYMBOLS, start["emission"]
        model.startprob_, model.transmat_ = start["initial"], start["transition"]
        do_e_step = model._do_estep

        def timed(*args, **kwargs):
            marks.append(time.perf_counter())
            return do_e_step(*args, **kwargs)

        model._do_estep = timed
        model.fit(rows, lengths)
        return lambda: model.score(rows, lengths)

    return fit


_COMPILED = {
    "emppl": _emppl,
    "emppl in float32": functools.partial(_emppl, precision="float32"),
    "handwritten JAX": _handwritten,
}
_EAGER = {"scikit-learn": _scikit_learn, "StepMix": _stepmix, "hmmlearn": _hmmlearn}


def measure(workload: str, implementation: str, once: bool) -> dict:
    """Seconds per iteration, seconds per warm fit, log-likelihood and peak memory of one implementation."""
    work = WORKLOADS[workload]
    data, start = load(workload)
    marks = _Marks()
    if implementation in _COMPILED:
        fit = _COMPILED[implementation](work, data, start)
    else:
        fit = _EAGER[implementation](work, data, start, marks)
    found = fit(work.iterations)
    per_iteration, whole = [], []
    for _ in range(0 if once else _REPEATS.get(workload, 3)):
        if implementation in _COMPILED:
            # The difference of two runs leaves out what does not depend on the number of iterations.
            few = work.iterations // 4
            short = _seconds(fit, few)
            whole.append(_seconds(fit, work.iterations))
            per_iteration.append((whole[-1] - short) / (work.iterations - few))
        else:
            whole.append(_seconds(fit, work.iterations))
            per_iteration.append(marks.per_iteration())
    return {
        "workload": workload,
        "implementation": implementation,
        "seconds_per_iteration": statistics.median(per_iteration) if per_iteration else None,
        "warm_fit_seconds": statistics.median(whole) if whole else None,
        "log_likelihood": float(found() if callable(found) else found),
        "peak_rss_mb": _peak_memory(),
    }


def _peak_memory() -> float:
    """Peak resident MiB of this program. What ``getrusage`` says begins with the size of the process that started it."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


def _seconds(fit, iterations: int) -> float:
    began = time.perf_counter()
    fit(iterations)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("implementation", choices=[*_COMPILED, *_EAGER])
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(measure(options.workload, options.implementation, options.once)))


if __name__ == "__main__":
    main()
