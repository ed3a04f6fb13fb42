"""Many random models: ``python -m tests.generator --seeds 0:1000 --depth 3``."""

from __future__ import annotations

import argparse
import collections
import time

import jax
import numpy as np

import tests.conftest  # noqa: F401  (precision, and as little optimisation as in the tests)
from tests.generator.compare import compare, same_density
from tests.generator.draw import KINDS, draw


def main() -> None:
    """Run the models of a range of seeds, print those that go wrong, and a table of counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.generator", description=main.__doc__)
    parser.add_argument("--seeds", default="0:100", help="first and last, such as 0:5000")
    parser.add_argument("--kind", choices=list(KINDS), help="one kind of model only")
    parser.add_argument(
        "--depth", type=int, default=2, help="0: evidence and Q; 1: posteriors too; 2: M-step too; 3: fits too"
    )
    parser.add_argument("--off", default="", help="features to leave out, separated by commas")
    parser.add_argument("--density", action="store_true", help="compare the stand-in for NumPyro with NumPyro too")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--show", action="store_true", help="print every model before it is run")
    given = parser.parse_args()
    first, last = map(int, given.seeds.split(":"))
    off = frozenset(filter(None, given.off.split(",")))
    counts, reasons, notes, examples = collections.Counter(), collections.Counter(), collections.Counter(), {}
    begin = time.time()
    for seed in range(first, last):
        if time.time() - begin > given.seconds:
            last = seed
            break
        if (seed - first) % 50 == 49:
            jax.clear_caches()
        program, right = draw(seed, given.kind, off, given.depth > 2)
        if given.show:
            print(f"--- seed {seed}\n{program.script}", flush=True)
        if given.density and program.weights is None:
            by_numpyro, plainly = same_density(program, np.random.default_rng(seed))
            assert np.isclose(by_numpyro, plainly, rtol=1e-9, atol=1e-8), (seed, by_numpyro, plainly, program.text)
        outcome = compare(program, right, given.depth, np.random.default_rng(seed))
        counts[outcome.status] += 1
        notes.update(outcome.notes)
        if outcome.status == "refused":
            reasons[outcome.what] += 1
            examples.setdefault(outcome.what, seed)
        elif outcome.status != "right":
            print(
                f"=== {given.kind or list(KINDS)[seed % len(KINDS)]} seed {seed}: {outcome.status}: {outcome.what}\n{', '.join(sorted(program.features))}"
            )
            print(f"{program.script}  # right: {right.log_likelihood}\n", flush=True)
    print(
        f"\nseeds {first}:{last}, {(time.time() - begin) / max(last - first, 1):.2f} s a model, of which {time.process_time() / max(last - first, 1):.2f} s of this core"
    )
    for name, count in counts.most_common():
        print(f"{count:6d} {name}")
    for name, count in reasons.most_common():
        print(f"  {count:6d} refused, e.g. seed {examples[name]}: {name}")
    for name, count in notes.most_common():
        print(f"  {count:6d} fits: {name}")


if __name__ == "__main__":
    main()
