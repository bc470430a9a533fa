"""QERA and LoftQ: w ≈ Q(w) + u · v, pairs that start as a correction of the encoded base."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..codecs import LowRank
from ..core.arguments import OPTIONAL_MAPPING, REGEX, TREE, takes
from ..core.codec import CODEC
from ..core.layer_encoding import encode_layer
from ..core.leaf import is_encoded
from ..core.paths import is_whole, paths
from ..core.remainder import Remainder
from .rank_rules import RANK, ranks_of
from .weight_layers import each_layer, weight_fold


@takes(params=TREE, dense=TREE, rank=RANK, where=REGEX, stats=OPTIONAL_MAPPING)
def qera(
    params: Any,
    dense: Any,
    rank: int | Mapping[str, int],
    where: str = ".*kernel",
    *,
    stats: Mapping[str, Any] | None = None,
) -> dict[str, dict]:
    """{path: {"u", "v"}}: the pairs of each rank that correct an encoded base most.

    With `stats` of what the weights are fed (`jm.stats`), the outputs are nearest to those of the
    dense weights (Zhang et al., 2024: QERA); without, the weights are.

    Args:
        params: the frozen base, encoded in any way.
        dense: the weights that it was encoded from.
        rank: a number or {regex: number}, as of `adapters`.
        where: the weights that get a pair.
        stats: {path: Moments}.

    Raises:
        ValueError: `dense` has other paths; `stats` lack a weight; or as `adapters`.

    Example:
        >>> import jax, jaxmem as jm
        >>> dense = {"kernel": jax.random.normal(jax.random.key(0), (64, 32))}
        >>> base = {"kernel": jm.Int(3).encode(dense["kernel"])}
        >>> corrected = jm.decode(jm.adapters.attach(base, qera(base, dense, 8)))
        >>> error = lambda params: float(((params["kernel"] - dense["kernel"]) ** 2).sum())
        >>> error(corrected) < 0.7 * error(jm.decode(base))
        True
    """
    by_path = _by_path(params)
    originals = _by_path(dense)
    if missing := sorted(set(by_path) - set(originals)):
        raise ValueError(f"dense has no {missing[0]}, expected the weights that params encode")
    pairs = {}
    for path, r in ranks_of(by_path, rank, where).items():
        base, fold = by_path[path], weight_fold(by_path[path])[1]
        axes = tuple(a for a, place in zip(range(-len(fold.order), 0), fold.order)
                     if place >= -len(fold.summed))  # fmt: skip

        def correction(args: Any, r: int = r, axes: tuple[int, ...] = axes) -> Any:
            w, leaf, fed = args
            base = (leaf,) if is_encoded(leaf) else ()
            w = w.astype(jnp.float32) - (0 if base else leaf.astype(jnp.float32))
            return LowRank(r).encode_by_slices(Remainder(w, base, axes, w.dtype), axes, fed)

        fed = None if stats is None else _fed(stats, path)
        depth = originals[path].ndim - len(fold.order)
        low_rank = each_layer(correction, depth, (originals[path], base, fed))
        pairs[path] = {"u": low_rank.u, "v": low_rank.v}
    return pairs


@takes(params=TREE, codec=CODEC, rank=RANK, where=REGEX, stats=OPTIONAL_MAPPING)
def loftq(
    params: Any,
    codec: Any,
    rank: int | Mapping[str, int],
    where: str = ".*kernel",
    *,
    rounds: int = 1,
    stats: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, dict]]:
    """(the params with encoded kernels, the pairs): Q = codec(w − u · v) and u · v ≈ w − Q in turn.

    Li et al., 2023 (LoftQ). One round encodes the weights and finds pairs for the error. Of more,
    the one with the least error of the weights is kept.

    Args:
        params: dense weights.
        codec: of the weights that get a pair.
        rank: a number or {regex: number}, as of `adapters`.
        where: the weights that get a pair.
        rounds: how often a weight is encoded.
        stats: {path: Moments} for a codec that wants them, and for the pairs, as of `qera`.

    Raises:
        ValueError: a weight is encoded; `rounds` is below 1; or as `adapters`.

    Example:
        >>> import jax, jaxmem as jm
        >>> dense = {"kernel": jax.random.normal(jax.random.key(0), (64, 32))}
        >>> def error(rounds):
        ...     base, pairs = loftq(dense, jm.Int(2), 8, rounds=rounds)
        ...     found = jm.adapters.attach(base, pairs)["kernel"].decode()
        ...     return float(((found - dense["kernel"]) ** 2).sum())
        >>> error(3) <= error(1)
        True
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    names, pairs = paths(params), {}
    for path, r in ranks_of(dict(zip(names, leaves)), rank, where).items():
        i = names.index(path)
        if is_encoded(leaves[i]):
            raise ValueError(f"{path} is encoded, expected a dense weight, which LoftQ encodes")

        def in_turn(args: Any, r: int = r) -> Any:
            w, fed = args
            wide, float32 = w.astype(jnp.float32), jnp.dtype("float32")
            best, least, correction = None, None, ()
            for _ in range(rounds):
                rest = Remainder(w, correction, (-2,), w.dtype) if correction else w
                base = encode_layer(codec, rest, (-2,), fed)
                error = Remainder(wide, (base,), (-2,), float32)
                correction = (LowRank(r).encode_by_slices(error, (-2,), fed),)
                left = Remainder(wide, (base, *correction), (-2,), float32).dense()
                found, size = (base, *correction), jnp.square(left).sum()
                better = True if best is None else size < least
                keep = lambda new, old, better=better: jnp.where(better, new, old)
                best = found if best is None else jax.tree.map(keep, found, best)
                least = size if least is None else jnp.minimum(size, least)
            return best

        fed = None if stats is None else _fed(stats, path)
        leaves[i], low_rank = each_layer(in_turn, leaves[i].ndim - 2, (leaves[i], fed))
        pairs[path] = {"u": low_rank.u, "v": low_rank.v}
    return tree.unflatten(leaves), pairs


def _by_path(params: Any) -> dict[str, Any]:
    return dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))


def _fed(stats: Mapping[str, Any], path: str) -> Any:
    if path not in stats:
        raise ValueError(f"stats have no {path}, expected the moments of each weight with a pair")
    return stats[path]
