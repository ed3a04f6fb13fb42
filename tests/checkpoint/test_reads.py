"""What functions read beside their arguments: every way in which it can change shows, and what did not change is equal."""

import collections
import dataclasses
import enum
import functools
import pathlib
import random
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from emppl.checkpoint.reads import first_change, lasting, read_by

SCALE = 1.0
ARRAY = np.array([1.0, 2.0])
SETTINGS = {"center": [0.0, {"depth": 1}], "names": {"a", "b"}}
FLAGS = types.SimpleNamespace(robust=True)
HELPERS = types.ModuleType("helpers_of_the_user")
HELPERS.width = 3.0
QUEUE = collections.deque([1, 2])


class Kind(enum.Enum):
    NORMAL = 1
    LAPLACE = 2


KIND = Kind.NORMAL


class Base:
    offset = 0.0

    @property
    def shifted(self):
        return self.offset + SCALE

    @staticmethod
    def half(x):
        return x * FACTOR

    @functools.cached_property
    def twice(self):
        return 2 * FACTOR


FACTOR = 0.5


class Slotted:
    __slots__ = ("value",)


@dataclasses.dataclass
class Setup:
    level: float = 1.0
    table: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))


class Machine(Base):
    def __init__(self):
        self.setup, self.slotted = Setup(), Slotted()
        self.slotted.value = 1

    def __call__(self, x):
        return x * self.setup.level + self.shifted

    def model(self, x):
        return self(x)


def helper(x):
    return x * SCALE


def inner(x):
    def deeper():
        return [helper(x) for _ in range(2)]

    return deeper()


def reader(x, power=2):
    import helpers_of_the_user

    return (
        inner(x)
        + ARRAY
        + SETTINGS["center"][0]
        + FLAGS.robust
        + helpers_of_the_user.width
        + len(QUEUE)
        + (KIND is Kind.NORMAL)
    )


def of_module(x):
    return x * HELPERS.width


def put(module, name, value):
    def change():
        setattr(module, name, value)

    return change


ME = sys.modules[__name__]
CHANGES = {
    "a number": put(ME, "SCALE", 2.0),
    "the type of a number": put(ME, "SCALE", 1),
    "an array, in place": lambda: ARRAY.__setitem__(0, 5.0),
    "an array, another one": put(ME, "ARRAY", np.array([1.0, 3.0])),
    "an array of another type": put(ME, "ARRAY", np.array([1.0, 2.0], np.float32)),
    "an entry deep in a dictionary": lambda: SETTINGS["center"][1].update(depth=2),
    "a list": lambda: SETTINGS["center"].append(1),
    "a set": lambda: SETTINGS["names"].add("c"),
    "a namespace": put(FLAGS, "robust", False),
    "a module imported inside": put(HELPERS, "width", 4.0),
    "a queue": lambda: QUEUE.append(3),
    "a member of an enumeration": put(ME, "KIND", Kind.LAPLACE),
    "a function that is called": put(ME, "helper", lambda x: x - SCALE),
    "the default of an argument": put(reader, "__defaults__", (3,)),
    "an attribute of a function": put(reader, "K", 3),
}


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    sys.modules["helpers_of_the_user"] = HELPERS
    monkeypatch.setattr(ME, "SCALE", 1.0)
    monkeypatch.setattr(ME, "ARRAY", np.array([1.0, 2.0]))
    monkeypatch.setattr(ME, "SETTINGS", {"center": [0.0, {"depth": 1}], "names": {"a", "b"}})
    monkeypatch.setattr(ME, "QUEUE", collections.deque([1, 2]))
    monkeypatch.setattr(ME, "KIND", Kind.NORMAL)
    monkeypatch.setattr(ME, "helper", helper)
    monkeypatch.setattr(ME, "FACTOR", 0.5)
    monkeypatch.setattr(Base, "offset", 0.0)
    monkeypatch.setattr(FLAGS, "robust", True)
    monkeypatch.setattr(HELPERS, "width", 3.0)
    yield
    del sys.modules["helpers_of_the_user"]
    reader.__defaults__ = (2,)
    vars(reader).clear()


WRAPPED = {
    "itself": lambda: reader,
    "a partial of it": lambda: functools.partial(reader, power=3),
    "jitted": lambda: jax.jit(reader),
    "under a handler": lambda: numpyro.handlers.seed(reader, 0),
    "called in a closure": lambda: functools.wraps(reader)(lambda x: reader(x)),
    "in a dictionary": lambda: {"rules": [reader]},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", ["itself", "a partial of it"])
def test_a_change_of_what_is_read(change, way):
    root = WRAPPED[way]()
    before = read_by({"model": root})
    assert first_change(before, read_by({"model": root})) is None
    CHANGES[change]()
    assert first_change(before, read_by({"model": root})) is not None


@pytest.mark.parametrize("way", WRAPPED)
def test_whatever_is_around_a_function(way):
    root = WRAPPED[way]()
    before = read_by({"model": root})
    assert before == read_by({"model": root})
    CHANGES["an array, in place"]()
    assert "ARRAY" in first_change(before, read_by({"model": root}))


def test_a_global_module():
    before = read_by({"model": of_module})
    HELPERS.width = 7.0
    assert first_change(before, read_by({"model": of_module})) == "model > HELPERS.width"


OF_OBJECTS = {
    "an attribute": lambda machine: setattr(machine.setup, "level", 2.0),
    "an array in an attribute": lambda machine: machine.setup.table.__setitem__(0, 1.0),
    "a slot": lambda machine: setattr(machine.slotted, "value", 2),
    "an attribute of the base class": lambda machine: setattr(Base, "offset", 1.0),
    "a global that a property reads": lambda machine: setattr(ME, "SCALE", 3.0),
    "a global that a static method reads": lambda machine: setattr(ME, "FACTOR", 3.0),
    "a new attribute": lambda machine: setattr(machine, "extra", 1),
}


@pytest.mark.parametrize("change", OF_OBJECTS)
@pytest.mark.parametrize("bound", [True, False])
def test_objects_and_their_methods(change, bound):
    machine = Machine()
    root = machine.model if bound else machine
    before = read_by({"model": root})
    assert before == read_by({"model": machine.model if bound else machine})
    OF_OBJECTS[change](machine)
    assert first_change(before, read_by({"model": root})) is not None


def test_closures():
    def make(values, count):
        def model(x):
            return x + values + count

        def grow():
            nonlocal count
            count += 1

        return model, grow

    values = np.zeros(3)
    model, grow = make(values, 1)
    before = read_by({"model": model})
    grow()
    assert first_change(before, read_by({"model": model})) == "model > count"
    before = read_by({"model": model})
    values[1] = 2
    assert first_change(before, read_by({"model": model})) == "model > values"


def test_arrays_of_jax_are_read_once():
    big = jnp.zeros((1000, 1000)) + 1
    before = read_by({"model": lambda x: x + big})
    big = big.at[0, 0].set(2.0)
    after = read_by({"model": lambda x: x + big})
    assert before["model > big"] != after["model > big"]
    start = time.perf_counter()
    for _ in range(20):
        read_by({"model": lambda x: x + big})
    assert (time.perf_counter() - start) / 20 < 2e-3  # hashing eight megabytes takes longer


def test_values_of_a_trace_are_told_apart():
    seen = []

    def outer(scale):
        seen.append(read_by({"model": lambda x: x * scale}))
        return scale

    for _ in range(2):
        jax.make_jaxpr(lambda scale: outer(scale))(1.0)
    assert seen[0]["model > scale"] == seen[0]["model > scale"] != seen[1]["model > scale"]


@pytest.mark.parametrize(
    "pair",
    [
        (optax.adam(1e-2), optax.adam(1e-3)),
        (optax.adam(1e-2), optax.adam(1e-2, b1=0.8)),
        (optax.adam(optax.cosine_decay_schedule(1e-2, 10)), optax.adam(optax.cosine_decay_schedule(1e-2, 20))),
        (dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0)),
        (np.exp, np.log),
        (jnp.exp, jnp.log),
        (pathlib.Path("a"), pathlib.Path("b")),
        (Kind.NORMAL, Kind.LAPLACE),
        (list(range(100)), [*range(99), 7]),
        (0.0, -0.0),
        (True, 1),
        (np.array([{"a": 1}], object), np.array([{"a": 2}], object)),
        (np.array(["2020-01-01"], "datetime64[D]"), np.array(["2020-01-02"], "datetime64[D]")),
    ],
)
def test_what_differs(pair):
    def holding(value):
        return lambda x: (x, value)

    left, right, again = (read_by({"model": holding(value)}) for value in (*pair, pair[0]))
    assert left == again and left != right


def test_a_frame_of_data():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1.0, 2.0], "group": ["a", "b"]})
    before = read_by({"model": lambda: frame["x"]})
    assert before == read_by({"model": lambda: frame["x"]}) | {"model": before["model"]}
    for change in (lambda: frame.__setitem__("x", [1.0, 3.0]), lambda: setattr(frame, "columns", ["y", "group"])):
        before = read_by({"model": frame})
        change()
        assert first_change(before, read_by({"model": frame})) is not None


class Nasty:
    def __getattr__(self, name):
        raise RuntimeError("leave me alone")

    def __repr__(self):
        raise RuntimeError("leave me alone")


class Unreadable:
    def __init__(self):
        self.scale = 1.0

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("not an array")


def test_objects_that_do_not_let_themselves_be_looked_at():
    nasty, unreadable = Nasty(), Unreadable()
    keyed = {Nasty(): 1, "count": 2}

    def model(x):
        return nasty, unreadable, keyed, SCALE

    before = read_by({"model": model})
    assert before == read_by({"model": model})
    put(ME, "SCALE", 2.0)()
    assert first_change(before, read_by({"model": model})) == "model > SCALE"
    before = read_by({"model": model})
    unreadable.scale = 2.0
    assert first_change(before, read_by({"model": model})) == "model > unreadable > scale"


def test_circles_end():
    circle = {"self": None}
    circle["self"] = circle

    def model(x):
        return model(circle)

    assert read_by({"model": model}) == read_by({"model": model})


def test_libraries_are_not_walked():
    def model(x):
        generator = random.Random(0)
        return numpyro.sample("x", dist.Normal(0, 1)), jnp.sin(x), np.cos(x), generator

    assert len(read_by({"model": model})) == 1


def test_it_is_cheap():
    before = read_by({"model": reader})
    start = time.perf_counter()
    for _ in range(50):
        read_by({"model": reader})
    assert (time.perf_counter() - start) / 50 < 2e-3, len(before)  # a tenth of this when nobody else computes


SCRIPT = """
import sys
sys.path[:0] = {path!r}
import types
import numpy as np, optax
from emppl.checkpoint.reads import lasting, read_by
settings = {{"names": {{"a", "b", "c"}}, "array": np.arange(3.0), "kinds": {{1.5, "x", (2, 3)}}}}
def model(x):
    return settings, optax.adam(1e-2)
print(lasting(read_by({{"model": model}})))
"""


def test_numbers_and_arrays_are_the_same_in_another_process():
    script = SCRIPT.format(path=[str(pathlib.Path(__file__).parents[2])])
    printed = [
        subprocess.run([sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        for seed in ("1", "11")
    ]
    assert printed[0].returncode == 0, printed[0].stderr
    assert printed[0].stdout == printed[1].stdout and "array" in printed[0].stdout
    assert all(isinstance(part, str) for part in lasting(read_by({"model": reader})).values())
