"""attach: w + u · v, a frozen weight, dense or encoded, beside a pair to train (Hu et al., 2021).

The pair is a tree of its own, {path: {"u", "v"}}: it is what an optimizer sees. `attach` puts it
beside the frozen weights inside the loss, where a leaf stands for the sum.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs import Cast
from ..codecs.low_rank import LowRankArray
from ..codecs.sum import SumArray
from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.paths import is_whole, match, paths


def adapters(key: Array, params: Any, rank: int, where: str = ".*kernel") -> dict[str, dict]:
    """{path: {"u" (*stack, n, rank) zeros, "v" (*stack, rank, k) of variance 1/k}} in f32.

    One pair for each weight whose whole path `where` matches; at first they add nothing. `params`
    may be abstract under `eval_shape`.

    Raises:
        ValueError: `where` matches no weight, or the rank is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> found = adapters(jax.random.key(0), {"kernel": jnp.ones((64, 32))}, 4)
        >>> found["kernel"]["u"].shape, found["kernel"]["v"].shape
        ((32, 4), (4, 64))
    """
    if rank < 1:
        raise ValueError(f"the rank is {rank}, expected at least 1")
    names = paths(params)
    chosen = match(names, {where: True})
    leaves = dict(zip(names, jax.tree.leaves(params, is_leaf=is_whole)))
    out = {}
    for i, path in enumerate(chosen):
        stack, fold = _fold(leaves[path])
        v = jax.random.normal(jax.random.fold_in(key, i), (*stack, rank, fold.k), jnp.float32)
        u = jnp.zeros((*stack, fold.n, rank), jnp.float32)
        out[path] = {"u": u, "v": v * fold.k**-0.5}
    return out


def attach(params: Any, pairs: dict[str, dict]) -> Any:
    """The params with the leaf `w + u · v` at each path of `pairs`.

    Run it with `jm.lift`, or a model's own `apply`. To keep the sum, encode what it decodes to.

    Raises:
        ValueError: a path is none of `params`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params = {"kernel": jm.Int(4).encode(jnp.eye(64))}
        >>> pairs = adapters(jax.random.key(0), params, 4)
        >>> bool((attach(params, pairs)["kernel"].decode() == params["kernel"].decode()).all())
        True
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    names = paths(params)
    if unknown := sorted(set(pairs) - set(names)):
        raise ValueError(f"adapters name {unknown[0]!r}, which is no weight; weights: {names[:3]}")
    return tree.unflatten(
        [_sum(leaf, pairs[name]) if name in pairs else leaf for name, leaf in zip(names, leaves)]
    )


def _sum(leaf: Any, pair: dict) -> SumArray:
    base = leaf if is_encoded(leaf) else Cast(str(leaf.dtype)).encode(leaf)
    return SumArray((base, LowRankArray(pair["u"], pair["v"], _fold(leaf)[1], leaf.dtype)))


def _fold(leaf: Any) -> tuple[tuple[int, ...], Fold]:
    """The stack of a weight's matrix, and how the weight lies in it; a dense one is (k, n)."""
    if isinstance(leaf, MatrixLeaf):
        return leaf.batch_shape, leaf.fold
    k, n = leaf.shape[-2:]
    return leaf.shape[:-2], Fold((n,), (k,), (-1, -2))
