"""Segmented: a stack whose layers are not encoded alike, as consecutive stacks that are.

A scan over it runs as consecutive scans, one a run of layers (`lift`), so no model changes a line.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .leaf import Encoded, decode, is_encoded

_LAYERS = re.compile(r"\[(\d+)(?::(\d+))?\]")  # of a path: layers[3]/..., layers[0:8]/...


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

    def part(self, axis, parts):
        axis += self.ndim if axis < 0 else 0
        if axis == 0:
            return NotImplemented
        small = [_part(part, axis, parts) for part in self.parts]
        return (
            NotImplemented if any(p is NotImplemented for p in small) else Segmented(tuple(small))
        )


def together(layers: Iterable[Any]) -> Any:
    """The stack of leaves or arrays that are a layer each: `Segmented` where neighbours differ.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> codecs = [jm.Int(8), jm.Int(4), jm.Int(4)]
        >>> together(codec.encode(jnp.ones((32, 24))) for codec in codecs).ends
        (1, 3)
    """
    arrays = lambda leaf: [(a.shape, jnp.dtype(a.dtype)) for a in jax.tree.leaves(leaf)]
    runs = itertools.groupby(layers, lambda leaf: (jax.tree.structure(leaf), arrays(leaf)))
    parts = tuple(jax.tree.map(lambda *a: jnp.stack(a), *run) for _, run in runs)
    return parts[0] if len(parts) == 1 else Segmented(parts)


def layers_of(path: str) -> tuple[str, slice | None]:
    """(the path of a leaf, which layers of its stack a path in a plan names; None for all).

    Example:
        >>> layers_of("layers[3]/mlp/up/kernel"), layers_of("layers[0:8]/mlp/up/kernel")[1]
        (('layers/mlp/up/kernel', slice(3, 4, None)), slice(0, 8, None))
    """
    found = _LAYERS.search(path)
    if found is None:
        return path, None
    start = int(found[1])
    stop = start + 1 if found[2] is None else int(found[2])
    return path[: found.start()] + path[found.end() :], slice(start, stop)


def named(path: str, start: int, stop: int) -> str:
    """The path in a plan of layers start to stop of a stacked leaf.

    Example:
        >>> named("layers/mlp/up/kernel", 0, 8)
        'layers[0:8]/mlp/up/kernel'
    """
    first, *rest = path.split("/")
    return "/".join([f"{first}[{start}:{stop}]", *rest])


def by_layer(plan: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """{leaf: codec, or [(start, stop, codec or None)] where a plan tells layers apart}.

    Of two entries that name a layer the narrower counts; equal neighbours are one run.

    Raises:
        ValueError: an entry names no leaf, or layers that it does not have.

    Example:
        >>> plan = {"layers/w": "int4", "layers[0]/w": "int8"}
        >>> by_layer(plan, {"layers/w": (4, 32, 32)})
        {'layers/w': [(0, 1, 'int8'), (1, 4, 'int4')]}
    """
    found: dict[str, dict] = {}
    for path, codec in plan.items():
        leaf, which = layers_of(path)
        if leaf not in shapes:
            raise ValueError(f"the plan names {path!r}, which is no leaf; {list(shapes)[:3]} are")
        count = shapes[leaf][0] if shapes[leaf] else 0
        if which and not 0 <= which.start < which.stop <= count:
            raise ValueError(f"the plan names {path!r}, of a stack of {count} layers")
        found.setdefault(leaf, {})[which and (which.start, which.stop)] = codec
    out: dict[str, Any] = {}
    for leaf, entries in found.items():
        if set(entries) == {None}:
            out[leaf] = entries[None]
            continue
        narrow = sorted((e for e in entries if e), key=lambda e: e[0] - e[1])  # wide ones first
        each = [entries.get(None)] * shapes[leaf][0]
        for start, stop in narrow:
            each[start:stop] = [entries[start, stop]] * (stop - start)
        runs, at = [], 0
        for codec, same in itertools.groupby(each):
            size = len(list(same))
            runs.append((at, at + size, codec))
            at += size
        out[leaf] = runs if len(runs) > 1 else runs[0][2]
    return out


def _layers(part: Any, start: int, stop: int) -> Any:
    return part.layers(start, stop) if is_encoded(part) else part[start:stop]


def _part(part: Any, axis: int, parts: int) -> Any:
    if is_encoded(part):
        return part.part(axis, parts)
    sides = list(part.shape)
    sides[axis] //= parts
    return jax.ShapeDtypeStruct(tuple(sides), part.dtype)
