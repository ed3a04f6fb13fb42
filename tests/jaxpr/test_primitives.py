"""The table of primitives against JAX itself, and that every domain follows it: known rows, a new row, no row."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad

from emppl.errors import Refusal
from emppl.jaxpr import places, primitives
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.equations import RISES, Kind, Row
from emppl.jaxpr.groups import Grouped, Meeting
from emppl.jaxpr.jumps import only_jumps, why_not_quadratic
from emppl.jaxpr.maps import MULTIPLY, Step
from emppl.jaxpr.monotone import Turns, direction
from emppl.jaxpr.numbering import number_cells
from emppl.jaxpr.separation import Separation
from emppl.jaxpr.walk import Computation

RNG = np.random.default_rng(11)
UNIT = (0.1, 0.9)


def numbers(*shape, low=0.1, high=0.9):
    return RNG.uniform(low, high, shape)


def flags(*shape):
    return RNG.random(shape) < 0.5


def of_lax(name, count=1, **options):
    """A function of `jax.lax` and its operands."""
    return lambda *operands: getattr(lax, name)(*operands, **options), [numbers(3, 4) for _ in range(count)]


UNARY = (
    "abs acos asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf erf_inv erfc exp exp2 expm1 "
    "floor is_finite lgamma log log1p logistic neg rsqrt sign sin sinh sqrt square tan tanh"
).split()
BINARY = "add atan2 div eq ge gt igamma igammac igamma_grad_a le lt max min mul ne nextafter pow rem sub".split()

EXAMPLES = {
    **{name: of_lax(name) for name in UNARY},
    **{name: of_lax(name, 2) for name in BINARY},
    "acosh": (lax.acosh, [1 + numbers(3, 4)]),
    "polygamma": (lambda x: lax.polygamma(jnp.full_like(x, 2.0), x), [numbers(3, 4)]),
    "zeta": (lax.zeta, [1 + numbers(3, 4), numbers(3, 4)]),
    "regularized_incomplete_beta": (lax.betainc, [numbers(3, 4) for _ in range(3)]),
    "integer_pow": of_lax("integer_pow", y=3),
    "round": of_lax("round"),
    "reduce_precision": of_lax("reduce_precision", exponent_bits=8, mantissa_bits=23),
    "convert_element_type": (lambda x: lax.convert_element_type(x, jnp.float16), [numbers(3, 4)]),
    "clamp": (lax.clamp, [numbers(3, 4), 2 * numbers(3, 4), 1 + numbers(3, 4)]),
    "select_n": (lax.select_n, [flags(3, 4), numbers(3, 4), numbers(3, 4)]),
    "and": (lax.bitwise_and, [flags(3, 4), flags(3, 4)]),
    "or": (lax.bitwise_or, [flags(3, 4), flags(3, 4)]),
    "xor": (lax.bitwise_xor, [flags(3, 4), flags(3, 4)]),
    "not": (lax.bitwise_not, [flags(3, 4)]),
    "real": (lax.real, [numbers(3, 4) + 1j]),
    "imag": (lax.imag, [1j * numbers(3, 4)]),
    "copy_p": (jnp.copy, [numbers(3, 4)]),
    "copy": (jnp.copy, [numbers(3, 4)]),
    "softplus": (jax.nn.softplus, [numbers(3, 4)]),
    "floor_divide": (jnp.floor_divide, [5 * numbers(3, 4), numbers(3, 4)]),
    "digitize": (lambda x: jnp.digitize(x, jnp.linspace(0, 1, 5)), [numbers(3, 4)]),
    "searchsorted": (lambda x: jnp.searchsorted(jnp.linspace(0, 1, 5), x), [numbers(3, 4)]),
    "broadcast_in_dim": (lambda x: jnp.broadcast_to(x[:, None], (3, 2, 4)), [numbers(3, 4)]),
    "reshape": (lambda x: jnp.reshape(x, (2, 12, 1)), [numbers(2, 3, 4)]),
    "transpose": (lambda x: jnp.transpose(x, (1, 2, 0)), [numbers(2, 3, 4)]),
    "squeeze": (lambda x: lax.squeeze(x, (1,)), [numbers(3, 1, 4)]),
    "slice": (lambda x: lax.slice(x, (0, 1), (3, 4), (1, 2)), [numbers(3, 4)]),
    "split": (lambda x: lax.split(x, (1, 3), 1)[1], [numbers(3, 4)]),
    "dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i, jnp.zeros_like(i)), (2, 4)), [numbers(3, 4), np.int32(1)]),
    "rev": (lambda x: lax.rev(x, (0,)), [numbers(3, 4)]),
    "concatenate": (lambda x, y: lax.concatenate([x, y], 1), [numbers(3, 4), numbers(3, 2)]),
    "stack": (lambda x, y: jnp.stack([x, y], 1), [numbers(3, 4), numbers(3, 4)]),
    "pad": (lambda x, c: lax.pad(x, c, ((0, 0, 0), (1, 2, 1))), [numbers(3, 4), np.float64(0.5)]),
    "gather": (lambda x, i: x[:, i], [numbers(3, 4), RNG.integers(0, 4, (5, 2))]),
    "scatter": (lambda x, y: x.at[1].set(y), [numbers(3, 4), numbers(4)]),
    "scatter-add": (lambda x, y: x.at[1].add(y), [numbers(3, 4), numbers(4)]),
    "dynamic_update_slice": (lambda x, y: lax.dynamic_update_slice(x, y, (1, 1)), [numbers(3, 4), numbers(1, 2)]),
    **{f"reduce_{name}": of_lax(f"reduce_{name}", axes=(1,)) for name in ("sum", "max", "min", "prod")},
    "reduce_and": (lambda x: jnp.all(x, 1), [flags(3, 4)]),
    "reduce_or": (lambda x: jnp.any(x, 1), [flags(3, 4)]),
    "reduce_xor": (lambda x: lax.reduce_xor(x, (1,)), [flags(3, 4)]),
    "argmax": (lambda x: jnp.argmax(x, 1), [numbers(3, 4)]),
    "argmin": (lambda x: jnp.argmin(x, 1), [numbers(3, 4)]),
    **{name: of_lax(name, axis=1) for name in "cumsum cumprod cummax cummin cumlogsumexp".split()},
    "sort": (lambda x: lax.sort(x, dimension=1), [numbers(3, 4)]),
    "dot_general": (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), [numbers(2, 3, 4), numbers(2, 4, 5)]),
    "cholesky": (lambda x: lax.linalg.cholesky(x), [np.eye(3) + 0.1 * np.ones((2, 3, 3))]),
    "triangular_solve": (
        lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, lower=True),
        [np.eye(3) + np.tril(numbers(2, 3, 3)), numbers(2, 3, 4)],
    ),
}
"""By row of the table: a function that consists of the primitive (and what does not touch its operands), and operands."""


def spread(size):
    """A symmetric matrix with well separated eigenvalues."""
    return np.diag(np.arange(1.0, size + 1)) + 0.1 * np.ones((size, size))


def reflections(x):
    return lax.linalg.householder_product(jnp.tril(x, -1) + jnp.eye(3), jnp.full(3, 0.5))


SMOOTH = {
    "complex": (lambda x: lax.complex(x, 2 * x), [numbers(3, 4)]),
    "conj": (lambda x: lax.conj(lax.complex(x, x)), [numbers(3, 4)]),
    "fft": (lambda x: jnp.fft.fft(x), [numbers(3, 4)]),
    "conv_general_dilated": (lambda x: jnp.convolve(x, x), [numbers(5)]),
    "custom_linear_solve": (lambda x: jnp.linalg.solve(x, jnp.ones(3)), [spread(3)]),
    "eigh": (lambda x: jnp.linalg.eigvalsh(x), [spread(3)]),
    "svd": (lambda x: jnp.linalg.svd(x, compute_uv=False), [spread(3)]),
    "lu": (lambda x: lax.linalg.lu(x)[0], [spread(3)]),
    "qr": (lambda x: lax.linalg.qr(x)[1], [spread(3)]),
    "householder_product": (reflections, [numbers(3, 3)]),
    "optimization_barrier": (lambda x: lax.optimization_barrier(x), [numbers(3, 4)]),
    "reduce_window_sum": (lambda x: lax.reduce_window(x, 0.0, lax.add, (2,), (1,), "VALID"), [numbers(5)]),
    "tile": (lambda x: jnp.tile(x, 2), [numbers(3)]),
    "tridiagonal_solve": (
        lambda x: lax.linalg.tridiagonal_solve(0.1 * x, 1 + x, 0.1 * x, jnp.ones((4, 1))),
        [numbers(4)],
    ),
}
"""Rows whose places are unknown and that have no jumps."""

WITHOUT_EXAMPLE = {
    "add_any": "appears in derivatives only",
    "stop_gradient": "no primitive of the JAX that is installed",
    "random_gamma_grad": "no primitive of the JAX that is installed",
    "eq_to": "inside searches and sorts",
    "ge_to": "inside searches and sorts",
    "gt_to": "inside searches and sorts",
    "le_to": "inside searches and sorts",
    "lt_to": "inside searches and sorts",
    "iota": "without operands",
    "scatter_add": "another name of scatter-add",
    "scatter-mul": "as scatter-add",
    "while": "unknown but for its jumps",
    "bitcast_convert_type": "unknown but for its jumps",
}


@functools.cache
def traced(name):
    """The equation of an example, its function and its operands."""
    function, operands = EXAMPLES[name]
    computation = Computation(jax.make_jaxpr(function)(*operands))
    found = [equation for equation in computation.equations if equation.name == name.replace("copy_p", "copy")]
    return found[-1], function, operands


def value_of(function, operands):
    return np.asarray(function(*map(jnp.asarray, operands)))


def moving(equation, operands):
    """Operands that are arrays of numbers or conditions: position in the example, position in the equation."""
    for number, operand in enumerate(operands):
        position = number if len(equation.operands) == len(operands) else 0
        if equation.shapes[position] == operand.shape != () and operand.dtype.kind in "bfc":
            yield number, position, operand


def test_every_row_has_an_example():
    assert not set(primitives.ROWS) - set(EXAMPLES) - set(SMOOTH) - set(WITHOUT_EXAMPLE)


def changed(operand, index):
    """The operand with other values at an index."""
    other = np.array(operand)
    other[index] = ~other[index] if other.dtype == bool else other[index] * 1.01 + 0.003
    return other


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_axes_that_stay_whole(name):
    """What changes at one place of a whole axis changes the result at that place only."""
    equation, function, operands = traced(name)
    assert equation.row.kind is not Kind.UNKNOWN
    before = value_of(function, operands)
    for number, position, operand in moving(equation, operands):
        for axis, place in equation.axes.operands[position].whole.items():
            for entry in range(operand.shape[axis]):
                arguments = list(operands)
                arguments[number] = changed(operand, (slice(None),) * axis + (entry,))
                # Iterations stop when the slowest entry has converged: others may change in the last digits.
                same = np.isclose(before, value_of(function, arguments), rtol=1e-9, atol=0)
                assert np.delete(same, entry, place).all(), (number, axis)


@pytest.mark.parametrize("name", sorted(n for n in EXAMPLES if primitives.ROWS[n].kind is Kind.ELEMENTWISE))
def test_elementwise_direction_and_jumps(name):
    equation, function, operands = traced(name)
    before = value_of(function, operands)
    for number, position, operand in moving(equation, operands):
        if operand.dtype.kind != "f":
            continue
        arguments = list(operands)
        for step in (1e-9, 0.05):
            arguments[number] = operand + step
            rise = np.asarray(value_of(function, arguments), float) - before
            way = equation.directions[position]
            if way:
                assert np.all(way * rise >= 0)
            if step == 1e-9 and equation.jumps and not equation.row.has_slope:
                assert not rise.any()
            if step == 1e-9 and name != "convert_element_type":
                assert np.all(np.abs(rise) <= 1e-5 * (1 + np.abs(before)))


@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_operations_without_jumps_follow_a_small_step(name):
    """The result moves with its operand, and by about as little."""
    function, (operand,) = SMOOTH[name]
    equations = Computation(jax.make_jaxpr(function)(operand)).equations
    rows = [e.row for e in equations if e.name == name]
    assert all(row.kind is Kind.UNKNOWN and not row.jumps and row.has_slope for row in rows)
    assert rows or name == "tile", [e.name for e in equations]  # some versions of JAX write `tile` as broadcasts
    rise = np.abs(value_of(function, [operand * (1 + 1e-7)]) - value_of(function, [operand]))
    assert 0 < rise.max() < 1e-5


@pytest.mark.parametrize("name", sorted(n for n in EXAMPLES if primitives.ROWS[n].map is not None))
def test_maps_are_what_is_computed_and_invert_it(name):
    equation, function, operands = traced(name)
    for side in range(len(operands)):
        constants = [None if n == side else 1.7 for n in range(len(operands))]
        step = equation.row.map(equation.params, constants)
        if step is None:
            continue
        values = jnp.asarray(operands[side])
        expected = function(*(values if c is None else jnp.full_like(values, c) for c in constants))
        np.testing.assert_allclose(step.operation.forward(values, step.constant), expected, rtol=1e-12)
        np.testing.assert_allclose(step.operation.inverse(expected, step.constant), values, rtol=1e-9)
        low, high = step.operation.image(UNIT, step.constant)
        assert np.all((low <= expected) & (expected <= high))


@pytest.mark.parametrize("name", sorted(n for n in EXAMPLES if primitives.ROWS[n].fold is not None))
def test_folds_are_what_is_computed(name):
    equation, function, operands = traced(name)
    if len(equation.operands) != len(operands):
        pytest.skip("the example computes an operand")
    values = operands if name != "broadcast_in_dim" else [np.reshape(operands[0], equation.shapes[0])]
    np.testing.assert_array_equal(equation.row.fold(equation.params, *values), value_of(function, operands))


@pytest.mark.parametrize("name", sorted(n for n in EXAMPLES if primitives.ROWS[n].kind is Kind.MOVES))
def test_entries_that_move_are_entries_of_the_sources(name):
    equation, function, operands = traced(name)
    entries = np.concatenate([np.ravel(operand) for operand in operands])
    assert np.isin(value_of(function, operands), entries).all()


def test_a_function_of_the_users_by_a_known_name_is_written_out():
    @jax.jit
    def softplus(x):
        return 3 * x

    assert [e.name for e in Computation(jax.make_jaxpr(softplus)(1.0)).equations] == ["mul"]
    assert [e.name for e in Computation(jax.make_jaxpr(jax.nn.softplus)(1.0)).equations] == ["softplus"]


def test_a_jaxpr_that_is_called_twice_keeps_its_calls_apart():
    @jax.jit
    def scaled(x, factor):
        return x * factor

    dependence = of(lambda mu, x: (scaled(mu, 2.0), scaled(x, 3.0)), ("parameter", "mu"), ("data", "x"))
    assert [dependence.of_output(n) for n in (0, 1)] == [{("parameter", "mu")}, {("data", "x")}]
    assert str(dependence.selection("mu", 0).map) == "multiply by 2"


# --------------------------------------------------------------------------------------- a new row, and no row


toy = Primitive("toy_double")
toy.def_impl(lambda x: 2 * x)
toy.def_abstract_eval(lambda x: x)
ad.deflinear2(toy, lambda cotangent, _: [toy.bind(cotangent)])

TOY = Row(Kind.ELEMENTWISE, places.same_place, direction=RISES, map=lambda params, constants: Step(MULTIPLY, 2.0))
BLOCK = {"mu": jax.ShapeDtypeStruct((3,), jnp.result_type(float))}
INDEX = jnp.array([2, 0, 1, 1])


def of(function, *labels):
    return Dependence(jax.make_jaxpr(function)(*(jnp.ones(3) for _ in labels)), labels)


def toy_of_rows():
    return of(lambda mu, z: toy.bind(mu)[INDEX], ("parameter", "mu"), ("latent", "z"))


def test_domains_follow_a_new_row(monkeypatch):
    monkeypatch.setitem(primitives.ROWS, "toy_double", TOY)
    dependence = toy_of_rows()
    assert dependence.of_output(0) == {("parameter", "mu")}
    whole = of(lambda mu: toy.bind(mu), ("parameter", "mu"))
    assert whole.axis_positions("mu", 0) == (frozenset([0]),)
    assert whole.selection("mu", 0).position == (0,)
    assert str(dependence.selection("mu", 0).map) == "multiply by 2"
    assert direction(dependence, ("parameter", "mu"), 0) == RISES
    assert why_not_quadratic(lambda block: jnp.sum(toy.bind(block["mu"]) ** 2), BLOCK) is None
    assert only_jumps(lambda block: jnp.sum(toy.bind(block["mu"])), BLOCK) is None
    (found,) = Separation(lambda block: toy.bind(block["mu"])[INDEX], {"mu": (3,)}).groups({"mu": np.arange(3)})
    assert isinstance(found, Grouped)
    assert found.numbers.tolist() == INDEX.tolist()
    cells = number_cells(lambda block: {"y": toy.bind(block["mu"])[INDEX]}, {"mu": np.arange(3)})
    assert cells["y"].tolist() == INDEX.tolist()


def test_what_jumps_is_a_step_without_a_slope(monkeypatch):
    monkeypatch.setitem(primitives.ROWS, "toy_double", Row(TOY.kind, TOY.axes, jumps=True, has_slope=False))
    assert only_jumps(lambda block: jnp.sum(toy.bind(block["mu"])), BLOCK) == "toy_double"


def test_domains_answer_unknown_without_a_row():
    dependence = toy_of_rows()
    assert dependence.of_output(0) == {("parameter", "mu")}
    assert of(lambda mu: toy.bind(mu), ("parameter", "mu")).axis_positions("mu", 0) == (frozenset(),)
    assert dependence.selection("mu", 0) == Refusal("it goes through `toy_double`")
    assert direction(dependence, ("parameter", "mu"), 0) == Turns("toy_double")
    assert why_not_quadratic(lambda block: jnp.sum(toy.bind(block["mu"]) ** 2), BLOCK) == "toy_double"
    assert only_jumps(lambda block: jnp.sum(toy.bind(block["mu"])), BLOCK) is None
    (found,) = Separation(lambda block: toy.bind(block["mu"]), {"mu": (3,)}).groups({"mu": np.arange(3)})
    assert isinstance(found, Meeting)


# ------------------------------------------------------------------------- groups that the data pick, kept apart


def grouped(function):
    """The groups of a function of ``b``, five groups of one entry, and an index among the data."""
    index = jax.ShapeDtypeStruct((6, 2), jnp.int32)
    (found,) = Separation(lambda block, g: function(block["b"], g), {"b": (5,)}, index).groups({"b": np.arange(5)})
    return found


@pytest.mark.parametrize(
    "function",
    [
        lambda b, g: b[g].sum(-1),
        lambda b, g: b[g][:, 0] - b[g][:, 1],
        lambda b, g: b[g[:, 0]] - b[g[:, 0]].mean(),
        lambda b, g: jnp.cumsum(b[g[:, 0]]),
        lambda b, g: jnp.ones((6, 6)) @ b[g[:, 0]],
        lambda b, g: b[g[:, 0]] + b[g[:, 0]][::-1],
        lambda b, g: b[g[:, 0]] + b[g[:, 0]][g[:, 1]],
        lambda b, g: b[g[:, 0]][:, None] - b[g[:, 0]][None, :],
        lambda b, g: b[g] + b[g[:, ::-1]],
    ],
)
def test_rows_that_data_pick_meet(function):
    assert isinstance(grouped(function), Meeting)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, g: b[g[:, 0]] * 2 + b[g[:, 0]],
        lambda b, g: b[g][:, :, None].sum(-1),
        lambda b, g: (b[g[:, 0]][:, None] * jnp.arange(3.0)[None]).sum(-1),
        lambda b, g: jnp.where(jnp.arange(6) > 2, b[g[:, 0]], 0.0),
    ],
)
def test_rows_that_data_pick_stay_apart(function):
    found = grouped(function)
    assert isinstance(found, Grouped)
    assert (found.numbers < -1).all()


def test_what_is_read_off_a_model_dies_with_it():
    """JAX reuses constants that are alive, whatever the precision is by then."""
    gc.collect()
    gc.disable()
    try:
        dependence = of(lambda mu: jnp.exp(mu), ("parameter", "mu"))
        dependence.selection("mu", 0)
        dependence.axis_positions("mu", 0)
        alive = weakref.ref(dependence)
        del dependence
        assert alive() is None
    finally:
        gc.enable()
