"""What a fit depends on, as hashes that are the same in every process.

A model is the expressions that its outputs are: every operation is hashed with its parameters and the hashes of what
goes into it. Names of variables and the order of equations play no role. A function of the user's, or an optimiser's,
is its code with what it reads beside its arguments (:mod:`emppl.checkpoint.reads`); lists, into which functions write,
are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from emppl.checkpoint.file import key_data
from emppl.checkpoint.reads import read_by
from emppl.jaxpr.walk import Computation
from emppl.model.options import Options
from emppl.parameters.constraints import constraint_name
from emppl.trace import Trace


def fit_identity(
    trace: Trace,
    data: Sequence,
    skeleton: Any,
    rng_key: jax.Array,
    start: Mapping[str, Any],
    memory: Any,
    options: Options,
    more: Mapping[str, Any],
) -> dict[str, str]:
    """What a fit depends on, by name in words; texts that begin with ``#`` are hashes.

    Args:
        skeleton: static arguments.
        start: starting values of all restarts.
        memory: shapes of what M-step rules keep (the state of an optimiser).
        options: those that shape the derivation.
        more: other options, by name.
    """
    functions = read_by({**dict(sorted(options.m_step.items())), "optimizer": options.optimizer}, lists=False)
    told = {
        **more,
        "estimate": options.estimate,
        "latents": dict(sorted(options.latents.items())),
        "fixed": {n: np.asarray(v).tolist() for n, v in sorted({**options.fixed, **options.held}.items())},
        "m_step": {n: getattr(f, "__qualname__", type(f).__name__) for n, f in sorted(options.m_step.items())},
        "optimizer": type(options.optimizer).__name__,
        "prior": options.prior,
    }
    hashes = {
        "the model": hashed(*_model(trace)),
        "the data": hashed(*map(_array, data)),
        "the static arguments of the model": hashed(_without_addresses(repr(skeleton))),
        "rng_key": hashed(_array(key_data(rng_key))),
        "the starting values (init_params)": hashed(*(p for n in sorted(start) for p in (n, _array(start[n])))),
        "what the functions in m_step= and optimizer= do": hashed(
            *(f"{path} {_code(part) if isinstance(part, types.CodeType) else part}" for path, part in functions.items())
        ),
        "the state of the optimisers": hashed(*_form(memory)),
        "the precision": str(jnp.result_type(float)),
    }
    return hashes | {name: _without_addresses(repr(value)) for name, value in told.items()}


def hashed(*parts: str) -> str:
    """One hash of some texts, marked as one."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode()).digest())
    return f"#{total.hexdigest()}"


# ------------------------------------------------------------------------------------------------------- the model


def _model(trace: Trace) -> Iterator[str]:
    """The model in words: sites, atoms and the expression of every output, in an order that is always the same."""
    for site in trace.sites.values():
        yield f"{dataclasses.replace(site, constraint=None)} {constraint_name(site.constraint)}"
        bounds = (leaf for leaf in jax.tree.leaves(site.constraint) if not isinstance(leaf, jax.core.Tracer))
        yield words(tuple(bounds))
    yield words({name: np.asarray(atoms) for name, atoms in trace.atoms.items()})
    inputs = [f"{number} {label}" for number, label in enumerate(trace.inputs)]
    outcomes = _Expressions().outcomes(trace.jaxpr, inputs)
    # NumPyro numbers the parts of a distribution in an order that varies from process to process.
    places = {path: path if path[1] != "distribution" else path[:2] for path in trace.outputs}
    yield from sorted(f"{places[path]} {outcomes[position]}" for path, position in trace.outputs.items())


class _Expressions:
    """Hashes of what jaxprs compute."""

    def __init__(self) -> None:
        self._functions: dict[int, str] = {}

    def outcomes(self, closed: Any, inputs: Sequence[str]) -> list[str]:
        """The hash of every output, from texts that say what the inputs are.

        Args:
            closed: a jaxpr, with its constants or without.
            inputs: one for each input.
        """
        computation = Computation(closed)
        known = {variable: _array(value) for variable, value in computation.constants.items()}
        for variable, text in zip(computation.inputs, inputs, strict=True):
            known[variable] = hashed(text, str(variable.aval))

        def told(atom: Any) -> str:
            if isinstance(atom, Literal):
                return f"{_array(atom.val)} {atom.aval}"
            return known.get(atom, f"a constant {atom.aval}")

        for equation in computation.equations:
            params = [f"{name}={words(equation.params[name], self.function_words)}" for name in sorted(equation.params)]
            whole = hashed(equation.name, *params, *map(told, equation.operands))
            for number, result in enumerate(equation.results):
                known[result] = hashed(whole, str(number), str(result.aval))
        return [told(atom) for atom in computation.outputs]

    def function_words(self, value: Any) -> str:
        """A jaxpr among the parameters of an operation, by what it computes; any other function by its name."""
        jaxpr = getattr(value, "jaxpr", value)
        if not hasattr(jaxpr, "eqns"):
            return str(getattr(value, "__name__", type(value).__name__))
        if id(jaxpr) not in self._functions:  # the trace keeps it alive
            self._functions[id(jaxpr)] = hashed(*self.outcomes(value, [str(n) for n in range(len(jaxpr.invars))]))
        return self._functions[id(jaxpr)]


# -------------------------------------------------------------------------------------------------- values, functions


def words(
    value: Any, function: Callable[[Any], str] = lambda value: str(getattr(value, "__name__", type(value).__name__))
) -> str:
    """A value in words that are the same in every process.

    Args:
        value: numbers, texts, arrays and functions, in containers.
        function: what to say of a function.
    """
    inside = functools.partial(words, function=function)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array(value)
    if isinstance(value, type | types.ModuleType):
        return f"{value.__name__}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{inside(key)}: {inside(entry)}' for key, entry in value.items()))}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inside, value)))}}}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(inside, value))})"
    if callable(value) or hasattr(value, "eqns") or hasattr(value, "jaxpr") or hasattr(value, "__name__"):
        return function(value)
    return _without_addresses(repr(value))


def _code(code: types.CodeType) -> str:
    """What a function does: its instructions, with the names and the constants in them."""
    constants = [_code(value) if isinstance(value, types.CodeType) else words(value) for value in code.co_consts]
    return hashed(code.co_name, code.co_code.hex(), words(code.co_names), *constants)


def _form(tree: Any) -> Iterator[str]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}"


def _array(array: Any) -> str:
    is_key = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    array = np.ascontiguousarray(key_data(array) if is_key else array)
    return f"{array.shape} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)
