"""Random models with normal latents in which the log joint density is quadratic, with or without discrete ones."""

from __future__ import annotations

import re

import numpy as np

from tests.generator import expressions as e
from tests.generator import sites
from tests.generator.chains import tuple_of
from tests.generator.discrete import shape_of
from tests.generator.writer import Program, Unfit, Writer, literal


def write(w: Writer) -> Program:
    """A model."""
    return w.choose((3, None, lambda: _effects(w)), (1.5, "normal chain", lambda: _chain(w)))


# ---------------------------------------------------------------------------------------- effects and factors


def _effects(w: Writer) -> Program:
    a, b = int(w.rng.integers(2, 4)), int(w.rng.integers(2, 5))
    b = a if w.chance(0.4) else b
    n, k, h, g = ("n", b, -1), ("k", a, -1), ("h", 2, -1), ("g", a, -2)
    homes, data = w.choose(
        (2, None, lambda: ([[n]], [n])),
        (2, "effects by index", lambda: ([[k]], [n])),
        (1.5, "effects in an outer plate", lambda: ([[g]], [g, n])),
        (1, "crossed effects by index", lambda: ([[k], [h]], [n])),
        (0.7, "crossed effects in plates", lambda: ([[g], [n]], [g, n])),
        (0.7, "nested effects", lambda: ([[g], [("g", 2, -2), n]], [("g", 2, -2), ("n", 2, -1)])),
        (0.7, "effect in no plate", lambda: ([[]], [n])),
        (0.5, "effect in no plate and one in a plate", lambda: ([[], [n]], [n])),
        (0.5, "effects over a gap", lambda: ([[("g", 2, -3)]], [("g", 2, -3), ("n", 2, -1)])),
    )
    if homes[-1] == [("g", 2, -2), n]:
        homes = [[("g", 2, -2)], [("g", 2, -2), ("n", 2, -1)]]
    for name, size, dim in dict.fromkeys(plate for plates in (*homes, data) for plate in plates):
        w.line(f'{name} = numpyro.plate("{name}", {size}, dim={dim})')
    if w.chance(0.35, "discrete beside normal latents"):
        own = w.pick([homes[-1], data, []])
        _within(w, own, lambda shape: sites.latent_family(w, shape, False), "z")
    effects: list[str] = []
    for number, own in enumerate(homes):
        effects.append(_effect(w, f"b{number}", own, effects))
    if len(homes) == 1 and w.chance(0.2, "two effects in one plate"):
        effects.append(_effect(w, "b9", homes[0], effects))
    vectors = [b for b in effects if w.shape(b) != w.shape(f"{b}_cells")]
    for number in range(int(w.rng.integers(1, 3))):
        shape = shape_of(data)
        names = ", ".join(name for name, _, _ in data)
        if vectors and w.fits(f"{vectors[0]}_cells", shape) and w.chance(0.6):
            b = vectors[0]
            loc = f"{b} @ {w.param('real', (2, 2))} + {e.vector(w, 2, shape)}"
            text = f"dist.MultivariateNormal({loc}, covariance_matrix={e.matrix(w, 2, shape)})"
            if w.chance(0.5):
                text = f"dist.Normal({loc}, {w.param('positive', (2,))}).to_event(1)"
            y = w.argument(w.values("real", (*shape, 2)), prefix="y")
        else:
            parts = [_linear(w, b, shape) for b in (effects if number == 0 or w.chance(0.5) else [w.pick(effects)])]
            loc = " + ".join([*parts, *([e.real(w, shape, 1)] if w.chance(0.7) else [])])
            text = f"dist.Normal({w.fitting(loc, shape)}, {e.positive(w, shape)})"
            y = w.argument(w.values("real", shape) * 1.5, prefix="y")
        opening = names
        if w.chance(0.12, "mask"):
            opening = f"numpyro.handlers.mask(mask={w.argument(w.rng.random(shape) < 0.7, prefix='m')}), {names}"
        with w.block(f"with {opening}:"):
            w.line(f'numpyro.sample("y{number}", {text}, obs={y})')
    if w.latents and w.chance(0.5):
        sites.observe(w, "d", shape_of(data), ", ".join(name for name, _, _ in data), True)
    return w.program()


def _within(w: Writer, plates, family, z: str) -> None:
    shape = shape_of(plates)
    text, k, support = family(shape)
    if np.prod(shape) * np.log(len(support)) > np.log(30):
        raise Unfit
    with w.block(f"with {', '.join(name for name, _, _ in plates)}:" if plates else None):
        w.line(f'{z} = numpyro.sample("{z}", {text})')
    w.latents[z], w.scope[z] = k, np.full(shape, support[0])


def _effect(w: Writer, name: str, plates, before: list[str]) -> str:
    """A normal latent; its name, or that of what is made of it."""
    shape, event, made = shape_of(plates), (), name
    if np.prod(shape) <= 3 and w.chance(0.25, "vector of effects"):
        event = (2,)
        loc = "jnp.zeros(2)" if w.chance(0.5) else e.vector(w, 2, shape)
        text = f"dist.MultivariateNormal({loc}, {e.matrix(w, 2, shape)})"
        if w.chance(0.3):
            text = f"dist.Normal({w.param('real', (2,))}, {w.param('positive', (2,))}).to_event(1)"
    elif w.chance(0.2, "effects not centred"):
        text, made = "dist.Normal(0.0, 1.0)", f"c{name}"
    else:
        loc = w.choose(
            (2, None, lambda: "0.0"),
            (2, "effects with a mean", lambda: e.real(w, shape, 1)),
            (
                1.5 if before else 0.0001,
                "an effect of an effect",
                lambda: w.fitting(_linear(w, w.pick(before or ["?"]), shape), shape),
            ),
        )
        text = f"dist.Normal({loc}, {e.positive(w, shape)})"
    with w.block(f"with {', '.join(plate for plate, _, _ in plates)}:" if plates else None):
        w.line(f'{name} = numpyro.sample("{name}", {text})')
    w.strategies[name] = "Gaussian()"
    w.scope[name], w.scope[f"{name}_cells"] = np.zeros((*shape, *event)), np.zeros(shape)
    if made != name:
        w.line(f"{made} = {e.real(w, shape, 1)} + {e.positive(w, shape)} * {name}")
        w.scope[made] = w.scope[f"{made}_cells"] = np.zeros(w.shape(w.lines[-1].split(" = ")[1]))
    return made


def _linear(w: Writer, b: str, shape) -> str:
    """Something linear in an effect, for every cell."""
    if w.shape(b) != w.shape(f"{b}_cells"):  # a vector: one number of it
        own = w.shape(f"{b}_cells")
        w.scope["one"] = np.zeros(own)
        x = w.argument(w.values("real", shape))
        if w.fits("one", shape):
            return w.pick(
                [
                    f"{b}[..., 0] + {b}[..., 1] * {x}",
                    f"{b} @ {w.param('real', (2,))}",
                    f"({b} * {w.param('real', (2,))}).sum(-1)",
                ]
            )
        if len(own) != 1:
            raise Unfit
        i = w.argument(w.rng.integers(0, own[0], shape), prefix="g")
        return w.pick([f"{b}[{i}, 0] + {b}[{i}, 1] * {x}", f"{b}[{i}] @ {w.param('real', (2,))}"])

    def itself():
        return w.fitting(b, shape)

    def moved():
        own = w.shape(w.fitting(b, shape))
        if not own or max(own) < 2:
            raise Unfit
        axis = w.pick([a for a in range(-len(own), 0) if own[a] > 1])
        options = [
            f"jnp.flip({b}, {axis})",
            f"jnp.cumsum({b}, {axis})",
            f"jnp.roll({b}, 1, {axis})",
            f"{b} - {b}.mean({axis}, keepdims=True)",
        ]
        if axis == -1:
            options += [f"{b} @ jnp.array({literal(w.values('real', (own[-1], own[-1])))})"]
        return w.pick(options)

    def multiplied():
        return w.pick([f"{w.argument(w.values('real', shape))} * {itself()}", f"{w.param('real', ())} * {itself()}"])

    def by_latent():
        return f"{e.indexed(w, 'real', shape, (), True)} * {itself()}"

    def index(own=None):
        if len(w.shape(b)) != 1:
            raise Unfit
        return w.argument(w.rng.integers(0, w.shape(b)[0], shape if own is None else own), prefix="g")

    def by_index():
        i = index()
        return w.pick([f"{b}[{i}]", f"jnp.take({b}, {i})", f"{w.argument(w.values('real', shape))} * {b}[{i}]"])

    def by_constant():
        if len(w.shape(b)) != 1:
            raise Unfit
        return f"{b}[{w.pick(['jnp.array', 'np.array'])}({literal(w.rng.integers(0, w.shape(b)[0], shape))})]"

    def two():
        return f"{b}[{index()}] {w.pick('+-')} {b}[{index()}]"

    def pairs():
        i = index((*shape, 2))
        return w.pick([f"{b}[{i}].sum(-1)", f"{b}[{i}][..., 0] - 0.5 * {b}[{i}][..., 1]", f"{b}[{i}].mean(-1)"])

    def reordered():
        if len(shape) != 1:
            raise Unfit
        o = w.argument(w.rng.permutation(shape[0]), prefix="g")
        i = index()
        return w.pick(
            [
                f"{b}[{i}][{o}]",
                f"{b}[{i}] + {b}[{i}][{o}]",
                f"{b}[{i}][::-1]",
                f"jnp.cumsum({b}[{i}])",
                f"{b}[{i}] - {b}[{i}].mean()",
            ]
        )

    def matrix():
        if len(shape) != 1 or len(w.shape(b)) != 1:
            raise Unfit
        return f"jnp.array({literal(w.values('real', (shape[0], w.shape(b)[0])))}) @ {b}"

    def hot():
        return f"jax.nn.one_hot({index()}, {w.shape(b)[0]}) @ {b}"

    def by_state():
        if len(w.shape(b)) != 1:
            raise Unfit
        z = e.latent(w, shape)
        if w.latents[z] > w.shape(b)[0]:
            raise Unfit
        return f"{b}[{z}]"

    return w.fitting(
        w.choose(
            (5, None, itself),
            (3, "effect by index", by_index),
            (1, "effect across cells", moved),
            (1.5, "effect times something", multiplied),
            (1.5, "effect times a parameter of a latent", by_latent),
            (0.7, "effect by a constant index", by_constant),
            (0.7, "two effects a cell", two),
            (0.5, "pairs of effects", pairs),
            (0.5, "effects after an index", reordered),
            (0.5, "matrix times effects", matrix),
            (0.4, "one-hot times effects", hot),
            (0.4, "effect by a discrete latent", by_state),
        ),
        shape,
    )


# -------------------------------------------------------------------------------------------- chains of normals


def _chain(w: Writer) -> Program:
    size = 2
    plates = w.choose((3, None, lambda: []), (1.5, "normal chains in a plate", lambda: [("n", size, -1)]))
    shape, names = shape_of(plates), ", ".join(name for name, _, _ in plates)
    two = w.chance(0.2, "two normal states") if not plates else False
    steps = w.pick([1, 2, 3, 3] if plates or two else [2, 3, 4, 5, 6])
    for name, count, dim in plates:
        w.line(f'{name} = numpyro.plate("{name}", {count}, dim={dim})')
    if w.chance(0.15, "discrete beside a normal chain"):
        _within(w, plates if w.chance(0.6) else [], lambda own: sites.latent_family(w, own, False), "z")
    states = ["l", "t"] if two else ["l"]
    starts = []
    for state in states:
        if w.chance(0.1, "first normal state before the scan"):
            with w.block(f"with {names}:" if names else None):
                w.line(
                    f'{state}0 = numpyro.sample("{state}0", dist.Normal({e.real(w, shape, 2)}, {e.positive(w, shape)}))'
                )
            w.strategies[f"{state}0"] = "Gaussian()"
            starts.append(f"{state}0")
        else:
            value = w.pick(["0.0", "0.5", w.param("real", ()), e.real(w, shape, 2)])
            starts.append(f"jnp.full({shape}, {value})" if w.shape(value) != shape else value)
        w.scope[f"{state}_1"] = np.zeros(shape)
    w.line("def step(carry, xs):")
    w.steps, outer_lines, w.lines = steps, w.lines, []
    w.indent += 1
    opening = names
    if w.chance(0.2, "mask of data in a normal chain"):
        m = w.argument(w.rng.random(shape) < 0.7, prefix="m")
        seen = ", ".join([f"numpyro.handlers.mask(mask={m})", *([names] if names else [])])
    else:
        seen = opening
    for state in states:
        other = " + t_1" if two and state == "l" else ""
        loc = w.pick(
            [
                f"{state}_1{other}",
                f"{w.param('real', ())} * {state}_1{other}",
                f"{e.indexed(w, 'real', shape)} * {state}_1{other}",
                f"{state}_1{other} + {e.real(w, shape, 1)}",
            ]
        )
        with w.block(f"with {opening}:" if opening else None):
            w.line(f'{state} = numpyro.sample("{state}", dist.Normal({w.fitting(loc, shape)}, {e.positive(w, shape)}))')
        w.scope[state] = np.zeros(shape)
        w.strategies[state] = "Gaussian()"
    carried, following = [f"{state}_1" for state in states], list(states)
    for number in range(w.pick([1, 1, 2])):
        y = w.argument(w.values("real", shape), prefix="y")
        loc = w.pick(
            [
                "l",
                f"{w.param('real', ())} * l",
                f"l + {e.real(w, shape, 1)}",
                f"{w.argument(w.values('real', shape))} * l",
            ]
        )
        if number == 0 and w.chance(0.2, "previous observation"):
            loc += f" + {w.param('real', ())} * before"
            carried.append("before")
            following.append(y)
            starts.append(f"jnp.zeros({shape})" if shape else "0.0")
            w.scope["before"] = np.zeros(shape)
        with w.block(f"with {seen}:" if seen else None):
            w.line(
                f'numpyro.sample("y{number}", dist.Normal({w.fitting(loc, shape)}, {e.positive(w, shape)}), obs={y})'
            )
    w.line(f"return {tuple_of(following)}, None")
    body, w.lines, w.indent, w.steps = w.lines, outer_lines, w.indent - 1, 0
    inside = "\n".join(body)
    inputs = [name for name in w.data if re.search(rf"\b{name}_t\b", inside)]
    w.line(f"    {tuple_of(carried)} = carry")
    w.line(f"    {tuple_of([f'{name}_t' for name in inputs])} = xs")
    w.lines += body
    w.line(f"scan(step, {tuple_of(starts)}, {tuple_of(inputs)}, length={steps})")
    return w.program()
