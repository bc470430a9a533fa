"""takes: the kind of each argument of a public function, checked before anything else runs."""

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import jax

F = TypeVar("F", bound=Callable)


class Kind(NamedTuple):
    """What an argument must be.

    Example:
        >>> TREE.accepts({"w": 3}), TREE.accepts("model.safetensors"), BYTES.accepts(-1)
        (True, False, False)
    """

    expected: str  # in words, for the message
    accepts: Callable[[Any], bool]


def _is_tree_or_none(x: Any) -> bool:
    """Whether `x` may hold arrays, or is one: a bare int, string or function is no tree."""
    is_array = hasattr(x, "shape") and hasattr(x, "dtype")
    return is_array or not jax.tree_util.all_leaves([x])


def _is_tree(x: Any) -> bool:
    """Whether `x` may hold arrays, or is one; None is no tree."""
    return x is not None and _is_tree_or_none(x)


def _is_count(x: Any) -> bool:
    """Whether `x` is a number of bytes. 1e9 is one too."""
    return isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) and x >= 0


TREE = Kind("a tree of arrays, such as a dict of them", _is_tree)
OPTIONAL_TREE = Kind(TREE.expected, _is_tree_or_none)
FUNCTION = Kind("a function", callable)
MAPPING = Kind("a mapping, such as a dict", lambda x: isinstance(x, Mapping))
OPTIONAL_MAPPING = Kind(
    "a mapping from paths, or None", lambda x: x is None or isinstance(x, Mapping)
)
BATCHES = Kind(
    "an iterable of tuples, such as [(ids,)]",
    lambda x: isinstance(x, Iterable) and not isinstance(x, str | bytes | Mapping),
)
BYTES = Kind("a number of bytes of at least 0", _is_count)
INTEGER = Kind("an int", lambda x: isinstance(x, Integral) and not isinstance(x, bool))
NUMBER = Kind("a number", lambda x: isinstance(x, Real) and not isinstance(x, bool))
REGEX = Kind("a regex of paths, as a string", lambda x: isinstance(x, str))
NAMES = Kind(
    "a collection of names", lambda x: isinstance(x, Collection) and not isinstance(x, str | bytes)
)
SPECS = Kind(
    "a mapping from regexes to PartitionSpec",
    lambda x: (
        isinstance(x, Mapping)
        and all(isinstance(spec, jax.sharding.PartitionSpec) for spec in x.values())
    ),
)
SHARDINGS = Kind(
    "the shardings of a tree, from jm.shardings",
    lambda x: (
        bool(jax.tree.leaves(x))
        and all(isinstance(s, jax.sharding.Sharding) for s in jax.tree.leaves(x))
    ),
)
MESH = Kind(
    "a mesh, such as jm.mesh(fsdp=8)",
    lambda x: isinstance(x, jax.sharding.Mesh | jax.sharding.AbstractMesh),
)


def takes(**kinds: Kind) -> Callable[[F], F]:
    """A decorator that refuses arguments of another kind: {name of the argument: its kind}.

    The decorated function raises TypeError, whose message has the name of the function and of the
    argument, the value and what was expected.

    Example:
        >>> @takes(tree=TREE)
        ... def leaves(tree):
        ...     return len(jax.tree.leaves(tree))
        >>> leaves({"a": 1, "b": 2})
        2
        >>> leaves("model.gguf")
        Traceback (most recent call last):
        TypeError: leaves: tree is 'model.gguf', expected a tree of arrays, such as a dict of them
    """

    def decorate(fn: F) -> F:
        parameters = inspect.signature(fn).parameters
        place = {name: i for i, name in enumerate(parameters)}
        default = {name: parameters[name].default for name in kinds}

        @functools.wraps(fn)
        def checked(*args, **kwargs):
            for name, kind in kinds.items():
                i = place[name]
                value = args[i] if i < len(args) else kwargs.get(name, default[name])
                if value is inspect.Parameter.empty:
                    break  # a missing argument: the call itself says so
                if value is not default[name] and not kind.accepts(value):
                    text = repr(value)
                    text = text if len(text) <= 60 else f"a {type(value).__name__}"
                    raise TypeError(f"{fn.__name__}: {name} is {text}, expected {kind.expected}")
            return fn(*args, **kwargs)

        return checked

    return decorate
