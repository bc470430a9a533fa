"""bits_and_ranks: one number of bytes, divided among the bits of weights and the ranks of pairs.

E‖x · (Q(w) − w)‖² is what a codec loses of a weight, E‖x · (u · v − (u · v)ᵣ)‖² what rank r loses
of a pair that was trained with a larger one: both in the outputs, so that they add up.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..adapters.truncated_rank import directions
from ..adapters.weight_layers import each_layer
from ..compression.knapsack import least_loss
from ..compression.plan import Plan
from ..core.arguments import BYTES, INTEGERS, MAPPING, OPTIONAL_MAPPING, TREE, takes
from ..core.byte_counts import nbytes as bytes_of
from ..core.codec import CODECS
from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.paths import is_whole, paths

NUMBER_BYTES = 4  # of a trained pair, in f32


@takes(
    params=TREE,
    nbytes=BYTES,
    codecs=CODECS,
    ranks=INTEGERS,
    stats=MAPPING,
    sensitivity=OPTIONAL_MAPPING,
)
def bits_and_ranks(
    params: Any,
    pairs: dict[str, dict],
    nbytes: int,
    *,
    codecs: Sequence[Any],
    ranks: Sequence[int],
    stats: Mapping[str, Any],
    sensitivity: Mapping[str, float] | None = None,
) -> tuple[Plan, dict[str, int]]:
    """(a plan for the weights with pairs, {path: rank}), whose bytes add up to at most `nbytes`.

    `jm.encode(params, plan)` and `jm.adapters.truncate(pairs, ranks, stats=stats)` make the base
    and the pairs, in f32; a weight of rank 0 has no pair and is not in the ranks. Other weights
    stay as they are, and count. Layers of a stack get the same codec and rank.

    Args:
        params: dense weights.
        pairs: trained with the largest rank, for a short time, on the dense or an encoded base.
        nbytes: of all weights and pairs.
        codecs: to choose from, such as `[jm.Int(3, group=64), jm.Int(4, group=64)]`.
        ranks: to choose from, such as `[0, 4, 8, 16]`.
        stats: {path: Moments} of what the weights are fed.
        sensitivity: {path: what an error of that weight's outputs costs}, such as means of
            `jm.fisher` divided by E‖x · w‖²; by default all cost the same.

    Raises:
        ValueError: nothing fits (the message has the fewest bytes); a weight is encoded; a rank is
            negative or above a pair's; `stats` lack a path.
        TypeError: `codecs` are no codecs.
        ImportError: scipy is missing.

    Example:
        >>> import jax, jaxmem as jm
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> params = {n: jax.random.normal(k, (64, 64)) for n, k in zip("ab", keys)}
        >>> pairs = jm.adapters.adapters(keys[2], params, 8, ".*")
        >>> pairs["a"]["u"] += jax.random.normal(keys[3], (64, 8))  # only a has learnt something
        >>> fn = lambda p, x: x @ p["a"] + x @ p["b"]
        >>> stats = jm.stats(fn, params, [(jax.random.normal(keys[3], (128, 64)),)])
        >>> choices = {"codecs": [jm.Int(2), jm.Int(4)], "ranks": [0, 4, 8], "stats": stats}
        >>> plan, ranks = bits_and_ranks(params, pairs, 8_600, **choices)
        >>> plan["b"], ranks
        (Int(bits=4, group=None, symmetric=True), {'a': 8})
    """
    if not codecs or not ranks or min(ranks) < 0:
        raise ValueError(
            f"codecs {codecs!r} and ranks {ranks!r}, expected some, and no rank below 0"
        )
    if unknown := sorted(set(sensitivity or {}) - set(pairs)):
        raise ValueError(f"sensitivity names {unknown[0]!r}, which is no pair")
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    choices = [(codec, rank) for codec in codecs for rank in ranks]
    sizes, losses = [], []
    for path, pair in pairs.items():
        leaf = leaves.get(path)
        if leaf is None or is_encoded(leaf) or path not in stats:
            what = (
                "no weight" if leaf is None else "encoded" if is_encoded(leaf) else "without stats"
            )
            raise ValueError(f"{path} is {what}, expected a dense weight with stats")
        if max(ranks) > pair["u"].shape[-1]:
            own = pair["u"].shape[-1]
            raise ValueError(f"the rank of {path}'s pair is {own}, not {max(ranks)}")
        numbers = (pair["u"].size + pair["v"].size) // pair["u"].shape[-1]
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        size = [bytes_of(jax.eval_shape(codec.encode, shape)) for codec in codecs]
        base, lost = (np.asarray(x) for x in _losses(leaf, pair, stats[path].second, codecs))
        cost = (sensitivity or {}).get(path, 1.0)
        sizes.append(np.array([s + r * numbers * NUMBER_BYTES for s in size for r in ranks]))
        losses.append(cost * np.array([b + lost[r] for b in base for r in ranks]))
    rest = sum(bytes_of(leaf) for path, leaf in leaves.items() if path not in pairs)
    least = rest + sum(int(s.min()) for s in sizes)
    if least > nbytes:
        raise ValueError(f"nothing fits {nbytes:,} bytes: the smallest choice takes {least:,}")
    chosen = [choices[i] for i in least_loss(sizes, losses, int(nbytes - rest))]
    plan = Plan({path: codec for path, (codec, _) in zip(pairs, chosen)})
    return plan, {path: rank for path, (_, rank) in zip(pairs, chosen) if rank}


def _losses(leaf: Array, pair: dict, second: Array, codecs: Sequence[Any]) -> tuple[Array, Array]:
    """(what each codec loses (codecs,), what each rank from 0 on loses (r + 1,)), of all layers."""

    def one(args: Any) -> tuple[Array, Array]:
        w, u, v, second = args
        errors = []
        for codec in codecs:
            error = codec.encode(w, (-2,)).astype(jnp.float32).decode() - w.astype(jnp.float32)
            matrix = Fold.from_weight(error, (-2,))[0]
            fed = matrix @ second if second.ndim == 2 else matrix * second[None]
            errors.append((fed * matrix).sum())
        values = directions(u, v, second)[2]  # least first
        lost = jnp.concatenate([jnp.zeros(1), jnp.cumsum(values)])[::-1]
        return jnp.stack(errors), lost

    depth = leaf.ndim - 2
    found = each_layer(one, depth, (leaf, pair["u"], pair["v"], second))
    return tuple(x.reshape(-1, x.shape[-1]).sum(0) for x in found)
