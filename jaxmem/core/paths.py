"""Paths of leaves, which read the same in linen, NNX and plain trees; leaves chosen by path."""

import collections
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from .arguments import FUNCTION, TREE, takes
from .lazy import is_lazy
from .leaf import is_array, is_encoded, is_random_key


@takes(tree=TREE)
def paths(tree: Any) -> list[str]:
    """The path of each leaf, such as `layers/attn/q/kernel`; an encoded leaf is one leaf.

    A path has neither the collection `params`, which linen puts first, nor the `value` of an NNX
    variable. No two leaves have one path: where two would, `params` stays, and a slash inside a
    key is written `~1`, as in a JSON Pointer.

    Raises:
        ValueError: two leaves still have one path, because their keys read the same.

    Example:
        >>> paths({"params": {"dense": {"kernel": 1.0, "bias": 2.0}}})
        ['dense/bias', 'dense/kernel']
        >>> paths({"a": {"b": 1.0}, "a/b": 2.0})
        ['a/b', 'a~1b']
    """
    return leaf_paths(tree)


def leaf_paths(tree: Any) -> list[str]:
    """`paths`, also of a leaf that is no tree, such as an int: its path is empty.

    Example:
        >>> leaf_paths(3)
        ['']
    """
    keys = _leaf_keys(tree)
    names = ["/".join(_without_collection(key)) for key in keys]
    count = collections.Counter(names)
    if len(count) < len(names):
        full = ("/".join(part.replace("/", "~1") for part in key) for key in keys)
        names = [name if count[name] == 1 else longer for name, longer in zip(names, full)]
        repeated = [name for name, times in collections.Counter(names).items() if times > 1]
        if repeated:
            both = [key for key, name in zip(keys, names) if name == repeated[0]][:2]
            raise ValueError(
                f"two leaves have the path {repeated[0]!r}: {both[0]} and {both[1]}; rename one"
            )
    return names


def path_of_layers(path: str, start: int, stop: int) -> str:
    """The path, in a plan, of the layers [start, stop) of a stacked leaf.

    Example:
        >>> path_of_layers("layers/mlp/up/kernel", 0, 8)
        'layers[0:8]/mlp/up/kernel'
    """
    first, *rest = path.split("/")
    return "/".join([f"{first}[{start}:{stop}]", *rest])


def is_whole(x: Any) -> bool:
    """Whether `x` is one weight: encoded, or not read yet."""
    return is_encoded(x) or is_lazy(x)


def check_same_tree(names: Collection[str], **mappings: Mapping[str, Any] | None) -> None:
    """Refuses a mapping from paths that names none of the paths of a tree: it is of another tree.

    Raises:
        ValueError: the message has the name of the argument, and a path of each side.

    Example:
        >>> check_same_tree(["layers/up/kernel"], uses={"up/kernel": []})
        Traceback (most recent call last):
        ValueError: uses names 'up/kernel', and the params have 'layers/up/kernel': of another tree?
    """
    for argument, by_path in mappings.items():
        if by_path and names and not any(path in by_path for path in names):
            raise ValueError(
                f"{argument} names {next(iter(by_path))!r}, and the params have "
                f"{next(iter(names))!r}: of another tree?"
            )


def match(names: list[str], rules: dict[str, Any]) -> dict[str, Any]:
    """{name: value}, with the value of the first rule whose regex matches the whole name.

    A rule that is the name of a leaf matches this leaf only, even if it has letters of a regex.

    Raises:
        ValueError: a rule matches no name (a misspelt path is the usual reason), or is no regex.
        TypeError: a rule is no string.

    Example:
        >>> match(["mlp/kernel", "mlp/bias"], {".*kernel": 4})
        {'mlp/kernel': 4}
        >>> match(["w[0]", "w0"], {"w[0]": 4})
        {'w[0]': 4}
    """
    accepts = {rule: matcher(rule, names) for rule in rules}
    chosen = {}
    for name in names:
        for rule, value in rules.items():
            if accepts[rule](name):
                chosen[name] = value
                break
    for rule in rules:
        if not any(map(accepts[rule], names)):
            raise ValueError(f"rule {rule!r} matches no leaf; leaves look like {names[:3]}")
    return chosen


def matcher(rule: str, names: list[str]) -> Callable[[str], bool]:
    """Whether a rule matches a name: as that name if it is one of `names`, else as a regex.

    Raises:
        ValueError: the rule is neither a name nor a regex.
        TypeError: the rule is no string.

    Example:
        >>> matcher("w.0", ["w.0", "w10"])("w10"), matcher("w.0", ["w10"])("w10")
        (False, True)
    """
    if not isinstance(rule, str):
        raise TypeError(f"a rule is {rule!r}, expected a regex of paths, as a string")
    if rule in names:
        return rule.__eq__
    try:
        regex = re.compile(rule)
    except re.error as error:
        raise ValueError(f"rule {rule!r} is no leaf's path and no regex: {error}") from error
    return lambda name: regex.fullmatch(name) is not None


@takes(tree=TREE, keep=FUNCTION)
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

    Raises:
        ValueError: the trees have another structure.

    Example:
        >>> merge(*split({"a": 1, "b": 2}, lambda path: path == "a"))
        {'a': 1, 'b': 2}
    """
    is_hole = lambda x: x is None or is_whole(x)
    if jax.tree.structure(first, is_leaf=is_hole) != jax.tree.structure(second, is_leaf=is_hole):
        raise ValueError(
            "merge takes the two trees that split made; first and second differ in structure"
        )
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=is_hole)


def arrays_only(fn: Callable, params: Any) -> tuple[Callable, Any]:
    """(a function of the arrays of `params`, these arrays): `fn` with the other leaves put back.

    The tree of arrays has None where `params` has ints, strings, functions or random keys, which
    no gradient is of and `jit` does not take. They reach `fn` as they are.

    Example:
        >>> import numpy as np
        >>> params = {"w": np.ones(2), "scale": 3}
        >>> fn, arrays = arrays_only(lambda p, x: x * p["scale"], params)
        >>> fn(arrays, 5), arrays["scale"]
        (15, None)
    """
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)
    is_traced = lambda x: is_array(x) and (is_shape(x) or not is_random_key(x))
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    if all(map(is_traced, leaves)):
        return fn, params
    arrays = tree.unflatten([x if is_traced(x) else None for x in leaves])
    others = tree.unflatten([None if is_traced(x) else x for x in leaves])
    return lambda arrays, *args: fn(merge(arrays, others), *args), arrays


def _leaf_keys(tree: Any) -> list[tuple[str, ...]]:
    """The keys that lead to each leaf, as strings, without the `value` of an NNX variable."""
    # A tree has variables only where flax.nnx is loaded; to import it takes .3 s.
    variable = getattr(sys.modules.get("flax.nnx"), "Variable", ())
    is_variable = lambda x: isinstance(x, variable)
    flatten = jax.tree_util.tree_flatten_with_path
    keys = []
    for key, leaf in flatten(tree, is_leaf=lambda x: is_whole(x) or is_variable(x))[0]:
        if is_variable(leaf):
            keys += [(*key, *inner[1:]) for inner, _ in flatten(leaf, is_leaf=is_whole)[0]]
        else:
            keys.append(key)
    return [tuple(jax.tree_util.keystr((k,), simple=True) for k in key) for key in keys]


def _without_collection(key: tuple[str, ...]) -> tuple[str, ...]:
    """The keys without the collection `params` at their head; a leaf's last key stays."""
    return key[1:] if key[:1] == ("params",) and len(key) > 1 else key
