"""follow: the arrays of an encoded leaf lie over a mesh as the weight would, no group is split."""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.lazy import is_lazy
from ..core.leaf import is_encoded


def follow(
    mesh: Mesh | AbstractMesh, leaf: Any, spec: P, path: str = "the leaf"
) -> tuple[Any, tuple[int, ...]]:
    """(the shardings of one leaf's arrays, the axes that its encoding cannot divide as asked).

    Raises:
        ValueError: as `shardings`.
    """
    shape = tuple(getattr(leaf, "shape", ()))
    if len(spec) > len(shape):
        raise ValueError(f"{path} has shape {shape}, too few axes for {spec}")
    over = [() if e is None else e if isinstance(e, tuple) else (e,) for e in spec]
    used = [name for names in over for name in names]
    for name in used:
        if name not in mesh.shape or used.count(name) > 1:
            why = "twice" if name in mesh.shape else f"expected one of {tuple(mesh.shape)}"
            raise ValueError(f"{path}: {spec} names the axis {name!r}, {why}")
    parts = lambda names: math.prod(mesh.shape[name] for name in names)
    for size, names in zip(shape, over):
        if size % parts(names):
            raise ValueError(f"{path} has shape {shape}: {spec} cuts {size} in {parts(names)}")
    arrays, structure = jax.tree.flatten(leaf, is_leaf=is_lazy)
    if not is_encoded(leaf):
        return structure.unflatten([NamedSharding(mesh, spec)]), ()
    specs: list[list[Any]] = [[None] * x.ndim for x in arrays]
    whole, piece = [], leaf
    for axis, names in enumerate(over):
        kept, small = names, piece
        while parts(kept) > 1 and (small := piece.shard_shape(axis, parts(kept))) is NotImplemented:
            kept, small = kept[:-1], piece  # the innermost is given up first
        whole += [axis] if parts(kept) < parts(names) else []
        for entries, a, b in zip(specs, *map(jax.tree.leaves, (piece, small))):
            for i in range(len(entries)):
                if a.shape[i] != b.shape[i]:
                    entries[i] = kept if len(kept) > 1 else kept[0]
        piece = small
    where = [NamedSharding(mesh, P(*entries) if any(entries) else P()) for entries in specs]
    return structure.unflatten(where), tuple(whole)
