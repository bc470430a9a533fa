"""shardings: where each array of a tree lies on a mesh, encoded leaves as their weights would."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.leaf import is_encoded
from ..core.paths import is_whole, match, paths
from .following import follow
from .sharded_array import placed


def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, P]) -> Any:
    """The sharding of every array in `tree`, by the first rule that matches a leaf's whole path.

    A rule's spec names axes of the *weight*; the arrays of an encoded leaf follow it, so that no
    group, packed byte or block is split: along an axis where one would be, the leaf is replicated
    (`placement` says what that costs). A leaf that no rule matches is replicated. The tree may be
    abstract; the result has its structure, for `shard`, `load`, `device_put` and `jit`.

    Raises:
        ValueError: a rule matches no leaf; a spec is longer than a leaf has axes, names no axis of
            the mesh or one twice, or does not divide the leaf. Names the path.

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


def shard(tree: Any, shardings: Any) -> Any:
    """The tree on its devices; each encoded leaf then multiplies where its pieces lie.

    Such a leaf, a `ShardedArray`, holds the same arrays, and remembers the names of the axes. Of
    many processes each gives the same tree, and keeps its own pieces. Of an abstract tree these
    are shapes that know where they would lie, to compile for devices that are not here.

    Raises:
        ValueError: `shardings` has another structure; names the first leaf without one.

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
        here, there = paths(tree), paths(shardings)
        missing = [p for p in here if p not in there] or [p for p in there if p not in here]
        what = f"they differ at {missing[0]!r}" if missing else "a leaf is encoded otherwise"
        raise ValueError(f"these are the shardings of another tree: {what}")
    return placed(structure.unflatten(map(_put, arrays, where)), shardings)


def state_shardings(state: Any, params: Any, shardings: Any) -> Any:
    """The shardings of an optimizer's state: of each leaf, those of the parameter it belongs to.

    That is the one whose path ends the leaf's own, if it has its shape; others are replicated.

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
    whole = jax.tree.leaves(shardings)[0].mesh

    def one(path, x):
        parts = path.split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        weight, where = next((known[t] for t in tails if t in known), (None, None))
        alike = lambda a, b: jax.tree.structure(a) == jax.tree.structure(b)
        if weight is None or weight.shape != x.shape:
            return follow(whole, x, P(), path)[0]
        if alike(weight, x) and all(
            a.shape == b.shape for a, b in zip(*map(jax.tree.leaves, (weight, x)))
        ):
            return where
        return follow(whole, x, where.spec if not is_encoded(weight) else P(), path)[0]

    found, tree = jax.tree.flatten(state, is_leaf=is_encoded)
    return tree.unflatten([one(path, x) for path, x in zip(paths(state), found)])


def _put(x: Any, where: NamedSharding) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    if where.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, where)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])
