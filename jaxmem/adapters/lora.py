"""LoRA: w + u · v, a frozen weight w, dense or encoded, and a trainable pair (Hu et al., 2021).

`adapters` makes the pairs, a tree {path: {"u", "v"}} for an optimizer. Inside the loss, `attach`
replaces each weight that has a pair by a leaf that computes the sum.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs import Cast
from ..codecs.low_rank import LowRankArray
from ..codecs.sum import SumArray
from ..core.arguments import KEY, REGEX, TREE, takes
from ..core.leaf import is_encoded
from ..core.paths import is_whole, paths
from .bottleneck import BottleneckArray
from .dora import DoraArray, row_norms
from .rank_rules import RANK, ranks_of
from .weight_layers import weight_fold

FORMS = ({"u", "v"}, {"u", "v", "m"}, {"u", "v", "e"}, {"down", "up", "bias"})


@takes(key=KEY, params=TREE, rank=RANK, where=REGEX)
def adapters(
    key: Array, params: Any, rank: int | Mapping[str, int], where: str = ".*kernel"
) -> dict[str, dict]:
    """{path: {"u", "v"}} in f32, a pair for each weight whose whole path the regex `where` matches.

    A weight (*stack, k, n) gets u (*stack, n, rank) of zeros and v (*stack, rank, k) of variance
    1/k, so the sum w + u · v is first w. Under `jax.eval_shape`, `params` may be abstract. `rank`
    is one number, or one for each regex of paths: the first that matches counts, and a weight that
    none matches gets no pair.

    Raises:
        ValueError: `where` or a regex of `rank` matches no weight; a rank is below 1, or above the
            smaller side of its weight.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"up": {"kernel": jnp.ones((64, 32))}, "down": {"kernel": jnp.ones((32, 64))}}
        >>> pairs = adapters(jax.random.key(0), params, {"up.*": 4, ".*": 2})
        >>> pairs["up/kernel"]["u"].shape, pairs["down/kernel"]["v"].shape
        ((32, 4), (2, 32))
    """
    names = paths(params)
    leaves = dict(zip(names, jax.tree.leaves(params, is_leaf=is_whole)))
    ranks = ranks_of(leaves, rank, where)
    pairs = {}
    for i, (path, r) in enumerate(ranks.items()):
        stack, fold = weight_fold(leaves[path])
        size = (*stack, r, fold.k)
        v = jax.random.normal(jax.random.fold_in(key, i), size, jnp.float32)
        u = jnp.zeros((*stack, fold.n, r), jnp.float32)
        pairs[path] = {"u": u, "v": v * fold.k**-0.5}
    return pairs


@takes(params=TREE)
def attach(params: Any, pairs: dict[str, dict]) -> Any:
    """The params with a leaf that stands for `w + u · v` at each path of `pairs`.

    A function of these params runs under `jm.lift`, which a model's `apply` does by itself. A pair
    may also hold magnitudes "m" (DoRA, `with_magnitudes`) or the values "e" of triples (AdaLoRA),
    or be a bottleneck of `bottlenecks`. `merge` puts pairs into their weights.

    Raises:
        ValueError: a path of `pairs` is not one of `params`, or a pair has other parts or shapes.

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
        [
            attached(name, leaf, pairs[name]) if name in pairs else leaf
            for name, leaf in zip(names, leaves)
        ]
    )


def attached(path: str, leaf: Any, pair: dict) -> Any:
    """The leaf of a weight (an array or encoded) with its pair; `path` is for messages."""
    if set(pair) not in FORMS:
        raise ValueError(f"the pair of {path} has the parts {sorted(pair)}, expected u and v")
    stack, fold = weight_fold(leaf)
    base = leaf if is_encoded(leaf) else Cast(str(leaf.dtype)).encode(leaf)
    if "down" in pair:
        _check_shapes(path, pair, stack, {"down": (None, fold.n), "up": (fold.n, None)})
        return BottleneckArray(base, pair["down"], pair["up"], pair["bias"], fold)
    sizes = {"u": (fold.n, None), "v": (None, fold.k), "m": (fold.n,)}
    _check_shapes(path, pair, stack, {k: sizes[k] for k in pair if k in sizes})
    u = pair["u"] * pair["e"][..., None, :] if "e" in pair else pair["u"]
    whole = SumArray((base, LowRankArray(u, pair["v"], fold, leaf.dtype)))
    if "m" not in pair:
        return whole
    norms = jnp.maximum(row_norms(leaf, u, pair["v"]), jnp.finfo(jnp.float32).tiny)
    return DoraArray(whole, pair["m"] / norms)


def _check_shapes(
    path: str, pair: dict, stack: tuple[int, ...], sizes: dict[str, tuple[int | None, ...]]
) -> None:
    """Refuses parts of other shapes than (*stack, *size), where None is any size."""
    for part, size in sizes.items():
        shape = tuple(pair[part].shape)
        rest = shape[len(stack) :]
        same = len(rest) == len(size) and all(s in (None, r) for s, r in zip(size, rest))
        if shape[: len(stack)] != stack or not same:
            sides = ["rank" if s is None else s for s in (*stack, *size)]
            raise ValueError(
                f"{part} of {path} has the shape {shape}, expected "
                f"({', '.join(map(str, sides))}): an adapter of another model?"
            )
