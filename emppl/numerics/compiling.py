"""How XLA compiles: well for what takes the time of a fit, fast for what runs a few times."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

FEWER_PASSES = {"xla_cpu_use_fusion_emitters": False}
"""XLA's older code generator. On a chain its code is as fast (measured for 3 to 32 states), and compiling takes two
thirds of the time and 230 MB less. Mixtures and many chains side by side are up to 1.5 times slower with it."""

_FAST = {**FEWER_PASSES, "xla_cpu_parallel_codegen_split_count": 1, "xla_backend_optimization_level": 0}
"""Code several times slower, for a third of the wait (measured on whole fits of small data)."""


def known(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Options of XLA on this machine; None where this version does not know them all: they are internal, and vanish."""
    return dict(options) if jax.default_backend() == "cpu" and _is_known(tuple(options.items())) else None


def fast_options() -> dict[str, Any] | None:
    """Options under which XLA compiles fast: what runs a few times takes less time than compiling it well."""
    return known(_FAST) or known({"xla_backend_optimization_level": 0})


def jit_for_few_runs(function: Callable, is_small: bool = True, **options: Any) -> Callable:
    """``jax.jit`` that compiles fast; as ``jax.jit`` itself inside of any transformation of JAX.

    Args:
        function: what is compiled.
        is_small: whether a run takes less time than compiling well; otherwise this is ``jax.jit``.
        **options: those of ``jax.jit``.
    """
    well = jax.jit(function, **options)
    if not is_small:
        return well

    @functools.cache
    def fast() -> Callable:
        return jax.jit(function, compiler_options=fast_options(), **options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        # Only the outermost function of a compilation may say how it is compiled.
        return well(*args) if _is_transformed() or _has_tracer(args) else fast()(*args)

    return call


def _is_transformed() -> bool:
    """Whether JAX transforms what is called now: a function may close over values that no argument shows."""
    current = core.find_top_trace([])
    with core.take_current_trace():
        return core.find_top_trace([]) is not current


def _has_tracer(args: tuple) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))


@functools.cache
def _is_known(options: tuple[tuple[str, Any], ...]) -> bool:
    try:
        jax.jit(lambda: np.int32(0)).lower().compile(dict(options))
    except jax.errors.JaxRuntimeError:
        return False
    return True
