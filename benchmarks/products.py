"""What an iteration of R1 costs beside the two matrix products it needs: ``python -m benchmarks.products``.

Both are measured in one process, in turn, so that other load on the machine hits them alike. The products are those of
the E-step (natural parameters times statistics) and of the M-step (responsibilities times statistics), over blocks of
rows that fit the cache and, for comparison, over all rows at once.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from benchmarks.job import _emppl
from benchmarks.workloads import WORKLOADS, load

_ROWS = 1000
_ITERATIONS = 20


def _products():
    import jax
    import jax.numpy as jnp

    work = WORKLOADS["R1"]
    data, _ = load("R1")
    rng = np.random.default_rng(0)
    design = np.concatenate([data[:, :-1], np.ones((work.rows, 1))], 1)
    above = np.triu_indices(work.columns)
    columns = [
        np.ones((work.rows, 1)),
        data[:, -1:] ** 2,
        data[:, -1:] * design,
        design[:, above[0]] * design[:, above[1]],
    ]
    rows = jnp.asarray(np.concatenate(columns, 1).T)
    natural = jnp.asarray(rng.normal(size=(work.components, len(rows))))
    weights = jnp.asarray(rng.dirichlet(np.ones(work.components), work.rows).T)

    def cut(array, size):
        return jnp.moveaxis(array.reshape(len(array), -1, size), 1, 0)

    def repeat(natural, weights, statistics, iterations):
        def add(total, block):
            weights, statistics = block
            # The tiny terms keep the compiler from dropping or hoisting either product.
            return total + (weights + 1e-30 * (natural_now[0] @ statistics)) @ statistics.T, None

        natural_now = [natural]

        def once(_, natural):
            natural_now[0] = natural
            return natural + 1e-12 * jax.lax.scan(add, jnp.zeros_like(natural), (weights, statistics))[0]

        return jax.lax.fori_loop(0, iterations, once, natural)

    compiled = jax.jit(repeat)
    sizes = {"in blocks": _ROWS, "at once": work.rows}
    arguments = {name: (natural, cut(weights, size), cut(rows, size)) for name, size in sizes.items()}
    return {
        name: lambda n, given=given: jax.block_until_ready(compiled(*given, n)) for name, given in arguments.items()
    }


def main() -> None:
    fits = {"emppl": _emppl(WORKLOADS["R1"], *load("R1"))} | _products()

    def seconds(fit) -> float:
        times = []
        for iterations in (4, 4 + _ITERATIONS):
            began = time.perf_counter()
            fit(iterations)
            times.append(time.perf_counter() - began)
        return (times[1] - times[0]) / _ITERATIONS

    for fit in fits.values():
        seconds(fit)
    rounds = [{name: seconds(fit) for name, fit in fits.items()} for _ in range(9)]
    for name in fits:
        print(f"{name:10s} best {1e3 * min(one[name] for one in rounds):7.2f} ms an iteration")
    for name in list(fits)[1:]:
        ratio = statistics.median(one["emppl"] / one[name] for one in rounds)
        print(f"an emppl iteration costs {ratio:.2f} times the two products {name} (median of {len(rounds)} rounds)")


if __name__ == "__main__":
    main()
