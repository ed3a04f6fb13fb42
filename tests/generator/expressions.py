"""Random expressions: every way in which a parameter or a latent can enter an argument of a distribution."""

from __future__ import annotations

import re

from tests.generator.writer import Unfit, Writer, literal


def latent(w: Writer, shape) -> str:
    """A latent that broadcasts to the cells."""
    found = [name for name in w.latents if w.fits(name, shape)]
    if not found:
        raise Unfit
    return w.pick(found)


def selector(w: Writer, shape, only_latent: bool = False) -> tuple[str, int]:
    """An index, and how many values it has."""

    def plain():
        z = latent(w, shape)
        return z, w.latents[z]

    def turned():
        z = latent(w, shape)
        k = w.latents[z]
        return w.pick([(f"{k - 1} - {z}", k), (f"jnp.minimum({z} + 1, {k - 1})", k), (f"({z} + 1) % {k}", k)])

    def two():
        z, v = latent(w, shape), latent(w, shape)
        if z == v:
            raise Unfit
        k, j = w.latents[z], w.latents[v]
        text, size = w.pick(
            [
                (f"({z} + {v}) % {k}", k),
                (f"{z} + {k} * {v}", k * j),
                (f"jnp.where({z} > {v}, 1, 0)", 2),
                (f"jnp.where({v} == 1, {z}, 0)", k),
                (f"jnp.maximum({z}, {v})", max(k, j)),
                (f"{z} * {v}", (k - 1) * (j - 1) + 1),
            ]
        )
        return w.fitting(text, shape), size

    def nested():
        z = latent(w, shape)
        codes = w.rng.integers(0, 2, w.latents[z])
        return f"jnp.array({literal(codes)})[{z}]", 2

    def across():
        z = latent(w, shape)
        own = w.shape(z)
        axis = -1 - int(w.rng.integers(len(own))) if own else -1
        if not own or own[axis] < 2 or w.rowwise:
            raise Unfit
        n, dots = own[axis], "..., " if axis == -1 and len(own) > 1 else ""
        order = w.rng.integers(0, n, n).tolist()
        options = [
            f"jnp.roll({z}, 1, {axis})",
            f"jnp.sort({z}, {axis})",
            f"jnp.max({z}, {axis}, keepdims=True)",
            f"jnp.take({z}, jnp.array({order}), {axis})",
            f"jnp.flip({z}, {axis})",
        ]
        if axis == -1:
            options += [f"{z}[{dots}::-1]", f"{z}[{dots}jnp.array({order})]", f"{z}[{dots}:1]"]
        return w.fitting(w.pick(options), shape), w.latents[z]

    def given():
        k = int(w.rng.integers(2, 4))
        own = tuple(n if w.chance(0.8) or w.rowwise else 1 for n in shape)
        return w.argument(w.rng.integers(0, k, own), prefix="g"), k

    def constant():
        if w.rowwise or not shape:
            raise Unfit
        k = int(w.rng.integers(2, 4))
        return f"{w.pick(['jnp.array', 'np.array'])}({literal(w.rng.integers(0, k, shape))})", k

    options = [(8, None, plain), (1.5, "index of states", turned), (1.5, "index of two latents", two)]
    options += [(1, "index of a constant", nested), (0.8, "latent across cells", across)]
    if not only_latent:
        options += [(1.5, "index from data", given), (0.7, "constant index", constant)]
    return w.choose(*options)


def indexed(w: Writer, kind: str, shape, event=(), only_latent=False) -> str:
    """A parameter, chosen by one or more indices."""

    def one():
        s, k = selector(w, shape, only_latent)
        return f"{w.param(kind, (k, *event))}[{s}]"

    def several():
        picks = [selector(w, shape) for _ in range(int(w.rng.integers(2, 4)))]
        if len({s for s, _ in picks}) < len(picks):
            raise Unfit
        name = w.param(kind, (*(k for _, k in picks), *event))
        return f"{name}[{', '.join(s for s, _ in picks)}]"

    def in_turn():
        (s, k), (r, j) = selector(w, ()), selector(w, shape)
        feature = "index of an unplated latent first"
        if any(re.search(rf"\b{z}\b", s) for z in w.latents):
            if feature in w.off:
                raise Unfit
            w.features.add(feature)
        return f"{w.param(kind, (k, j, *event))}[{s}][{r}]"

    def taken():
        s, k = selector(w, shape, only_latent)
        return f"jnp.take({w.param(kind, (k, *event))}, {s}, 0)"

    def turned():
        s, k = selector(w, shape, only_latent)
        return f"{w.param(kind, (k, *event))}[::-1][{s}]"

    def flat():
        s, k = selector(w, shape, only_latent)
        if k % 2 or event:
            raise Unfit
        return f"{w.param(kind, (k // 2, 2))}.reshape(-1)[{s}]"

    def transposed():
        (s, k), (r, j) = selector(w, shape, only_latent), selector(w, shape)
        if event:
            raise Unfit
        return f"{w.param(kind, (k, j))}.T[{r}, {s}]"

    options = [
        (7, None, one),
        (2, "several indices", several),
        (0.6, "take", taken),
        (0.5, "reversed parameter", turned),
    ]
    options += [(0.5, "reshape", flat), (0.5, "transpose", transposed), (0.5, "indices in turn", in_turn)]
    return w.fitting(w.choose(*options), shape, len(event))


def real(w: Writer, shape, depth: int = 0, only_latent: bool = False) -> str:
    """A real number in every cell."""

    def whole():
        return w.param("real", ())

    def mapped():
        s, k = selector(w, shape, only_latent)
        a = w.param("real", (k,))
        return w.pick([f"(2.0 * {a} - 0.5)[{s}]", f"jnp.tanh({a})[{s}]", f"{a}[{s}] + 0.7", f"jnp.exp({a})[{s}] - 1.0"])

    def total():
        return f"{real(w, shape, depth + 1, only_latent)} + {real(w, shape, depth + 1)}"

    def times():
        return f"{w.param('real', ())} * ({real(w, shape, depth + 1, only_latent)})"

    def covariate():
        x = w.argument(w.values("real", shape))
        return f"{indexed(w, 'real', shape, (), only_latent)} * {x}"

    def regression():
        x = w.argument(w.values("real", (*shape, 2)), rows=-2)
        return w.pick([f"{x} @ {w.param('real', (2,))} + {indexed(w, 'real', shape)}", mixed(x)])

    def mixed(x):
        b = indexed(w, "real", shape, (2,), only_latent)
        return w.pick([f"({x} * {b}).sum(-1)", f'jnp.einsum("...i,...i->...", {x}, {b})'])

    def value():
        z = latent(w, shape)
        return w.pick([f"{w.param('real', ())} * {z}", f"{w.param('real', ())} + 0.6 * {z}", f"0.5 * {z}"])

    def value_and_covariate():
        x = w.argument(w.values("real", shape))
        return f"{latent(w, shape)} * {x} * {w.param('real', ())}"

    def condition():
        z = latent(w, shape)
        return (
            f"jnp.where({z} == {int(w.rng.integers(w.latents[z]))}, {real(w, shape, depth + 1)}, {w.param('real', ())})"
        )

    def hot():
        z = latent(w, shape)
        return f"jax.nn.one_hot({z}, {w.latents[z]}) @ {w.param('real', (w.latents[z],))}"

    def hot_sum():
        z = latent(w, shape)
        k = w.latents[z]
        return f"(jax.nn.one_hot({z}, {k}) * {w.param('real', (k,))}).sum(-1)"

    def stacked():
        z = latent(w, shape)
        parts = [w.param("real", ()) for _ in range(w.latents[z])]
        return f"jnp.stack([{', '.join(parts)}])[{z}]"

    def summed():
        s, k = selector(w, shape, only_latent)
        return f"jnp.cumsum({w.param('real', (k,))})[{s}]"

    def product():
        s, k = selector(w, shape, only_latent)
        return f"(jnp.array({literal(w.values('real', (k, 2)))}) @ {w.param('real', (2,))})[{s}]"

    def pairs():
        k = int(w.rng.integers(2, 5))
        g = w.argument(w.rng.integers(0, k, (*shape, 2)), rows=-2, prefix="g")
        a = w.param("real", (k,))
        return f"{a}[{g}].sum(-1) + {indexed(w, 'real', shape)}"

    def reordered():
        if w.rowwise or not shape or shape[-1] < 2 or any(n > 1 for n in shape[:-1]):
            raise Unfit
        n, k = shape[-1], int(w.rng.integers(2, 4))
        g, o = w.argument(w.rng.integers(0, k, n), prefix="g"), w.argument(w.rng.permutation(n), prefix="g")
        return f"{w.param('real', (k,))}[{g}][{o}]"

    def per_cell():
        if w.rowwise or not shape or shape[-1] < 2:
            raise Unfit
        return f"{w.param('real', (shape[-1],))}"

    def across():
        m = indexed(w, "real", shape, (), True)
        own = w.shape(m)
        if not own or max(own) < 2 or w.rowwise:
            raise Unfit
        axis = w.pick([a for a in range(-len(own), 0) if own[a] > 1])
        options = [
            f"{m} - ({m}).mean()",
            f"jnp.cumsum({m}, {axis})",
            f"jnp.roll({m}, 1, {axis})",
            f"jnp.flip({m}, {axis})",
        ]
        options += [f"{m} - ({m}).max()", f"({m}).sum({axis}, keepdims=True)"]
        if axis == -1 and own[-1] > 1:
            options.append(f"({m}) @ jnp.array({literal(w.values('real', (own[-1], own[-1])))})")
        return w.pick(options)

    options = [(6, None, lambda: indexed(w, "real", shape, (), only_latent)), (2, "maps of parameters", mapped)]
    options += [(1, "value of a latent", value), (0.8, "latent times covariate", value_and_covariate)]
    options += [(1, "where", condition), (0.7, "one-hot product", hot), (0.5, "one-hot sum", hot_sum)]
    options += [(0.7, "stack", stacked), (0.6, "cumsum of a parameter", summed), (0.6, "matrix product", product)]
    options += [
        (0.8, "across cells after an index", across),
        (1, "covariate", covariate),
        (1, "regression", regression),
    ]
    if not only_latent:
        options += [(0.7, None, whole), (0.5, "pairs", pairs), (0.5, "index of an index", reordered)]
        options += [(0.3, "parameter per cell", per_cell)]
    if depth < 2:
        options += [(1.5, "sum", total), (0.7, "bilinear", times)]
    return w.fitting(w.choose(*options), shape)


def positive(w: Writer, shape, only_latent=False) -> str:
    """A positive number in every cell."""
    return w.fitting(
        w.choose(
            (5, None, lambda: indexed(w, "positive", shape, (), only_latent)),
            (2, "exp", lambda: f"jnp.exp({real(w, shape, 1, only_latent)})"),
            (0.7, "softplus", lambda: f"jax.nn.softplus({real(w, shape, 1, only_latent)})"),
            (1, "root", lambda: f"jnp.sqrt({indexed(w, 'positive', shape, (), only_latent)})"),
            (0.7, "product of factors", lambda: f"{w.param('positive', ())} * {indexed(w, 'positive', shape)}"),
            (0.7, "rate and exposure", lambda: _exposed(w, shape, only_latent)),
            *([] if only_latent else [(2, None, lambda: w.param("positive", ())), (1, None, lambda: "1.3")]),
        ),
        shape,
    )


def _exposed(w, shape, only_latent):
    x = w.argument(w.values("positive", shape))
    return f"{x} * {indexed(w, 'positive', shape, (), only_latent)}"


def probability(w: Writer, shape, only_latent=False) -> str:
    """A number between 0 and 1 in every cell."""
    return w.fitting(
        w.choose(
            (5, None, lambda: indexed(w, "unit", shape, (), only_latent)),
            (2, "sigmoid", lambda: f"jax.nn.sigmoid({real(w, shape, 1, only_latent)})"),
            (0.6, "scaled probability", lambda: f"0.1 + 0.8 * {indexed(w, 'unit', shape, (), only_latent)}"),
            (0.6, "one minus", lambda: f"1 - {indexed(w, 'unit', shape, (), only_latent)}"),
            (0.6, "product of probabilities", lambda: f"{w.param('unit', ())} * {indexed(w, 'unit', shape)}"),
            *([] if only_latent else [(1, None, lambda: w.param("unit", ())), (0.5, None, lambda: "0.4")]),
        ),
        shape,
    )


def simplex(w: Writer, k: int, shape, only_latent=False) -> str:
    """Probabilities of ``k`` states in every cell, along a last axis."""

    def stacked():
        if k != 2:
            raise Unfit
        p = probability(w, shape, only_latent)
        return f"jnp.stack([{p}, 1 - ({p})], -1)"

    def mixed():
        return f"0.8 * {indexed(w, 'simplex', shape, (k,), only_latent)} + {round(0.2 / k, 12)}"

    def softened():
        return f"jax.nn.softmax({indexed(w, 'real', shape, (k,), only_latent)})"

    options = [
        (7, None, lambda: indexed(w, "simplex", shape, (k,), only_latent)),
        (1, "stack of probabilities", stacked),
    ]
    options += [(0.7, "mixed with a constant", mixed), (1, "softmax", softened)]
    if not only_latent:
        options += [(3, None, lambda: w.param("simplex", (k,)))]
    return w.fitting(w.choose(*options), shape, 1)


def vector(w: Writer, d: int, shape, only_latent=False) -> str:
    """A vector in every cell."""
    return w.fitting(
        w.choose(
            (5, None, lambda: indexed(w, "real", shape, (d,), only_latent)),
            (1, "stack of numbers", lambda: f"jnp.stack([{', '.join(_full(w, shape) for _ in range(d))}], -1)"),
            (
                1,
                "matrix times a vector",
                lambda: f"{indexed(w, 'real', shape, (d,), True)} @ {w.param('real', (d, d))}",
            ),
        ),
        shape,
        1,
    )


def _full(w, shape):
    text = real(w, shape, 2)
    return text if w.shape(text) == tuple(shape) else f"jnp.broadcast_to({text}, {tuple(shape)})"


def matrix(w: Writer, d: int, shape) -> str:
    """A covariance matrix in every cell."""
    return w.fitting(
        w.choose(
            *([] if w.interior else [(2, None, lambda: w.param("matrix", (d, d)))]),
            *([] if w.interior else [(2, None, lambda: indexed(w, "matrix", shape, (d, d)))]),
            (1, "multiple of a matrix", lambda: f"{w.param('positive', ())} * jnp.eye({d})"),
            (1, "diagonal matrix", lambda: f"jnp.diag({w.param('positive', (d,))})"),
        ),
        shape,
        2,
    )
