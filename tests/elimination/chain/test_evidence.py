"""Chain kernels against enumeration of all paths, hmmlearn, and their plain twin."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from emppl.elimination import chain
from emppl.elimination.chain import Kernel, logspace
from emppl.elimination.chain.evidence import prepare
from emppl.numerics.guarded import maximum_out

FAST = (
    Kernel("sequential", 2048),
    Kernel("sequential", 3),
    Kernel("blocked", 2, 2),
    Kernel("associative", 3),
)
IDS = [f"{k.name}-{k.chunk}" for k in FAST]


def random_chain(seed, steps, states, batch, varies=False, batch_transition=True, gaps=False, zeros=False):
    """Potentials that are not normalised: the kernels must not rely on rows that sum to 1."""
    rng = np.random.default_rng(seed)
    ones = (1,) * len(batch)
    initial = rng.normal(size=(states, *batch))
    transition = rng.normal(
        size=(steps - 1 if varies and steps > 1 else 1, states, states, *(batch if batch_transition else ones))
    )
    emission = rng.normal(size=(steps, states, *batch)) * 3
    present = rng.random((steps, *batch)) < 0.7 if gaps else None
    if zeros:
        transition[rng.random(transition.shape) < 0.3] = -np.inf
        emission[rng.random(emission.shape) < 0.2] = -np.inf
        initial[rng.random(initial.shape) < 0.3] = -np.inf
    if gaps:  # whatever stands at a step that does not exist must not be read
        emission[np.broadcast_to(~present[:, None], emission.shape)] = np.nan
    return initial, transition, emission, present


def enumerate_paths(initial, transition, emission, present):
    """Evidence, marginals, pairwise marginals, counted pairs and the best path of one sequence, by brute force."""
    steps, states = emission.shape
    total = 0.0
    marginals, pairs = np.zeros((steps, states)), np.zeros((2, steps - 1, states, states))
    best, best_path = -np.inf, None
    for path in itertools.product(range(states), repeat=steps):
        log_joint = initial[path[0]]
        for t, z in enumerate(path):
            here = present is None or present[t]
            if t and here:
                log_joint += transition[min(t - 1, len(transition) - 1), path[t - 1], z]
            elif t and path[t - 1] != z:
                log_joint = -np.inf
            if here:
                log_joint += emission[t, z]
        joint = np.exp(log_joint)
        total += joint
        for t, z in enumerate(path):
            marginals[t, z] += joint
            if t:
                pairs[0, t - 1, path[t - 1], z] += joint
                if present is None or present[t]:
                    pairs[1, t - 1, path[t - 1], z] += joint
        if log_joint > best:
            best, best_path = log_joint, path
    with np.errstate(divide="ignore"):
        evidence = np.log(total)
    scale = total if total > 0 else 1.0
    return evidence, marginals / scale, pairs[0] / scale, pairs[1] / scale, best, best_path


def brute_force(initial, transition, emission, present):
    """The same for every sequence of a batch, batch axes last."""
    steps, states, *batch = emission.shape
    initial = np.broadcast_to(initial, (states, *batch))
    transition = np.broadcast_to(transition, (*transition.shape[:3], *batch))
    present = None if present is None else np.broadcast_to(present, (steps, *batch))
    results = [
        enumerate_paths(
            initial[:, *b], transition[:, :, :, *b], emission[:, :, *b], None if present is None else present[:, *b]
        )
        for b in np.ndindex(*batch)
    ]
    stack = [np.stack([np.asarray(r[i]) for r in results if r[i] is not None], -1) for i in range(5)]
    return [np.reshape(array, (*array.shape[:-1], *batch)) for array in stack], [r[5] for r in results]


def evidence_by(kernel, *arrays):
    """The twin, or a kernel."""
    return chain.step_by_step(*arrays) if kernel == "plain" else chain.log_evidence(*arrays, kernel=kernel)


@functools.partial(jax.jit, static_argnums=0)
def evidence_and_gradient(kernel, initial, transition, emission, present, weight):
    def total(*tables):
        evidence = evidence_by(kernel, *tables, present)
        return jnp.sum(weight * evidence), evidence

    (_, evidence), gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(initial, transition, emission)
    return evidence, gradient


def value_and_gradient(kernel, initial, transition, emission, present, weight=1.0):
    tables = map(jnp.asarray, (initial, transition, emission))
    return evidence_and_gradient(kernel, *tables, present, jnp.asarray(weight, emission.dtype))


# Few shapes, so that few programs are compiled; hypothesis varies what is in them.
SHAPES = [(1, 2, (), False, False), (5, 3, (), False, True), (5, 2, (2, 1), False, True), (4, 2, (2,), True, False)]


@st.composite
def chains(draw):
    steps, states, batch, varies, shared = draw(st.sampled_from(SHAPES))
    arrays = random_chain(
        draw(st.integers(0, 10**6)), steps, states, batch, varies, not shared, gaps=True, zeros=draw(st.booleans())
    )
    if draw(st.booleans()):
        present = np.ones_like(arrays[3])
        arrays = (*arrays[:2], np.where(np.isnan(arrays[2]), 0.5, arrays[2]), present)
    return arrays


@settings(max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
@given(chains(), st.sampled_from(("plain", *FAST[1:])))
def test_evidence_and_gradient_equal_enumeration(arrays, kernel):
    initial, transition, emission, present = arrays
    if not isinstance(kernel, str) and kernel.name == "blocked" and transition.shape[0] > 1:
        kernel = FAST[1]
    (evidence, marginals, _, counted, _), _ = brute_force(*arrays)
    got, (at_initial, at_transition, at_emission) = value_and_gradient(kernel, *arrays)
    np.testing.assert_allclose(got, evidence, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(at_initial, marginals[0], atol=1e-10)
    exists = np.ones(emission[:, 0].shape) if present is None else present
    np.testing.assert_allclose(at_emission, marginals * exists[:, None], atol=1e-10)
    sizes = transition.shape
    if sizes[0] == 1:
        counted = counted.sum(0, keepdims=True)
    axes = tuple(a for a in range(3, counted.ndim) if sizes[a] == 1)
    np.testing.assert_allclose(at_transition, counted.sum(axes, keepdims=True), atol=1e-10)


def path_of(key, initial, transition, emission, present=None):
    """The path that the gradient of a path's evidence marks, (T, *B): the best one (no key), or a draw."""

    def total(initial, emission):
        return jnp.sum(chain.path_evidence(initial, transition, emission, present, key))

    of_initial, marks = jax.grad(total, (0, 1))(jnp.broadcast_to(initial, emission.shape[1:]), jnp.asarray(emission))
    path = jnp.argmax(marks.at[0].set(of_initial), 1)
    if present is None:
        return path
    # Where a step does not exist the state is carried over.
    last = jnp.arange(len(path)).reshape(-1, *[1] * (path.ndim - 1)) * jnp.asarray(present)
    return jnp.take_along_axis(path, jax.lax.cummax(last, 0), 0)


@jax.jit
def everything(initial, transition, emission, present):
    """Filter, expected counts in log space (of transitions also step by step), and the best path."""
    steps, _, *batch = emission.shape
    wide = jnp.broadcast_to(transition, (steps - 1, *transition.shape[1:3], *batch))

    def backward(transition):
        static, arrays = prepare(initial, transition, emission, present, None)
        return logspace.backward(static, arrays, jnp.ones(static.lanes))

    first, counted, _, marginals = backward(transition)
    pairs = backward(wide)[1] if steps > 1 else counted[1:]
    best = path_of(None, initial, transition, emission, present)
    marginals, pairs, first = map(jnp.reshape, (marginals, pairs, first), (emission.shape, wide.shape, initial.shape))
    return chain.filtered(initial, transition, emission, present), marginals, pairs, first, counted, best


@settings(max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
@given(chains())
def test_posterior_queries_equal_enumeration(arrays):
    (evidence, marginals, _, pairs, best), _ = brute_force(*arrays)
    (states, predictive), smoothed, pairwise, first, counted, path = everything(*map(jnp.asarray, arrays))
    exists = arrays[3][:, None]
    np.testing.assert_allclose(smoothed, marginals * exists, atol=1e-10)
    np.testing.assert_allclose(first, marginals[0], atol=1e-10)
    np.testing.assert_allclose(pairwise, pairs, atol=1e-10)
    lanes = np.reshape(pairs, (*pairs.shape[:3], np.prod(pairs.shape[3:], dtype=int)))
    away = tuple(axis for axis in (0, 3) if counted.shape[axis] == 1)
    np.testing.assert_allclose(counted, lanes.sum(away, keepdims=True), atol=1e-10)
    possible = np.isfinite(evidence)
    np.testing.assert_allclose(np.where(possible, predictive.sum(0), 0), np.where(possible, evidence, 0), atol=1e-10)
    last = np.where(possible, np.exp(states[-1]), 0)
    np.testing.assert_allclose(last, marginals[-1], atol=1e-10)
    # The best path need not be unique: its probability is.
    path = np.asarray(path)
    initial, transition, emission, present = arrays
    batch = emission.shape[2:]
    for b in np.ndindex(*batch):
        if possible[b]:
            assert np.isclose(log_joint_of(path[:, *b], arrays, b), best[b], atol=1e-10)


def log_joint_of(path, arrays, b):
    initial, transition, emission, present = arrays
    steps, states, *batch = emission.shape
    initial = np.broadcast_to(initial, (states, *batch))[:, *b]
    transition = np.broadcast_to(transition, (*transition.shape[:3], *batch))[:, :, :, *b]
    here = np.ones(steps, bool) if present is None else np.broadcast_to(present, (steps, *batch))[:, *b]
    total = initial[path[0]]
    for t, z in enumerate(path):
        if t and here[t]:
            total += transition[min(t - 1, len(transition) - 1), path[t - 1], z]
        if t and not here[t]:
            assert path[t - 1] == z
        if here[t]:
            total += emission[t, z, *b]
    return total


def test_viterbi_breaks_ties_towards_the_lower_state():
    path = path_of(None, jnp.zeros(3), jnp.zeros((1, 3, 3)), jnp.zeros((4, 3)))
    np.testing.assert_array_equal(path, np.zeros(4))


@pytest.mark.parametrize("kernel", FAST, ids=IDS)
@pytest.mark.parametrize(("batch", "gaps"), [((), False), ((9,), True)], ids=["one", "batch with gaps"])
def test_fast_kernels_equal_the_plain_twin(kernel, batch, gaps):
    weight = np.random.default_rng(1).normal(size=batch)  # weights of any sign: cotangents are not only ones
    varies = gaps and kernel.name != "blocked"
    arrays = random_chain(2, 23, 4, batch, varies, batch_transition=False, gaps=gaps)
    value, gradient = value_and_gradient(kernel, *arrays, weight)
    twin_value, twin_gradient = value_and_gradient("plain", *arrays, weight)
    np.testing.assert_allclose(value, twin_value, rtol=1e-11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), gradient, twin_gradient)


@pytest.mark.parametrize(("states", "lanes"), [(13, 1), (13, 12), pytest.param(50, 12, marks=pytest.mark.slow)])
def test_many_states(states, lanes):
    arrays = random_chain(3, 7, states, (lanes,), batch_transition=False, zeros=True)
    for kernel in (Kernel("sequential", 4), Kernel("blocked", 2, 2)) if lanes == 1 else (Kernel("blocked", 2, 2),):
        value, gradient = value_and_gradient(kernel, *arrays)
        twin_value, twin_gradient = value_and_gradient("plain", *arrays)
        np.testing.assert_allclose(value, twin_value, rtol=1e-11)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), gradient, twin_gradient)


def gather(log_table, symbols):
    return log_table[:, symbols]


def linear(natural, statistics):
    return natural @ statistics


@pytest.mark.parametrize("kernel", FAST[1:], ids=IDS[1:])
@pytest.mark.parametrize(
    ("batch", "emission"), [((), linear), ((2,), gather), ((9,), chain.Symbols())], ids=["linear", "gather", "symbols"]
)
def test_fused_emission_equals_its_table(kernel, batch, emission):
    rng = np.random.default_rng(4)
    steps, states = 21, 3
    initial, transition, _, present = random_chain(5, steps, states, batch, batch_transition=False, gaps=True)
    if emission is not linear:
        params, slices = rng.normal(size=(states, 6)), rng.integers(0, 6, (steps, *batch))
    else:
        params, slices = rng.normal(size=(states, 2)), rng.normal(size=(steps, 2, *batch))
    params, slices = jnp.asarray(params), jnp.asarray(slices)

    def fused(initial, transition, params):
        return jnp.sum(chain.fused_log_evidence(initial, transition, emission, params, slices, present, kernel=kernel))

    def by_table(initial, transition, params):
        table = jax.vmap(emission, (None, 0))(params, slices)
        return jnp.sum(chain.step_by_step(initial, transition, table, jnp.asarray(present)))

    arguments = (jnp.asarray(initial), jnp.asarray(transition), params)
    got = jax.jit(jax.value_and_grad(fused, (0, 1, 2)))(*arguments)
    expected = jax.value_and_grad(by_table, (0, 1, 2))(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, expected)


@pytest.mark.slow
def test_second_derivatives_of_the_plain_path():
    """Gradients of counts: the Hessian agrees with finite differences of the fast kernel's own gradient."""
    initial, transition, emission, present = map(jnp.asarray, random_chain(6, 6, 2, (), gaps=False)[:3] + (True,))

    def plain(table):
        return chain.step_by_step(initial, transition, table)

    def fast(table):
        return chain.log_evidence(initial, transition, table, kernel="sequential")

    hessian = jax.jit(jax.jacfwd(jax.grad(plain)))(emission)
    gradient = jax.jit(jax.grad(fast))
    step = 1e-5
    for t, k in [(0, 0), (3, 1)]:
        up, down = (gradient(emission.at[t, k].add(s)) for s in (step, -step))
        np.testing.assert_allclose(hessian[:, :, t, k], (up - down) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("kernel", FAST[1:], ids=IDS[1:])
def test_an_impossible_sequence_has_evidence_minus_infinity_and_gradient_zero(kernel):
    initial, transition, emission, _ = random_chain(7, 12, 3, (2,))
    emission[5, :, 0] = -np.inf
    evidence, gradients = value_and_gradient(kernel, initial, transition, emission, None)
    assert evidence[0] == -np.inf and np.isfinite(evidence[1])
    for gradient in gradients:
        assert np.all(gradient[..., 0] == 0) and np.all(np.isfinite(gradient)) and np.any(gradient[..., 1] != 0)


@pytest.mark.parametrize("kernel", FAST[1:], ids=IDS[1:])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_underflow_is_noticed_and_repaired(kernel, dtype):
    """The state that explains the data cannot be reached: every scaled probability of the other one underflows."""
    initial = jnp.asarray([0, -np.inf], dtype)
    transition = jnp.asarray([[[0, -np.inf], [-np.inf, 0]]], dtype)
    emission = jnp.tile(jnp.asarray([-2000.0, 0], dtype), (12, 1))
    value, gradient = value_and_gradient(kernel, initial, transition, emission, None)
    assert value == -24000
    np.testing.assert_array_equal(gradient[0], [1, 0])
    np.testing.assert_allclose(gradient[1][0], [[11, 0], [0, 0]])
    np.testing.assert_allclose(gradient[2], np.tile([1, 0], (12, 1)))


def test_repair_is_per_member_under_vmap():
    initial = jnp.asarray([0, -np.inf])
    transition = jnp.asarray([[[0, -np.inf], [-np.inf, 0]]])
    emission = jnp.stack([jnp.tile(jnp.asarray([e, 0.0]), (12, 1)) for e in (-2000.0, -1.0)])
    value = jax.vmap(lambda table: chain.log_evidence(initial, transition, table, kernel="sequential"))(emission)
    np.testing.assert_allclose(value, [-24000, -12])


def test_sampled_paths_have_the_exact_frequencies():
    draws = 4000
    sample = jax.jit(jax.vmap(path_of, (0, None, None, None, None)))
    initial, transition, emission, present = random_chain(8, 5, 3, (), gaps=True, zeros=False)
    transition[0, 0, 1] = -np.inf
    arrays = (initial, transition, emission, present)
    (_, marginals, pairs, *_), _ = brute_force(*arrays)
    keys = jax.random.split(jax.random.key(0), draws)
    paths = np.asarray(sample(keys, *arrays))
    onehot = np.eye(3)[paths]
    for got, exact in [
        (onehot.mean(0), marginals),
        (np.einsum("nti,ntj->tij", onehot[:, :-1], onehot[:, 1:]) / draws, pairs),
    ]:
        error = np.sqrt(exact * (1 - exact) / draws)
        assert np.all(np.abs(got - exact) <= 5 * error + 1e-12)
        assert np.all(got[exact == 0] == 0)


def first_maximum(table, axis, time):
    del time
    return maximum_out(table, axis)


@functools.partial(jax.jit, static_argnums=0)
def marked_path(how, initial, transition, emission, present, weight):
    """Value and gradient of Viterbi ("best"), of its twin step by step ("twin"), or of a draw ("drawn")."""

    def total(*tables):
        if how == "twin":
            evidence = chain.step_by_step(*tables, present, first_maximum)
        else:
            evidence = chain.path_evidence(*tables, present, None if how == "best" else jax.random.key(0))
        return jnp.sum(weight * evidence), evidence

    (_, evidence), gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(initial, transition, emission)
    return evidence, gradient


@settings(max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
@given(chains())
def test_the_gradient_of_a_path_evidence_marks_the_path(arrays):
    """The best path: against enumeration and the twin. A draw: its marks are one path."""
    initial, transition, emission, present = map(jnp.asarray, arrays)
    steps, states, *batch = emission.shape
    (evidence, _, _, _, best), _ = brute_force(*arrays)
    weight = jnp.asarray(np.where(np.isfinite(evidence), 1.0 + np.arange(evidence.size).reshape(evidence.shape), 0))
    tables = (initial, transition, emission, present, weight)
    value, gradient = marked_path("best", *tables)
    np.testing.assert_allclose(value, best, rtol=1e-12)
    twin_value, twin = marked_path("twin", *tables)
    np.testing.assert_allclose(twin_value, best, rtol=1e-12)
    for mine, theirs in zip(gradient, twin, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    drawn_value, drawn = marked_path("drawn", *tables)
    np.testing.assert_allclose(drawn_value, evidence, rtol=1e-12)
    path = np.asarray(path_of(jax.random.key(0), *tables[:4]))
    visits = np.moveaxis(np.eye(states)[path], -1, 1) * np.asarray(weight)
    np.testing.assert_array_equal(drawn[2], np.where(np.asarray(present)[:, None], visits, 0))
    np.testing.assert_array_equal(drawn[0], visits[0])
    pairs = np.einsum("ti...,tj...->tij...", np.moveaxis(np.eye(states)[path], -1, 1)[:-1], np.asarray(drawn[2])[1:])
    for axis, size in enumerate(transition.shape):
        if size == 1:
            pairs = pairs.sum(axis, keepdims=True)
    np.testing.assert_array_equal(drawn[1], pairs)


def test_batched_paths_have_the_exact_frequencies():
    initial, transition, emission, _ = random_chain(9, 4, 2, (), varies=True)
    (_, marginals, *_), _ = brute_force(initial, transition, emission, None)
    wide = np.broadcast_to(emission[:, :, None], (4, 2, 4000))
    paths = path_of(jax.random.key(1), initial[:, None], transition[..., None], wide)
    frequencies = np.eye(2)[np.asarray(paths)].mean(1)
    assert np.all(np.abs(frequencies - marginals) <= 5 * np.sqrt(marginals * (1 - marginals) / 4000))


def left_right(dtype, steps, states=3):
    """A left-right chain whose last state absorbs, with data that walk through all states."""
    rng = np.random.default_rng(10)
    initial = np.where(np.arange(states) == 0, 0.0, -np.inf)
    leave = 3 / steps
    probabilities = np.diag(np.full(states, 1 - leave)) + np.diag(np.full(states - 1, leave), 1)
    probabilities[-1, -1] = 1
    with np.errstate(divide="ignore"):
        transition = np.log(probabilities)[None]
    true_state = np.minimum(np.arange(steps) * states // steps, states - 1)
    data = true_state + rng.normal(size=steps)
    emission = -0.5 * (data[:, None] - np.arange(states)) ** 2
    return [jnp.asarray(array, dtype) for array in (initial, transition, emission)]


@pytest.mark.parametrize("kernel", ["sequential", "blocked"])
def test_a_million_steps_of_a_left_right_chain(kernel):
    """Finite, structural zeros exact, float32 within 2 nats of float64."""
    values = {}
    for dtype in ("float64", "float32"):
        tables = left_right(dtype, 1_000_000)
        values[dtype], gradient = value_and_gradient(kernel, *tables, None)
        assert all(bool(jnp.all(jnp.isfinite(array))) for array in gradient)
        counts = np.asarray(gradient[1][0], np.float64)
        assert np.all(counts[np.exp(tables[1][0]) == 0] == 0)
        np.testing.assert_allclose(counts.sum(), 999_999, rtol=1e-4)
        assert np.all(gradient[2][0, 1:] == 0)
        np.testing.assert_allclose(gradient[2].sum(1), 1, rtol=1e-3 if dtype == "float32" else 1e-10)
    assert abs(float(values["float32"]) - float(values["float64"])) < 2


def test_hmmlearn_agrees_on_a_long_chain():
    hmm = pytest.importorskip("hmmlearn.hmm")
    rng = np.random.default_rng(11)
    steps, states = 5000, 4
    model = hmm.GaussianHMM(states, "diag", init_params="", implementation="log")
    model.startprob_ = rng.dirichlet(np.ones(states))
    model.transmat_ = 0.2 * rng.dirichlet(np.ones(states), states) + 0.8 * np.eye(states)
    model.means_ = rng.normal(size=(states, 1)) * 2
    model.covars_ = rng.uniform(0.5, 1.5, (states, 1))
    data = rng.normal(size=(steps, 1)) * 2
    score, marginals = model.score_samples(data)
    _, path = model.decode(data)
    emission = -0.5 * (
        np.log(2 * np.pi * model.covars_[:, 0, 0]) + (data - model.means_.T) ** 2 / model.covars_[:, 0, 0]
    )
    arrays = (np.log(model.startprob_), np.log(model.transmat_)[None], emission, None)
    for kernel in ("plain", "sequential", Kernel("blocked", 30, 16), "associative"):
        value, gradient = value_and_gradient(kernel, *arrays)
        np.testing.assert_allclose(value, score, rtol=1e-8)
        np.testing.assert_allclose(gradient[2], marginals, atol=1e-8)
    np.testing.assert_array_equal(path_of(None, *arrays), path)


@pytest.mark.parametrize("kernel", FAST[:2], ids=IDS[:2])
def test_constant_transitions_are_never_expanded_over_time(kernel):
    steps, states = 20_000, 24
    shapes = [jax.ShapeDtypeStruct(s, jnp.float64) for s in [(states,), (1, states, states), (steps, states), ()]]
    program = evidence_and_gradient.lower(kernel, *shapes[:3], None, shapes[3]).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.5 * steps * states**2 * 8


def test_the_choice_says_what_it_is():
    assert chain.choose_kernel(1_000_000, 3, 1, "float64", "cpu").name == "blocked"
    assert chain.choose_kernel(1_000_000, 3, 1, "float64", "cpu", transition_varies=True).name == "sequential"
    assert chain.choose_kernel(100_000, 32, 1, "float64", "cpu").name == "sequential"
    assert chain.choose_kernel(100_000, 5, 1, "float32", "gpu").name == "associative"
    assert chain.choose_kernel(100, 10, 100_000, "float32", "gpu").name == "sequential"
    assert str(Kernel("blocked", 100, 128)) == "two-level forward-backward, 128 blocks of 100 steps at a time"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(initial=np.zeros(3)), "log_initial of shape"),
        (dict(transition=np.zeros((3, 2, 2))), "log_transition of shape"),
        (dict(present=np.ones(4, bool)), "present of shape"),
        (dict(kernel="fast"), "kernel to be one of"),
    ],
    ids=["initial", "transition", "present", "kernel"],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    given = dict(initial=np.zeros(2), transition=np.zeros((1, 2, 2)), present=None, kernel=None) | change
    with pytest.raises(ValueError, match=message):
        chain.log_evidence(
            given["initial"], given["transition"], jnp.zeros((5, 2)), given["present"], kernel=given["kernel"]
        )
