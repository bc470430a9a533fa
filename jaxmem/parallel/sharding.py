"""shardings: the sharding of each array of a tree; encoded leaves are divided like weights."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.arguments import MESH, SHARDINGS, SPECS, TREE, takes
from ..core.lazy import is_lazy
from ..core.leaf import is_array, is_encoded
from ..core.paths import is_whole, match, paths
from .sharded_array import placed

MOST_FIELDS = 3  # names below a parameter's in a state: moments, mu, codes


@takes(tree=TREE, mesh=MESH, rules=SPECS)
def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, P]) -> Any:
    """The sharding of every array in `tree`, by the first rule that matches a leaf's whole path.

    A rule's spec names axes of the *weight*. The arrays of an encoded leaf are divided along the
    same axes, and no group, packed byte or block is split: along an axis where a shard would split
    one, the leaf is replicated (`placement` counts the bytes of that). A leaf that no rule matches
    is replicated. The tree may be abstract. The result has the structure of the tree, for `shard`,
    `load`, `device_put` and `jit`.

    Raises:
        ValueError: a rule matches no leaf; or a spec has more axes than its leaf, names an axis
            that the mesh has not or an axis twice, or does not divide the leaf. The message has
            the leaf's path.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params = {"w": jm.Int(4, group=32).encode(jnp.ones((64, 96))), "bias": jnp.ones(96)}
        >>> where = shardings(params, jm.mesh(fsdp=8), {"w": P(None, "fsdp")})
        >>> jax.tree.leaves(jax.tree.map(lambda s: s.spec, where))
        [P(), P('fsdp', None), P(None, 'fsdp')]
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_whole)
    names = paths(tree)
    chosen = match(names, dict(rules))
    out = [follow(mesh, x, chosen.get(n, P()), n)[0] for n, x in zip(names, leaves)]
    return structure.unflatten(out)


@takes(tree=TREE)
def shard(tree: Any, shardings: Any) -> Any:
    """The tree on its devices; each encoded leaf becomes a `ShardedArray`.

    A `ShardedArray` holds the same arrays and the names of the mesh axes that divide them; each
    device multiplies by its own shard. With many processes, each process passes the same tree and
    keeps its own shards. The arrays of an abstract tree become shapes with shardings, to compile
    for devices that are not here.

    Raises:
        ValueError: `shardings` has another structure than the tree; the message has the path of
            the first leaf that differs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> enc = {"w": jm.Int(8).encode(jnp.eye(16))}
        >>> enc = shard(enc, jm.shardings(enc, jm.mesh(tensor=8), {"w": P(None, "tensor")}))
        >>> jax.jit(jm.lift(lambda p, x: x @ p["w"]))(enc, jnp.ones((1, 16))).sharding.spec
        P(None, 'tensor')
    """
    where = jax.tree.leaves(shardings)
    arrays, structure = jax.tree.flatten(tree)
    if structure != jax.tree.structure(shardings):
        names, others = paths(tree), paths(shardings)
        missing = [p for p in names if p not in others] or [p for p in others if p not in names]
        difference = f"they differ at {missing[0]!r}" if missing else "a leaf is encoded otherwise"
        raise ValueError(f"these are the shardings of another tree: {difference}")
    return placed(structure.unflatten(map(_put, arrays, where)), shardings)


@takes(state=TREE, params=TREE, shardings=SHARDINGS)
def state_shardings(state: Any, params: Any, shardings: Any) -> Any:
    """The shardings of an optimizer's state: each array lies with the parameter it belongs to.

    An array belongs to the parameter whose path ends the array's own path, or that path without
    the names of fields of an optimizer's own state, such as codes and scales of
    `jm.optimizers.in_int8`. It has the parameter's sharding if it has its shape; if it has as many
    axes, those that the devices divide are divided; otherwise it is replicated.

    Where params are encoded as a whole (`jm.optimizers.split_weights`, `Int(8)` weights in
    training), pass their shapes, `jax.eval_shape(jm.decode, params)`, and the shardings of these.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
        >>> where = jm.shardings(params, jm.mesh(fsdp=8), {"w": P("fsdp")})
        >>> state = jax.eval_shape(optax.adam(1e-3).init, params)
        >>> state_shardings(state, params, where)[0].mu["w"].spec
        P('fsdp',)
    """
    leaves = jax.tree.leaves(params, is_leaf=is_encoded)
    structure = jax.tree.structure(params, is_leaf=is_encoded)
    known = dict(zip(paths(params), zip(leaves, structure.flatten_up_to(shardings))))
    mesh = jax.tree.leaves(shardings)[0].mesh
    replicated = lambda x, path: follow(mesh, x, P(), path)[0]
    alike = lambda a, b: (
        jax.tree.structure(a) == jax.tree.structure(b)
        and all(x.shape == y.shape for x, y in zip(*map(jax.tree.leaves, (a, b))))
    )

    def one(path, x):
        weight, where = _parameter(path, known)
        if weight is not None and weight.shape == x.shape:
            if alike(weight, x):
                return where
            return follow(mesh, x, where.spec if not is_encoded(weight) else P(), path)[0]
        names = path.split("/")
        parents = ["/".join(names[:n]) for n in range(len(names), 0, -1)]
        pairs = (_parameter(parent, known) for parent in parents[: MOST_FIELDS + 1])
        part, where = next((pair for pair in pairs if pair[0] is not None), (None, None))
        if part is None or is_encoded(part) or part.ndim != x.ndim:
            return replicated(x, path)
        return follow(mesh, x, _dividing(where.spec, x.shape, mesh), path)[0]

    arrays, tree = jax.tree.flatten(state, is_leaf=is_encoded)
    return tree.unflatten([one(path, x) for path, x in zip(paths(state), arrays)])


def _parameter(path: str, known: dict[str, tuple]) -> tuple:
    """(parameter, its shardings) of the longest end of `path` that names one, or (None, None)."""
    names = path.split("/")
    ends = ("/".join(names[i:]) for i in range(len(names)))
    return next((known[end] for end in ends if end in known), (None, None))


def _dividing(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """The entries of `spec` whose devices divide the axis of an array; None for the others."""
    devices = lambda entry: math.prod(
        mesh.shape[name] for name in (entry if isinstance(entry, tuple) else (entry,))
    )
    return P(*(e if e and n % devices(e) == 0 else None for e, n in zip(spec, shape)))


def follow(
    mesh: Mesh | AbstractMesh, leaf: Any, spec: P, path: str = "the leaf"
) -> tuple[Any, tuple[int, ...]]:
    """(the shardings of one leaf's arrays, the axes divided over fewer devices than `spec` asks).

    An encoding that cannot be divided over all mesh axes of an entry gives up the innermost first.

    Raises:
        ValueError: as `shardings` says.
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
    undivided, shard = [], leaf
    for axis, names in enumerate(over):
        # The shard along this axis, over as many of the mesh axes as the encoding allows.
        dividing, smaller = names, shard
        while parts(dividing) > 1:
            smaller = shard.shard_shape(axis, parts(dividing))
            if smaller is not NotImplemented:
                break
            dividing, smaller = dividing[:-1], shard
        undivided += [axis] if parts(dividing) < parts(names) else []
        # The arrays that became smaller are those that are divided.
        for entries, a, b in zip(specs, *map(jax.tree.leaves, (shard, smaller))):
            for i in range(len(entries)):
                if a.shape[i] != b.shape[i]:
                    entries[i] = dividing if len(dividing) > 1 else dividing[0]
        shard = smaller
    where = [NamedSharding(mesh, P(*entries) if any(entries) else P()) for entries in specs]
    return structure.unflatten(where), tuple(undivided)


def _put(x: Any, where: NamedSharding) -> Any:
    """One array, abstract or concrete, with a sharding."""
    if not is_array(x):
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    if where.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, where)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])
