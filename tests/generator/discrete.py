"""Random models whose latents are all discrete: in plates of every layout, in none, depending on each other."""

from __future__ import annotations

import numpy as np

from tests.generator import expressions as e
from tests.generator import sites
from tests.generator.writer import Program, Unfit, Writer, literal


def layout(w: Writer) -> list[tuple[str, int, int]]:
    """Plates: name, size, dim."""
    a, b = w.pick([2, 3]), w.pick([2, 3])
    b = a if w.chance(0.5) else b
    return w.choose(
        (5, None, lambda: [("n", a + w.chance(0.3), -1)]),
        (3, "two plates", lambda: [("g", a, -2), ("n", b, -1)]),
        (1, "plate with dim -2", lambda: [("n", a, -2)]),
        (1, "gap between plates", lambda: [("g", a, -3), ("n", b, -1)]),
        (0.7, "three plates", lambda: [("f", 2, -3), ("g", 2, -2), ("n", b if w.chance(0.4) else 1, -1)]),
    )


def shape_of(plates) -> tuple[int, ...]:
    """Shape of the cells in some plates."""
    by_dim = {dim: size for _, size, dim in plates}
    return tuple(by_dim.get(d, 1) for d in range(min(by_dim, default=0), 0))


def level(w: Writer, plates) -> list:
    """Some of the plates."""
    if w.rowwise or (len(plates) == 1 and w.chance(0.8)):
        return list(plates)
    return [plate for plate in plates if w.chance(0.65)]


def write(w: Writer) -> Program:
    """A model."""
    plates = layout(w)
    weighted = plates[0][2] == -1 and len(plates) == 1 and w.chance(0.15, "weights")
    outer = []
    if weighted:
        w.rowwise = True
        weight = w.argument(w.rng.choice([0.5, 1.0, 2.0, 3.0], plates[0][1]), prefix="weight")
        outer.append(f"numpyro.handlers.scale(scale={weight})")
    elif len(plates) == 1 and w.chance(0.08, "mask of whole cells"):
        shape = shape_of(plates)
        outer.append(f"numpyro.handlers.mask(mask={w.argument(w.rng.random(shape) < 0.7, prefix='m')})")
        w.rowwise = True
    for name, size, dim in plates:
        written = f"{weight}.shape[0]" if weighted else size
        automatic = len(plates) == 1 and dim == -1 and w.chance(0.5)
        w.line(f'{name} = numpyro.plate("{name}", {written}{"" if automatic else f", dim={dim}"})')
    cells = 0
    for number in range(int(w.rng.integers(1, 4))):
        own = level(w, plates)
        shape = shape_of(own)
        text, k, support = sites.latent_family(w, shape, bool(w.latents) and w.chance(0.6))
        cells += np.prod(shape) * np.log(len(support))
        if cells > np.log(82):
            break
        z = f"z{number}"
        opening = [*outer, *(name for name, _, _ in own)]
        extra = ""
        if own and not w.rowwise and "Categorical" in text and w.chance(0.1, "some states observed"):
            states = w.argument(w.rng.integers(0, k, shape), prefix="y")
            extra = f", obs={states}, obs_mask={w.argument(w.rng.random(shape) < 0.5, prefix='m')}"
        with w.block(f"with {', '.join(opening)}:" if own else None):
            w.line(f'{z} = numpyro.sample("{z}", {text}{extra})')
        w.latents[z], w.scope[z] = k, np.full(shape, support[0])
    if not w.latents:
        raise Unfit
    for number in range(int(w.rng.integers(1, 4))):
        own = level(w, plates)
        if number == 0 or w.chance(0.6):
            own = plates if w.chance(0.8) else own
        shape = shape_of(own)
        if not any(w.fits(z, shape) for z in w.latents):
            own, shape = plates, shape_of(plates)
        opening = ", ".join([*outer, *(name for name, _, _ in own)]) if own else ""
        sites.observe(w, f"y{number}", shape, opening, number == 0 or w.chance(0.7))
    if not w.rowwise and w.chance(0.07, "factor"):
        shape = shape_of(plates)
        z = e.latent(w, shape)
        with w.block(f"with {', '.join(name for name, _, _ in plates)}:"):
            w.line(f'numpyro.factor("f", jnp.array({literal(w.values("real", (w.latents[z],)))})[{z}])')
    return w.program()
