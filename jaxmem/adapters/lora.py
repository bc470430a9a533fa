"""LoRA: w + u · v, a frozen weight w, dense or encoded, and a trainable pair (Hu et al., 2021).

`adapters` makes the pairs, a tree {path: {"u", "v"}} for an optimizer. Inside the loss, `attach`
replaces each weight that has a pair by a leaf that computes the sum.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs import Cast
from ..codecs.low_rank import LowRankArray
from ..codecs.sum import SumArray
from ..core.arguments import REGEX, TREE, Kind, takes
from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.paths import is_whole, match, paths

_KEY = Kind(
    "a key of jax.random",
    lambda x: (
        hasattr(x, "dtype")
        and (jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or x.dtype == jnp.uint32)
    ),
)


@takes(key=_KEY, params=TREE, where=REGEX)
def adapters(key: Array, params: Any, rank: int, where: str = ".*kernel") -> dict[str, dict]:
    """{path: {"u", "v"}} in f32, a pair for each weight whose whole path the regex `where` matches.

    A weight (*stack, k, n) gets u (*stack, n, rank) of zeros and v (*stack, rank, k) of variance
    1/k, so the sum w + u · v is first w. Under `jax.eval_shape`, `params` may be abstract.

    Raises:
        ValueError: `where` matches no weight, or `rank` is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> pairs = adapters(jax.random.key(0), {"kernel": jnp.ones((64, 32))}, 4)
        >>> pairs["kernel"]["u"].shape, pairs["kernel"]["v"].shape
        ((32, 4), (4, 64))
    """
    if rank < 1:
        raise ValueError(f"the rank is {rank}, expected at least 1")
    names = paths(params)
    leaves = dict(zip(names, jax.tree.leaves(params, is_leaf=is_whole)))
    pairs = {}
    for i, path in enumerate(match(names, {where: True})):
        stack, fold = _fold(leaves[path])
        v = jax.random.normal(jax.random.fold_in(key, i), (*stack, rank, fold.k), jnp.float32)
        u = jnp.zeros((*stack, fold.n, rank), jnp.float32)
        pairs[path] = {"u": u, "v": v * fold.k**-0.5}
    return pairs


@takes(params=TREE)
def attach(params: Any, pairs: dict[str, dict]) -> Any:
    """The params with a leaf that stands for `w + u · v` at each path of `pairs`.

    A function of these params runs under `jm.lift`, which a model's `apply` does by itself. To
    merge a pair into its weight, decode the leaf and encode the result.

    Raises:
        ValueError: a path of `pairs` is not one of `params`.

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
    """The leaf of `leaf` (an array or encoded) + u · v."""
    base = leaf if is_encoded(leaf) else Cast(str(leaf.dtype)).encode(leaf)
    return SumArray((base, LowRankArray(pair["u"], pair["v"], _fold(leaf)[1], leaf.dtype)))


def _fold(leaf: Any) -> tuple[tuple[int, ...], Fold]:
    """(stack shape, fold) of a weight's matrix (*stack, n, k); a dense weight is (*stack, k, n)."""
    if isinstance(leaf, MatrixLeaf):
        return leaf.batch_shape, leaf.fold
    k, n = leaf.shape[-2:]
    return leaf.shape[:-2], Fold((n,), (k,), (-1, -2))
