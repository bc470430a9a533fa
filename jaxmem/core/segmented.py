"""Segmented: a stack whose layers are not encoded alike, as consecutive stacks that are.

A scan over it runs as consecutive scans, one a run of layers (`lift`), so no model changes a line.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .leaf import Encoded, decode, is_encoded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segmented(Encoded):
    """Stands for its parts one after the other along the first axis.

    Parts are encoded stacks, or arrays for layers that are kept.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.ones((3, 32, 24))
        >>> leaf = Segmented((jm.Int(4).encode(w[:1]), jm.Int(8).encode(w[1:])))
        >>> leaf.shape, leaf.ends, jm.nbytes(leaf)
        ((3, 32, 24), (1, 3), 2064)
    """

    parts: tuple

    shape = property(lambda self: (self.ends[-1], *self.parts[0].shape[1:]))
    dtype = property(lambda self: self.parts[0].dtype)

    @property
    def ends(self):
        return tuple(itertools.accumulate(part.shape[0] for part in self.parts))

    def layers(self, start, stop):
        found, first = [], 0
        for part, end in zip(self.parts, self.ends):
            a, b = max(start, first) - first, min(stop, end) - first
            if a < b:
                whole = (a, b) == (0, end - first)
                found.append(part if whole else _layers(part, a, b))
            first = end
        return found[0] if len(found) == 1 else Segmented(tuple(found))

    def layer(self, i):
        part, first = next((p, e - p.shape[0]) for p, e in zip(self.parts, self.ends) if i < e)
        return part.layer(i - first) if is_encoded(part) else part[i - first]

    def decode(self) -> Array:
        return jnp.concatenate([decode(part) for part in self.parts])

    def astype(self, dtype):
        return Segmented(tuple(part.astype(dtype) for part in self.parts))

    def shard_shape(self, axis, parts):
        axis += self.ndim if axis < 0 else 0
        if axis == 0:
            return NotImplemented
        small = [_part(part, axis, parts) for part in self.parts]
        return (
            NotImplemented if any(p is NotImplemented for p in small) else Segmented(tuple(small))
        )


def join_layers(layers: Iterable[Any]) -> Any:
    """The stack of leaves or arrays that are a layer each: `Segmented` where neighbours differ.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> codecs = [jm.Int(8), jm.Int(4), jm.Int(4)]
        >>> join_layers(codec.encode(jnp.ones((32, 24))) for codec in codecs).ends
        (1, 3)
    """
    arrays = lambda leaf: [(a.shape, jnp.dtype(a.dtype)) for a in jax.tree.leaves(leaf)]
    runs = itertools.groupby(layers, lambda leaf: (jax.tree.structure(leaf), arrays(leaf)))
    parts = tuple(jax.tree.map(lambda *a: jnp.stack(a), *run) for _, run in runs)
    return parts[0] if len(parts) == 1 else Segmented(parts)


def _layers(part: Any, start: int, stop: int) -> Any:
    return part.layers(start, stop) if is_encoded(part) else part[start:stop]


def _part(part: Any, axis: int, parts: int) -> Any:
    if is_encoded(part):
        return part.shard_shape(axis, parts)
    sides = list(part.shape)
    sides[axis] //= parts
    return jax.ShapeDtypeStruct(tuple(sides), part.dtype)
