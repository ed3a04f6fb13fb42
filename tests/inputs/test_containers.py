"""Arguments as people keep them: records, data frames, their columns, lists of numbers."""

import argparse
import collections
import dataclasses
import pickle
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import emppl
from tests.kit.fits import KEY, compiled_of
from tests.trace.test_known import GROUP, PARAMS, RIGHT, Y, means


@dataclasses.dataclass
class Data:
    group: Any
    y: Any
    groups: int = 3

    @property
    def size(self):
        return len(self.y)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    group: Any
    y: Any
    groups: int = 3


@dataclasses.dataclass(eq=False)
class Own(Data):
    pass


Named = collections.namedtuple("Named", "group y groups")
RECORDS = [
    Data(GROUP, Y),
    Frozen(GROUP, Y),
    Own(GROUP, Y),
    Named(GROUP, Y, 3),
    argparse.Namespace(group=GROUP, y=Y, groups=3),
    types.SimpleNamespace(group=GROUP, y=Y, groups=3),
]


def frame():
    table = pd.DataFrame({"group": GROUP, "y": Y, "name": np.array(["ab", "cd", "ef"])[GROUP]})
    table["kind"] = table["name"].astype("category")
    table["whole"] = pd.array(GROUP, dtype="Int64")
    return table


def is_right(model, *args):
    return float(emppl.EM(model).log_likelihood(PARAMS, *args)) == pytest.approx(RIGHT, rel=1e-13)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_arrays_of_records_are_data(record):
    def model(data):
        assert type(data) is type(record) and getattr(data, "size", len(data.y)) == len(Y)
        means(data.group, data.y, data.groups)

    em = emppl.EM(model)
    assert float(em.log_likelihood(PARAMS, record)) == pytest.approx(RIGHT, rel=1e-13)
    assert em.plan(record).data == ()


def test_records_within_records():
    assert is_right(lambda all: means(all.group["now"], all.y, all.groups), Data({"now": GROUP}, Y))


FRAMES = {
    "values": lambda table: means(table["group"].values, table["y"].values, table["group"].nunique()),
    "attributes": lambda table: means(table.group.to_numpy(), table.y.to_numpy(), table.group.max() + 1),
    "codes": lambda table: means(table.kind.cat.codes.values, table.y.values, table.kind.nunique()),
    "labels": lambda table: means(np.unique(table["name"], return_inverse=True)[1], table.y.values, 3),
    "grouped": lambda table: means(table.groupby("name").ngroup().values, table.y.values, 3),
}


@pytest.mark.parametrize("how", FRAMES)
def test_data_frames(how):
    em, table = emppl.EM(FRAMES[how]), frame()
    assert float(em.log_likelihood(PARAMS, table)) == pytest.approx(RIGHT, rel=1e-13)
    first = compiled_of(em, table)[0]
    table.loc[0, "y"] += 1.0
    assert compiled_of(em, table)[0] is not first and compiled_of(em, frame())[0] is first
    assert em.plan(table).data[0].startswith("table is known by its values")


COLUMNS = {
    "numbers": (means, ("group", "y")),
    "categories": (means, ("kind", "y")),
    "nullable": (means, ("whole", "y")),
    "values": (lambda g, y, k: means(g.values, y.values, g.nunique()), ("group", "y")),
    "codes": (lambda g, y, k: means(g.cat.codes.values, y.values, len(g.cat.categories)), ("kind", "y")),
    "labels": (lambda g, y, k: means(np.unique(g, return_inverse=True)[1], y, k), ("name", "y")),
}


@pytest.mark.parametrize("how", COLUMNS)
def test_columns_of_data_frames(how):
    model, names = COLUMNS[how]
    table = frame()
    assert is_right(model, *(table[name] for name in names), 3)


def test_columns_are_data_unless_the_model_asks_more_of_them():
    table = frame()
    assert emppl.EM(means).plan(table.kind, table.y, 3).data == ()
    assert len(emppl.EM(COLUMNS["values"][0]).plan(table.group, table.y, 3).data) == 2


def test_a_result_keeps_the_columns_that_it_was_given():
    table = frame()
    result = emppl.EM(COLUMNS["values"][0]).run(KEY, table.group, table.y, 3)
    again = pickle.loads(pickle.dumps(emppl.EM(means).run(KEY, table.kind, table.y, 3)))
    np.testing.assert_allclose(again.standard_errors()["m"], result.standard_errors()["m"], rtol=1e-6)


def test_missing_categories_are_refused():
    table = frame()
    table.loc[2, "kind"] = np.nan
    with pytest.raises(emppl.DataError, match="'kind' of categories has missing ones.*add_categories"):
        emppl.EM(means).plan(table.kind, table.y, 3)
    column = table.kind
    column = column.cat.add_categories("missing").fillna("missing")
    emppl.EM(means).plan(column, table.y, 4)


class Polars:
    """A column as polars has it: categories with physical codes, no ``cat.codes``."""

    def __init__(self, values, kind=None):
        self.values, self.dtype, self.name = np.asarray(values), kind or np.asarray(values).dtype, "column"

    def to_numpy(self):
        return self.values

    def to_physical(self):
        return Polars(np.unique(self.values, return_inverse=True)[1])

    def __len__(self):
        return len(self.values)


def test_columns_of_other_libraries():
    assert is_right(means, Polars(GROUP), Polars(Y), 3)
    assert is_right(means, Polars(np.array(["a", "b", "c"])[GROUP], "Categorical"), Y, 3)


def test_lists_of_numbers_are_as_they_are():
    assert is_right(lambda group, y: means(jnp.array(group), y, len(set(group))), GROUP.tolist(), Y)


def test_labels_that_the_model_uses_as_numbers():
    labels = np.array(["a", "b", "c"])[GROUP]
    with pytest.raises(emppl.ModelError, match="holds no numbers.*return_inverse=True"):
        emppl.EM(means).plan(labels, Y, 3)
    assert is_right(means, np.unique(labels, return_inverse=True)[1], Y, 3)
