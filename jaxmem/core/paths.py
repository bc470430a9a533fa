"""select: leaves by path. A path reads the same in linen, NNX and plain trees."""

import re
from collections.abc import Callable
from typing import Any

import jax

from .lazy import is_lazy
from .leaf import is_encoded


def paths(tree: Any) -> list[str]:
    """The path of each leaf, such as `layers/attn/q/kernel`; an encoded leaf is one leaf.

    The collection that linen puts first (`params`) and the `value` that NNX puts last are dropped.

    Example:
        >>> paths({"params": {"dense": {"kernel": 1.0, "bias": 2.0}}})
        ['dense/bias', 'dense/kernel']
    """
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_whole)
    return [_name(key) for key, _ in keyed]


def is_whole(x: Any) -> bool:
    """Whether `x` is one weight: encoded, or still to be read."""
    return is_encoded(x) or is_lazy(x)


def match(names: list[str], rules: dict[str, Any]) -> dict[str, Any]:
    """{name: value} by the first rule whose regex matches the whole name.

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
    """(the leaves whose path `keep` accepts, the others); None where the other part has a leaf.

    The first part is what an optimizer sees, the second is frozen. Undone by `merge`.

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
    """The tree that `split` took apart.

    Example:
        >>> merge(*split({"a": 1, "b": 2}, lambda path: path == "a"))
        {'a': 1, 'b': 2}
    """
    is_hole = lambda x: x is None or is_whole(x)
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=is_hole)


def _name(key) -> str:
    parts = [jax.tree_util.keystr((k,), simple=True) for k in key]
    parts = parts[1:] if parts[:1] == ["params"] else parts
    return "/".join(parts[:-1] if parts[-1:] == ["value"] else parts)
