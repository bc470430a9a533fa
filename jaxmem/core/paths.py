"""Paths of leaves, which read the same in linen, NNX and plain trees; leaves chosen by path."""

import re
from collections.abc import Callable
from typing import Any

import jax

from .lazy import is_lazy
from .leaf import is_encoded


def paths(tree: Any) -> list[str]:
    """The path of each leaf, such as `layers/attn/q/kernel`; an encoded leaf is one leaf.

    A path has neither the collection `params`, which linen puts first, nor `value`, which NNX puts
    last.

    Example:
        >>> paths({"params": {"dense": {"kernel": 1.0, "bias": 2.0}}})
        ['dense/bias', 'dense/kernel']
    """
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_whole)
    return [_name(key) for key, _ in keyed]


def is_whole(x: Any) -> bool:
    """Whether `x` is one weight: encoded, or not read yet."""
    return is_encoded(x) or is_lazy(x)


def match(names: list[str], rules: dict[str, Any]) -> dict[str, Any]:
    """{name: value}, with the value of the first rule whose regex matches the whole name.

    Raises:
        ValueError: a rule matches no name (a misspelt path is the usual reason).

    Example:
        >>> match(["mlp/kernel", "mlp/bias"], {".*kernel": 4})
        {'mlp/kernel': 4}
    """
    chosen = {}
    for name in names:
        for pattern, value in rules.items():
            if re.fullmatch(pattern, name):
                chosen[name] = value
                break
    for pattern in rules:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"rule {pattern!r} matches no leaf; leaves look like {names[:3]}")
    return chosen


def split(tree: Any, keep: Callable[[str], bool]) -> tuple[Any, Any]:
    """(the tree with the leaves whose path `keep` accepts, the tree with the others).

    Each tree has None where the other one has a leaf. An optimizer is given the first; the second
    is frozen. `merge` puts them together again.

    Example:
        >>> split({"a": 1, "b": 2}, lambda path: path == "a")
        ({'a': 1, 'b': None}, {'a': None, 'b': 2})
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_whole)
    mask = [bool(keep(name)) for name in paths(tree)]
    part = lambda wanted: treedef.unflatten(
        [x if m == wanted else None for x, m in zip(leaves, mask)]
    )
    return part(True), part(False)


def merge(first: Any, second: Any) -> Any:
    """The tree of which `split` made `first` and `second`.

    Example:
        >>> merge(*split({"a": 1, "b": 2}, lambda path: path == "a"))
        {'a': 1, 'b': 2}
    """
    is_hole = lambda x: x is None or is_whole(x)
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=is_hole)


def _name(key: tuple) -> str:
    """The path of a leaf, given its keys as `jax.tree_util` has them."""
    parts = [jax.tree_util.keystr((k,), simple=True) for k in key]
    parts = parts[1:] if parts[:1] == ["params"] else parts
    return "/".join(parts[:-1] if parts[-1:] == ["value"] else parts)
