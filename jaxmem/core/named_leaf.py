"""NamedLeaf: an encoded leaf with the path by which messages call it."""

import dataclasses
from typing import Any

from .leaf import Encoded, is_encoded


@dataclasses.dataclass(frozen=True)
class NamedLeaf:
    """An encoded leaf on its way through a jaxpr, with its path for messages."""

    leaf: Encoded
    path: str
    joined_to: tuple[str, ...] = ()  # paths of the other leaves that it is made of


def without_name(value: Any) -> Any:
    """The leaf of a `NamedLeaf`; other values stay."""
    return value.leaf if isinstance(value, NamedLeaf) else value


def with_name(value: Any, inputs: list) -> Any:
    """`value`, if it is a leaf, with the paths of the `NamedLeaf`s among `inputs`."""
    paths = [p for v in inputs if isinstance(v, NamedLeaf) for p in (v.path, *v.joined_to)]
    return NamedLeaf(value, paths[0], tuple(paths[1:])) if is_encoded(value) and paths else value
