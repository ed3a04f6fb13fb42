"""Random models with a ``scan`` over discrete states: hidden Markov models and their relatives."""

from __future__ import annotations

import re

import numpy as np

from tests.generator import expressions as e
from tests.generator import sites
from tests.generator.discrete import shape_of
from tests.generator.writer import Program, Unfit, Writer

_MOST = np.log(70)


def write(w: Writer) -> Program:
    """A model."""
    size = int(w.rng.integers(2, 4))
    plates = w.choose(
        (3, None, lambda: []),
        (2, "chains in a plate", lambda: [("n", size, -1)]),
        (0.7, "chains in a plate with dim -2", lambda: [("n", size, -2)]),
        (0.5, "chains in two plates", lambda: [("g", 2, -2), ("n", 1 if w.chance(0.5) else 2, -1)]),
    )
    shape, names = shape_of(plates), ", ".join(name for name, _, _ in plates)
    cells = int(np.prod(shape))
    order = w.choose((4, None, lambda: 1), (0.7, "order two", lambda: 2))
    chains = w.choose((4, None, lambda: 1), (1, "two chains", lambda: 2)) if order == 1 else 1
    k = 2 if chains * cells > 1 or w.chance(0.6) else 3
    longest = int(_MOST / np.log(k) / (chains * cells)) - 1
    if longest < 1:
        raise Unfit
    least = 1 if w.chance(0.3) else min(longest - 1, 4)
    steps = w.pick(range(1 if w.chance(0.05) else max(order + 1, least), max(min(longest, 6), order + 1) + 1))
    for name, size, dim in plates:
        w.line(f'{name} = numpyro.plate("{name}", {size}, dim={dim})')
    outside = {}
    if w.chance(0.25, "latent outside a scan"):
        own = plates if w.chance(0.6) else []
        with w.block(f"with {names}:" if own else None):
            w.line(f'v = numpyro.sample("v", dist.Categorical({w.param("simplex", (2,))}))')
        outside = {"v": 2}
        w.scope["v"] = np.zeros(shape_of(own), int)
    carried = [f"{'ab'[c]}_{lag}" for c in range(chains) for lag in range(order, 0, -1)]
    starts = [_start(w, name, k, plates, names, outside) for name in carried]
    w.line("def step(carry, xs):")
    w.steps, outer_lines, w.lines = steps, w.lines, []
    w.indent += 1
    live = _lengths(w, shape, steps) if w.chance(0.25, "lengths") else None
    opening = ", ".join([*([f"numpyro.handlers.mask(mask={live})"] if live else []), *([names] if names else [])])
    w.latents = dict.fromkeys(carried, k) | outside
    now = []
    remembers = chains * order == 1 and shape == () and w.chance(0.2, "previous observation")
    for c in range(chains):
        name = "ab"[c]
        text = _transition(w, k, shape)
        with w.block(f"with {opening}:" if opening else None):
            w.line(f'{name} = numpyro.sample("{name}", {text})')
        w.scope[name] = np.zeros(shape, int)
        w.latents[name] = k
        now.append(name)
    seen = {name: k for name in now} | (outside if w.chance(0.5) else {})
    w.latents = seen | (dict.fromkeys(carried, k) if w.chance(0.15, "data of two steps") else {})
    if remembers:
        y = w.argument(w.values("real", shape), prefix="y")
        mean = f"{e.real(w, shape, 1, True)} + {w.param('real', ())} * before"
        with w.block(f"with {opening}:" if opening else None):
            w.line(f'numpyro.sample("r", dist.Normal({mean}, {e.positive(w, shape)}), obs={y})')
    for number in range(int(w.rng.integers(0 if remembers else 1, 3))):
        sites.observe(w, f"y{number}", shape, opening, number == 0 or w.chance(0.7))
    following = [
        *(f"{'ab'[c]}_{lag - 1}" if lag > 1 else "ab"[c] for c in range(chains) for lag in range(order, 0, -1))
    ]
    if remembers:
        carried, following, starts = [*carried, "before"], [*following, y], [*starts, "0.0"]
    w.line(f"return {tuple_of(following)}, None")
    body, w.lines, w.indent, w.steps = w.lines, outer_lines, w.indent - 1, 0
    w.line(f"    {tuple_of(carried)} = carry")
    inside = "\n".join(body)
    inputs = [name for name in w.data if re.search(rf"\b{name}_t\b", inside)]
    if inputs:
        w.line(f"    {tuple_of([f'{name}_t' for name in inputs])} = xs")
    w.lines += body
    ending = not live and w.chance(0.1, "data after a scan")
    w.line(
        f"{'end, _ = ' if ending else ''}scan(step, {tuple_of(starts)}, {tuple_of(inputs) if inputs else 'None'}, length={steps})"
    )
    w.latents = dict(outside)
    if ending:
        w.line(f"{tuple_of(carried)} = end")
        w.latents = {carried[-1 - remembers]: k}
        sites.observe(w, "e", shape, names, True)
    elif outside and w.chance(0.4):
        sites.observe(w, "e", w.shape("v"), names if w.shape("v") else "", True)
    return w.program()


def tuple_of(names: list[str]) -> str:
    """One name, or a tuple of several."""
    return names[0] if len(names) == 1 else f"({', '.join(names)})"


def _start(w: Writer, name: str, k: int, plates, names: str, outside: dict) -> str:
    """What the chain starts from: a latent of its own, or a constant."""
    shape = shape_of(plates)
    w.scope[name] = np.zeros(shape, int)
    if w.chance(0.5, "first state before the scan"):
        w.latents = dict(outside)
        text = f"dist.Categorical({e.simplex(w, k, shape)})"
        with w.block(f"with {names}:" if names else None):
            w.line(f'first_{name} = numpyro.sample("first_{name}", {text})')
        return f"first_{name}"
    return f"jnp.full({shape}, {int(w.rng.integers(k))})" if shape else f"{int(w.rng.integers(k))}"


def _lengths(w: Writer, shape, steps: int) -> str:
    """Which steps exist: sequences of different lengths."""
    name = f"m{len(w.data)}"
    ends = w.rng.integers(1, steps + 1, shape)
    w.data[name] = np.arange(steps).reshape(-1, *[1] * len(shape)) < ends
    w.scope[f"{name}_t"] = np.ones(shape, bool)
    return f"{name}_t"


def _transition(w: Writer, k: int, shape) -> str:
    def probabilities():
        return f"dist.Categorical({e.simplex(w, k, shape, True)})"

    def logits():
        return f"dist.Categorical(logits={e.indexed(w, 'real', shape, (k,), True)})"

    def bernoulli():
        if k > 2:
            raise Unfit
        return f"dist.Bernoulli({e.probability(w, shape, True)})"

    return w.choose((5, None, probabilities), (1, "Categorical by logits", logits), (1, "Bernoulli latent", bernoulli))
