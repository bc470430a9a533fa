"""describe, rebuild: a tree as plain JSON and a list of arrays, and back, with no template.

Only data is described. The JSON names classes. A name stands for a frozen dataclass of jaxmem, one
of a few classes of flax and optax, or a class that the caller passes. So a file cannot cause the
import of another package, an unpickling or any other code to run. Of a function only its name is
kept: the caller gives it back.
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict


def describe(x: Any, arrays: list, at: str = "") -> Any:
    """The JSON of the tree `x`, in which numbers stand for the arrays appended to `arrays`.

    `at` is the path of `x` in the whole tree, for messages.

    Raises:
        TypeError: `x` holds something other than arrays, encoded leaves, containers and plain
            values; the message has the path.

    Example:
        >>> import numpy as np
        >>> arrays = []
        >>> describe({"w": np.ones(3), "steps": (1, None)}, arrays), len(arrays)
        ({'dict': [['w', {'array': 0}], ['steps', {'tuple': [1, None]}]]}, 1)
    """
    if x is None or type(x) in (bool, int, str):
        return x
    if type(x) in (list, tuple, dict):
        pairs = x.items() if type(x) is dict else enumerate(x)
        parts = [describe(v, arrays, f"{at}/{k}" if at else str(k)) for k, v in pairs]
        if type(x) is dict:
            return {"dict": [[describe(k, arrays, at), part] for k, part in zip(x, parts)]}
        return parts if type(x) is list else {"tuple": parts}
    if _is_random_key(x):
        data = describe(jax.random.key_data(x), arrays, at)
        return {"key": str(jax.random.key_impl(x)), "data": data}
    if isinstance(x, np.ndarray | jax.Array) and not isinstance(x, jax.core.Tracer):
        _check_numbers(x.dtype, at)
        arrays.append(x)
        return {"array": len(arrays) - 1}
    return _describe_value(x, at) or _describe_object(x, arrays, at)


def _is_random_key(x: Any) -> bool:
    """Whether `x` is a concrete array of typed random keys."""
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return is_key and not isinstance(x, jax.core.Tracer)


def _describe_value(x: Any, at: str) -> Any:
    """The JSON of a float, a dtype or a NumPy scalar; None if `x` is none of them."""
    if type(x) is float:
        return {"float": repr(x)}
    if isinstance(x, np.dtype) or (isinstance(x, type) and hasattr(x, "dtype")):  # jnp.float32
        return {"dtype": _check_numbers(np.dtype(x), at)}
    if isinstance(x, np.generic):
        return {"scalar": _check_numbers(x.dtype, at), "hex": x.tobytes().hex()}
    return None


def _describe_object(x: Any, arrays: list, at: str) -> Any:
    """The JSON of an object: its class by name, and its content or its fields."""
    named = {"class": class_name(type(x))}
    if type(x) in (FrozenDict, *_loaded_from_nnx("State")):
        content = x.unfreeze() if hasattr(x, "unfreeze") else x.raw_mapping
        return named | {"of": describe(content, arrays, at)}
    if isinstance(x, nn.Module):  # it holds no weights: linen keeps them apart
        return _describe_function(x)
    if dataclasses.is_dataclass(type(x)) and not _is_of_a_model(type(x)):
        fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if f.init}
    elif isinstance(x, tuple) and hasattr(x, "_asdict"):
        fields = x._asdict()
    elif isinstance(x, _loaded_from_nnx("Variable")):
        fields = {"value": x.get_value()} | x.get_metadata()
    elif callable(x):
        return _describe_function(x)
    else:
        raise TypeError(
            f"cannot save {at!r}: a {type(x).__name__}; expected arrays, encoded leaves, dicts, "
            "lists, tuples, None and plain values"
        )
    return named | {"fields": {k: describe(v, arrays, f"{at}/{k}") for k, v in fields.items()}}


def _describe_function(x: Any) -> Any:
    """The JSON of a function: its name, for messages."""
    name = getattr(x, "__qualname__", type(x).__qualname__)
    return {"function": f"{getattr(x, '__module__', None)}.{name}"}


def rebuild(
    node: Any,
    arrays: list,
    classes: dict[str, type],
    functions: Mapping[str, Any] = MappingProxyType({}),
    at: str = "",
) -> Any:
    """The tree whose JSON `describe` returned, with `arrays` in the place of the arrays.

    `functions` has the values of paths at which the tree held functions; those used are removed.

    Raises:
        ValueError: the JSON names a class that is not in `classes`, or that does not take these
            fields, or a function that is not in `functions`; the message has the path.
    """
    if at in functions:
        return functions.pop(at)
    part_of = lambda part, at: rebuild(part, arrays, classes, functions, at)
    again = lambda part, key: part_of(part, f"{at}/{key}" if at else str(key))
    match node:
        case list(items):
            node = [again(v, i) for i, v in enumerate(items)]
        case {"tuple": items}:
            node = tuple(again(v, i) for i, v in enumerate(items))
        case {"dict": items}:
            keys = [rebuild(k, arrays, classes) for k, _ in items]
            node = {k: again(v, k) for k, (_, v) in zip(keys, items)}
        case {"array": number}:
            node = arrays[number]
        case {"key": name, "data": data}:
            node = part_of(data, at)
            if isinstance(node, jax.Array):  # no shape, from which shardings are made
                node = jax.random.wrap_key_data(node, impl=name)
        case {"class": name, "of": content}:
            node = _class(name, classes, at)(part_of(content, at))
        case {"class": name, "fields": fields}:
            cls = _class(name, classes, at)
            fields = {k: again(v, k) for k, v in fields.items()}
            try:
                node = cls(**fields)
            except TypeError as error:
                raise ValueError(f"it holds a {name} of other fields at {at!r}: {error}") from error
        case {}:
            node = _rebuild_value(node, at)
    return node


def _rebuild_value(node: dict, at: str) -> Any:
    """The value whose JSON `_describe_value` returned.

    Raises:
        ValueError: the JSON is of a function, or of something that this jaxmem does not know.
    """
    match node:
        case {"float": text}:
            return float(text)
        case {"dtype": name}:
            return named_dtype(name)
        case {"scalar": name, "hex": text}:
            return np.frombuffer(bytes.fromhex(text), named_dtype(name))[0]
        case {"function": name}:
            raise ValueError(
                f"it holds the function {name} at {at!r}, which no file can keep; give it back: "
                f"load(path, functions={{{at!r}: ...}})"
            )
    raise ValueError(f"its manifest holds {list(node)}, which this jaxmem does not know")


def _class(name: str, classes: dict[str, type], at: str) -> type:
    """The class of this name.

    Raises:
        ValueError: `classes` has none.
    """
    package = name.split(".", maxsplit=1)[0]
    if name not in classes and package == "flax":
        classes = _by_name(_flax_classes())
    elif name not in classes and package == "optax":
        classes = _by_name(_optax_states())
    elif name not in classes and package == "jaxmem":
        importlib.import_module("jaxmem.names")  # all of the library
        classes = _own_classes(len(sys.modules))
    if name not in classes:
        raise ValueError(
            f"it holds a {name} at {at!r}, which is no class of this jaxmem; add yours to "
            "classes=[...]"
        )
    return classes[name]


def known_classes(classes: Iterable[type] = ()) -> dict[str, type]:
    """{name in a file: class}, for all classes that a file may name.

    They are jaxmem's frozen dataclasses, and `classes`. What takes time to import is looked for
    when a file names one: classes of flax, states of optax, and modules of jaxmem that are not
    imported yet.

    Raises:
        TypeError: one of `classes` is no dataclass, named tuple or `nnx.Variable`.
        ValueError: two of `classes` have the same name.
    """
    known = dict(_own_classes(len(sys.modules)))
    for cls in classes:
        from flax import nnx

        known = _by_name(_optax_states() | _flax_classes()) | known
        variable = isinstance(cls, type) and issubclass(cls, nnx.Variable)
        if not (dataclasses.is_dataclass(cls) or hasattr(cls, "_asdict") or variable):
            expected = "dataclasses, named tuples and nnx.Variables"
            raise TypeError(f"classes holds {cls!r}; expected {expected}")
        if known.setdefault(class_name(cls), cls) is not cls:
            raise ValueError(f"classes holds two classes named {class_name(cls)}")
    return known


@functools.lru_cache(maxsize=1)
def _own_classes(modules: int) -> dict[str, type]:
    """jaxmem's frozen dataclasses, looked for again once another module is imported."""
    ours = [m for name, m in sys.modules.items() if name.split(".")[0] == "jaxmem"]
    found = [cls for module in ours for cls in vars(module).values()]
    found = [cls for cls in found if dataclasses.is_dataclass(cls) and isinstance(cls, type)]
    return _by_name(filter(_is_ours, found))


def class_name(cls: type) -> str:
    """How a file names `cls`: without its module, since classes may move within jaxmem.

    Example:
        >>> import jaxmem as jm
        >>> class_name(jm.Int)
        'jaxmem.Int'
    """
    package = cls.__module__.split(".")[0]
    return (
        f"{package}.{cls.__qualname__}"
        if package in ("jaxmem", "flax", "optax")
        else cls.__qualname__
    )


def _check_numbers(dtype: Any, at: str) -> str:
    """The name of a dtype of numbers.

    Raises:
        TypeError: the dtype is of objects, text, dates, records or random keys.
    """
    if isinstance(dtype, np.dtype) and hasattr(jnp, dtype.name):
        return dtype.name
    raise TypeError(f"cannot save {at!r}: its dtype is {dtype}, expected numbers")


def named_dtype(name: str) -> np.dtype:
    """The dtype of numbers that has this name.

    Raises:
        ValueError: this jax has no such dtype.
    """
    if not (hasattr(jnp, name) and isinstance(getattr(jnp, name), type)):
        raise ValueError(f"it holds dtype {name}, which this jax does not know")
    return np.dtype(name)


def _is_ours(cls: type) -> bool:
    """Whether a dataclass is a frozen one of jaxmem, and describes no model."""
    ours = cls.__module__.split(".")[0] == "jaxmem" and cls.__dataclass_params__.frozen
    return ours and not _is_of_a_model(cls)


def _is_of_a_model(cls: type) -> bool:
    """Whether `cls` describes a model: such classes are no part of a tree, and share names.

    Each family of models has a class named `Config`.
    """
    return cls.__module__.startswith(("jaxmem.architectures.", "jaxmem.models."))


def _loaded_from_nnx(name: str) -> tuple[type, ...]:
    """A class of flax.nnx, if that is loaded, as it is where a tree holds one; it takes .3 s."""
    module = sys.modules.get("flax.nnx")
    return (getattr(module, name),) if hasattr(module, name) else ()


def _optax_states() -> set[type]:
    """The named tuples of optax."""
    import optax

    return {cls for cls in vars(optax).values() if isinstance(cls, type) and _is_named_tuple(cls)}


def _by_name(classes: Iterable[type]) -> dict[str, type]:
    return {class_name(cls): cls for cls in classes}


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_asdict")


def _flax_classes() -> set[type]:
    """Classes of flax that wrap a dict, that hold a value and metadata, or a training state."""
    from flax import nnx
    from flax.training.train_state import TrainState

    is_variable = lambda cls: isinstance(cls, type) and issubclass(cls, nnx.Variable)
    return {FrozenDict, nnx.State, TrainState, *filter(is_variable, vars(nnx).values())}
