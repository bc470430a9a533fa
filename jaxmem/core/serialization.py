"""Classes of encoded leaves registered with `jax.export` and with `flax.serialization`.

Static fields are written as the JSON of `io.manifest`: nothing is pickled.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
from jax import export

from ..io.manifest import describe, known_classes, rebuild

_names: set[str] = set()


def register(cls: type) -> None:
    """Registers a class of encoded leaves, which is or becomes a registered dataclass.

    The name in an exported program has the module of a class that is not jaxmem's. A class that
    replaces one of the same name, as when a notebook's cell runs again, gets a number.
    """
    ours = cls.__module__.split(".")[0] == "jaxmem"  # its classes may move within jaxmem
    name = f"jaxmem.{cls.__qualname__}" if ours else f"{cls.__module__}.{cls.__qualname__}"
    versions = sum(known.split("#")[0] == name for known in _names)
    name = f"{name}#{versions + 1}" if versions else name
    _names.add(name)
    export.register_pytree_node_serialization(
        cls,
        serialized_name=name,
        serialize_auxdata=lambda static: _text(static).encode(),
        deserialize_auxdata=lambda text: rebuild(json.loads(bytes(text)), [], known_classes()),
        from_children=lambda static, children: _leaf(cls, static, children),
    )
    flax.serialization.register_serialization_state(cls, _to_state, _from_state)


def _text(static: tuple) -> str:
    """The JSON of the values of static fields."""
    return json.dumps(describe(static, []))


def _names_of(cls: type, static: bool) -> list[str]:
    """The fields that are static, or those that hold arrays."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return [f.name for f in fields if bool(f.metadata.get("static")) == static]


def _leaf(cls: type, static: tuple, children: tuple) -> Any:
    """The leaf of these fields. `children` may be placeholders, so nothing checks them.

    Static fields at the end that an older program lacks have their defaults.
    """
    leaf, later = object.__new__(cls), _names_of(cls, True)[len(static) :]
    static = (*static, *(cls.__dataclass_fields__[name].default for name in later))
    for is_static, values in ((True, static), (False, children)):
        for name, value in zip(_names_of(cls, is_static), values, strict=True):
            object.__setattr__(leaf, name, value)
    return leaf


def _to_state(leaf: Any) -> dict[str, Any]:
    """The state dict of a leaf: its arrays by field, and the text of its static fields."""
    to_state = flax.serialization.to_state_dict
    state = {name: to_state(getattr(leaf, name)) for name in _names_of(type(leaf), False)}
    static = tuple(getattr(leaf, name) for name in _names_of(type(leaf), True))
    return state | {"static": _text(static)}


def _texts(leaf: Any) -> Iterator[str]:
    """The text of a leaf's static fields, and texts from before its last ones, if at defaults."""
    names, fields = _names_of(type(leaf), True), type(leaf).__dataclass_fields__
    values = tuple(getattr(leaf, name) for name in names)
    yield _text(values)
    while names and values[-1] == fields[names.pop()].default:
        values = values[:-1]
        yield _text(values)


def _from_state(target: Any, state: dict[str, Any]) -> Any:
    """The leaf of `state`, which is encoded as `target` is.

    Raises:
        ValueError: it is encoded otherwise, or its arrays have other shapes; the message has both.
    """
    name, expected = type(target).__name__, _to_state(target)
    if not isinstance(state, dict) or set(state) != set(expected):
        fields = list(state) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"the state of a {name} has {fields}, expected {list(expected)}")
    if state["static"] not in _texts(target):
        raise ValueError(
            f"the state is of a {name} with {state['static']}, and the target's has "
            f"{expected['static']}: encode the target by the same plan"
        )
    fields = {
        field: flax.serialization.from_state_dict(getattr(target, field), state[field])
        for field in _names_of(type(target), False)
    }
    leaf = dataclasses.replace(target, **fields)
    shapes = lambda x: [(a.shape, jnp.dtype(a.dtype).name) for a in jax.tree.leaves(x)]
    if shapes(leaf) != shapes(target):
        raise ValueError(
            f"the state of a {name} has arrays of shapes {shapes(leaf)}, expected {shapes(target)}"
        )
    return leaf
