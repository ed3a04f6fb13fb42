"""Parameters that are trees of arrays, as the weights of a network are: each array is a parameter of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.tree_util import PyTreeDef, keystr


@dataclasses.dataclass(frozen=True)
class ParamTree:
    """The value of one ``numpyro.param`` that is no array.

    Attributes:
        names: of its arrays, as parameters: the name of the site, then the way to the array, ``net$params.layer.bias``.
        structure: what holds them together.
    """

    names: tuple[str, ...]
    structure: PyTreeDef

    @classmethod
    def of(cls, site: str, value: Any) -> ParamTree | None:
        """The tree of a value; None for a single array."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(value)
        if jax.tree_util.treedef_is_leaf(structure):
            return None
        return cls(tuple(f"{site}.{keystr(path, simple=True, separator='.')}" for path, _ in leaves), structure)

    def built(self, params: Mapping[str, Any]) -> Any:
        """The tree of the values of its arrays."""
        return jax.tree.unflatten(self.structure, [params[name] for name in self.names])


def as_declared(params: Mapping[str, Any], trees: Mapping[str, ParamTree]) -> dict[str, Any]:
    """Parameters by the names of the model's sites, arrays put together to trees, as NumPyro's handlers need them."""
    parts = {name for tree in trees.values() for name in tree.names}
    whole = {site: tree.built(params) for site, tree in trees.items() if set(tree.names) <= params.keys()}
    return {name: value for name, value in params.items() if name not in parts} | whole


def as_arrays(params: Mapping[str, Any], trees: Mapping[str, ParamTree]) -> dict[str, Any]:
    """The other way round: every tree among some parameters taken apart into its arrays."""
    arrays: dict[str, Any] = {}
    for name, value in params.items():
        same = name in trees and jax.tree.structure(value) == trees[name].structure
        arrays |= dict(zip(trees[name].names, jax.tree.leaves(value), strict=True)) if same else {name: value}
    return arrays
