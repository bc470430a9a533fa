"""Segmented: a stack whose layers are not encoded alike, as consecutive stacks of layers that are.

A lifted scan over it runs as consecutive scans, one for each stack, so no model changes a line.
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
    """Stands for its `parts`, concatenated along the first axis.

    A part is an encoded stack, or an array of layers that are not encoded.

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
        overlaps, part_start = [], 0
        for part, part_end in zip(self.parts, self.ends):
            a, b = max(start, part_start) - part_start, min(stop, part_end) - part_start
            if a < b:
                is_whole = (a, b) == (0, part_end - part_start)
                overlaps.append(part if is_whole else _layers(part, a, b))
            part_start = part_end
        return overlaps[0] if len(overlaps) == 1 else Segmented(tuple(overlaps))

    def layer(self, i):
        part, end = next((part, end) for part, end in zip(self.parts, self.ends) if i < end)
        index = i - (end - part.shape[0])
        return part.layer(index) if is_encoded(part) else part[index]

    def decode(self) -> Array:
        return jnp.concatenate([decode(part) for part in self.parts])

    def astype(self, dtype):
        return Segmented(tuple(part.astype(dtype) for part in self.parts))

    def shard_shape(self, axis, parts):
        axis += self.ndim if axis < 0 else 0
        if axis == 0:
            return NotImplemented
        shards = tuple(_shard_shape(part, axis, parts) for part in self.parts)
        return NotImplemented if any(s is NotImplemented for s in shards) else Segmented(shards)


def join_layers(layers: Iterable[Any]) -> Any:
    """The stack of leaves or arrays of one layer each; `Segmented` if they are encoded differently.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> codecs = [jm.Int(8), jm.Int(4), jm.Int(4)]
        >>> join_layers(codec.encode(jnp.ones((32, 24))) for codec in codecs).ends
        (1, 3)
    """
    shapes = lambda leaf: [(a.shape, jnp.dtype(a.dtype)) for a in jax.tree.leaves(leaf)]
    runs = itertools.groupby(layers, lambda leaf: (jax.tree.structure(leaf), shapes(leaf)))
    parts = tuple(jax.tree.map(lambda *a: jnp.stack(a), *run) for _, run in runs)
    return parts[0] if len(parts) == 1 else Segmented(parts)


def _layers(part: Any, start: int, stop: int) -> Any:
    """Layers [start, stop) of a leaf or an array."""
    return part.layers(start, stop) if is_encoded(part) else part[start:stop]


def _shard_shape(part: Any, axis: int, parts: int) -> Any:
    """`part.shard_shape(axis, parts)`, of an array too."""
    if is_encoded(part):
        return part.shard_shape(axis, parts)
    shape = list(part.shape)
    shape[axis] //= parts
    return jax.ShapeDtypeStruct(tuple(shape), part.dtype)
