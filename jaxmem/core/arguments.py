"""takes: the kind of each argument of a public function, checked before anything else runs."""

import dataclasses
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral, Number, Real
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable)
MOST_LEVELS = 10**6  # more are not counted: the tree may hold itself


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


def _is_row(x: Any, kind: type) -> bool:
    """Whether `x` is an array or a sequence (n,) of numbers of a kind; an empty one is."""
    if isinstance(x, str) or not (isinstance(x, Sequence) or hasattr(x, "dtype")):
        return False
    row = np.asarray(x)
    return row.ndim == 1 and (not row.size or np.issubdtype(row.dtype, kind))


def _is_float_type_or_none(x: Any) -> bool:
    """Whether `x` names a type of floats, or is None. Arrays are no types, though NumPy has one."""
    if x is None or hasattr(x, "shape"):
        return x is None
    try:
        return jnp.issubdtype(jnp.dtype(x), jnp.floating)
    except TypeError:
        return False


def _is_key(x: Any) -> bool:
    """Whether `x` is a key of jax.random, typed or raw."""
    if not hasattr(x, "dtype"):
        return False
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return not x.shape
    return x.dtype == jnp.uint32 and x.shape in ((2,), (4,))  # threefry's, rbg's


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
OPTIONAL_BYTES = Kind(f"{BYTES.expected}, or None", lambda x: x is None or _is_count(x))
INTEGER = Kind("an int", lambda x: isinstance(x, Integral) and not isinstance(x, bool))
BOOLEAN = Kind("a bool", lambda x: isinstance(x, bool | np.bool_))
NUMBER = Kind("a number", lambda x: isinstance(x, Real) and not isinstance(x, bool))
REGEX = Kind("a regex of paths, as a string", lambda x: isinstance(x, str))
NAMES = Kind(
    "a collection of names",
    lambda x: (
        isinstance(x, Collection)
        and not isinstance(x, str | bytes | Mapping)
        and all(isinstance(name, str) for name in x)
    ),
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
TEXT = Kind("a string", lambda x: isinstance(x, str))
ITERABLE = Kind(
    "an iterable, such as a list", lambda x: isinstance(x, Iterable) and not isinstance(x, str)
)
ARRAY = Kind("an array", lambda x: hasattr(x, "shape") or isinstance(x, Number))
PATH = Kind("a path", lambda x: isinstance(x, os.PathLike))
INTEGERS = Kind(
    "a tuple of ints",
    lambda x: isinstance(x, tuple | list) and all(map(INTEGER.accepts, x)),
)
ROW_OF_INTEGERS = Kind("integers (n,)", lambda x: _is_row(x, np.integer))
ROW_OF_NUMBERS = Kind("numbers (n,)", lambda x: _is_row(x, np.number))
ARGNUMS = Kind("an int or a tuple of ints", lambda x: INTEGER.accepts(x) or INTEGERS.accepts(x))
AT_LEAST_0 = Kind(
    "a number of at least 0",
    lambda x: isinstance(x, Real) and not isinstance(x, bool) and x >= 0,
)
POSITIVE = Kind("an int of at least 1", lambda x: INTEGER.accepts(x) and x >= 1)
FLOAT_TYPE = Kind("a type of floating-point numbers, or None", _is_float_type_or_none)
KEY = Kind("a key of jax.random", _is_key)
IDS = Kind(
    "token ids (rows, tokens)",
    lambda x: hasattr(x, "shape") and len(x.shape) == 2 and jnp.issubdtype(x.dtype, jnp.integer),
)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_ANNOTATION = {
    int: INTEGER,
    float: NUMBER,
    bool: BOOLEAN,
    str: TEXT,
    tuple: ITERABLE,
    dict: MAPPING,
    Mapping: MAPPING,
    Callable: FUNCTION,
    Iterable: ITERABLE,
    Collection: ITERABLE,
    Sequence: ITERABLE,
    os.PathLike: PATH,
    jax.Array: ARRAY,
    jax.sharding.Mesh: MESH,
    jax.sharding.AbstractMesh: MESH,
}


def kind_of(annotation: Any) -> Kind | None:
    """The kind that an annotation asks for; None where it does not tell, as `Any`.

    A `Literal` of strings asks for a string: its function itself refuses one that it does not know.

    Example:
        >>> kind_of(int | None).expected, kind_of(Any)
        ('an int or None', None)
        >>> kind_of(typing.Literal["gram", "diag"]).accepts(3)
        False
    """
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Literal:
        values = typing.get_args(annotation)
        is_text = all(isinstance(value, str) for value in values)
        return Kind(" or ".join(map(repr, values)), TEXT.accepts) if is_text else None
    if origin in (types.UnionType, typing.Union):
        parts = typing.get_args(annotation)
        kinds = [kind_of(part) for part in parts if part is not types.NoneType]
        if None in kinds:
            return None
        words = [kind.expected for kind in dict.fromkeys(kinds)]
        words += ["None"] if types.NoneType in parts else []
        accepts = lambda x: any(kind.accepts(x) for kind in kinds)
        optional = lambda x: x is None or accepts(x)
        return Kind(" or ".join(words), optional if types.NoneType in parts else accepts)
    if inspect.isclass(origin) and origin.__module__.split(".")[0] in ("jaxmem", "optax"):
        name = origin.__name__
        return Kind(f"a{'n' * (name[0] in 'AEIOU')} {name}", lambda x: isinstance(x, origin))
    try:
        return _BY_ANNOTATION.get(origin)
    except TypeError:  # an annotation without a hash
        return None


def shown(value: Any) -> str:
    """The value as a message shows it: the class alone where the text is long, as of an array.

    Example:
        >>> shown("int4"), shown(np.ones(2))
        ("'int4'", 'a ndarray')
    """
    text = repr(value)
    is_short = len(text) <= 60 and "\n" not in text and not hasattr(value, "shape")
    return text if is_short else f"a {type(value).__name__}"


def check_fields(value: Any, **kinds: Kind) -> None:
    """Refuses a field of another kind; for the `__post_init__` of a dataclass.

    `kind_of` reads the annotation of each field; `kinds` says what the fields that it names must
    be.

    Raises:
        TypeError: a field is of another kind.

    Example:
        >>> import jaxmem as jm
        >>> jm.LowRank("8")
        Traceback (most recent call last):
        TypeError: LowRank takes an int as its rank, got '8'
    """
    for field in dataclasses.fields(value):
        kind = kinds.get(field.name) or kind_of(field.type)
        member = getattr(value, field.name)
        if kind and not kind.accepts(member):
            raise TypeError(
                f"{type(value).__name__} takes {kind.expected} as its {field.name}, "
                f"got {shown(member)}"
            )


def takes(**kinds: Kind) -> Callable[[F], F]:
    """A decorator that refuses arguments of another kind than `kinds`, or the annotations, say.

    The decorated function raises TypeError, whose message has the name of the function and of the
    argument, the value and what was expected. It raises ValueError for a tree of more levels than
    Python's limit of calls, with both numbers.

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
        title = fn.__name__ if fn.__name__ != "__init__" else fn.__qualname__.split(".")[-2]
        parameters = {n: p for n, p in parameters.items() if p.kind in _NAMED}
        positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        checks = {n: kinds.get(n) or kind_of(p.annotation) for n, p in parameters.items()}

        @functools.wraps(fn)
        def checked(*args, **kwargs):
            arguments = {**dict(zip(positional, args)), **kwargs}
            for name, value in arguments.items():
                kind = checks.get(name)
                # After a walk that ran out of calls, no more of them are left (JAX, Python 3.11).
                if kind in (TREE, OPTIONAL_TREE) and levels(value) >= sys.getrecursionlimit():
                    raise ValueError(
                        f"{title}: {name} is a tree of {levels(value):,} levels, expected "
                        f"fewer than Python's limit of {sys.getrecursionlimit():,} calls"
                    )
                is_default = kind and value is parameters[name].default
                if kind and not is_default and not kind.accepts(value):
                    raise TypeError(f"{title}: {name} is {shown(value)}, expected {kind.expected}")
            return fn(*args, **kwargs)

        return checked

    return decorate


def levels(tree: Any) -> int:
    """How deeply dicts, lists and tuples are nested, at most `MOST_LEVELS`; counted without calls.

    Example:
        >>> levels({"layers": [{"w": 1}, {"w": 2}]}), levels(3)
        (3, 0)
    """
    deepest, parts = 0, [(tree, 0)]
    while parts and deepest < MOST_LEVELS:
        part, level = parts.pop()
        deepest = max(deepest, level)
        children = part.values() if isinstance(part, Mapping) else part
        if isinstance(children, list | tuple) or children is not part:
            parts += ((child, level + 1) for child in children)
    return deepest
