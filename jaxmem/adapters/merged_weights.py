"""merge: pairs put into their weights, which stay encoded in the same bytes, with a certificate.

Rounding w + u · v to nearest can lose what was learnt: a pair moves most weights by less than half
a step. Here the codes are chosen so that the outputs on the tuning text are nearest, and the result
says how far the merged model is from the attached one.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..calibration.batches import tuples
from ..calibration.statistics import stats as moments_of
from ..codecs.cast import CastArray
from ..codecs.low_rank import LowRankArray
from ..codecs.sparse import SparseArray
from ..codecs.sum import SumArray
from ..core.arguments import BATCHES, OPTIONAL_MAPPING, TREE, Kind, takes
from ..core.byte_counts import nbytes
from ..core.codec import OPTIONAL_CODEC, needs_stats
from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.lifting import lift
from ..core.matrix_leaf import MatrixLeaf
from ..core.paths import is_whole, paths
from ..solvers.grid_rounding import grid_codec, round_on_grid
from .bottleneck import BottleneckArray
from .lora import attach
from .weight_layers import each_layer, weight_fold

_BATCHES = Kind(f"{BATCHES.expected}, or None", lambda x: x is None or BATCHES.accepts(x))


@dataclasses.dataclass(frozen=True)
class Merged:
    """What `merge` gives: the params, and how near they are to the params with pairs attached.

    `kl` is the mean KL(merged ‖ attached) of the batches' outputs in nats, None without batches;
    `how` says for each path whether it is "exact" (a sum in f32, or a part more), "cast" (a sum in
    fewer bits), "rounded" (to its own grid), "support" (what a sparse leaf has no place for is
    lost) or "codec" (encoded again).
    """

    params: Any
    kl: float | None
    how: dict[str, str]
    nbytes: int
    nbytes_before: int

    def __str__(self) -> str:
        kinds = {kind: list(self.how.values()).count(kind) for kind in sorted({*self.how.values()})}
        kl = "no batches, no certificate" if self.kl is None else f"KL {self.kl:.3g} nats a token"
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"merged: {counts}; {self.nbytes_before:,} to {self.nbytes:,} bytes; {kl}"


@takes(params=TREE, codec=OPTIONAL_CODEC, stats=OPTIONAL_MAPPING, batches=_BATCHES)
def merge(
    params: Any,
    pairs: dict[str, dict],
    *,
    codec: Any = None,
    stats: Mapping[str, Any] | None = None,
    fn: Callable | None = None,
    batches: Iterable[tuple] | None = None,
    most: float | None = None,
) -> Merged:
    """The params with each pair in its weight, of the same forms and bytes as before.

    A dense weight takes the sum, in its dtype. Of a `Sum` with a low-rank part in floats, that
    part takes the pair, and its bytes. Integers, levels and codebooks get codes and
    scales with which the outputs are nearest (GPTQ on the grid that they have, and coordinate
    descent), by the Gram matrices of `stats`, or of `batches` with the pairs attached. A sparse
    leaf keeps its places; what a pair adds elsewhere is lost.
    One layer at a time is decoded.

    Args:
        params: the base, dense or encoded.
        pairs: of `adapters`, after `with_alpha` if it was used; with magnitudes for DoRA.
        codec: encodes the merged weights anew, such as `jm.GPTQ(jm.Int(4, group=64))`, in the place
            of the forms that they have.
        stats: {path: Moments} with "gram" moments, of the tuning text.
        fn: `fn(params, *batch)` gives logits (..., classes), such as `model.apply`.
        batches: tuples of the tuning text; they make `stats`, if missing, and the certificate.
        most: nats a token; a merge with a larger KL(merged ‖ attached) is refused.

    Raises:
        ValueError: the certificate is above `most`, or `most` comes without `fn` and `batches`; a
            weight's form cannot take a pair; stats are wanted; a pair is a bottleneck or of another
            model.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> w, x = (jax.random.normal(jax.random.key(i), (64, 64)) for i in range(2))
        >>> base = {"kernel": jm.Int(4).encode(w)}
        >>> pairs = jm.adapters.adapters(jax.random.key(2), base, 4)
        >>> pairs["kernel"]["u"] = w[:, :4] / 20  # as if it were trained
        >>> fn = lambda params, x: x @ params["kernel"]
        >>> made = merge(base, pairs, fn=fn, batches=[(x,)], most=1.0)
        >>> made.how, made.nbytes == made.nbytes_before
        ({'kernel': 'rounded'}, True)
    """
    batches = None if batches is None else list(tuples(batches, "merge"))
    proved = fn is not None and batches is not None
    if most is not None and not (proved and most > 0):
        raise ValueError(f"most is {most}: expected a number above 0, with fn and batches")
    attached = attach(params, pairs)
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    wholes = dict(zip(paths(params), tree.flatten_up_to(attached)))
    if bottleneck := [p for p in pairs if isinstance(wholes[p], BottleneckArray)]:
        raise ValueError(f"{bottleneck[0]} has a bottleneck adapter, which no weight can take")
    by_path = dict(zip(paths(params), leaves))
    wants = lambda leaf: needs_stats(codec) if codec else grid_codec(leaf) is not None
    wanted = [path for path in pairs if wants(by_path[path])]
    if wanted and stats is None and proved:
        stats = moments_of(fn, attached, batches)
    if missing := [path for path in wanted if path not in (stats or {})]:
        raise ValueError(
            f"merge wants the stats of {missing[0]}, or fn and batches: it is rounded by them"
        )
    how = {}
    for path in pairs:
        fed = (stats or {}).get(path)
        try:
            by_path[path], how[path] = _merged(by_path[path], wholes[path], codec, fed)
        except (ValueError, TypeError, NotImplementedError) as e:
            raise ValueError(f"{path} cannot take its pair: {e}") from e
    merged = tree.unflatten(by_path.values())
    kl = _divergence(fn, merged, attached, batches) if proved else None
    if most is not None and not kl <= most:
        raise ValueError(
            f"the merged model is {kl:.4g} nats a token from the attached one, more than {most}: "
            "keep the pairs attached, or give the base more bits"
        )
    return Merged(merged, kl, how, nbytes(merged), nbytes(params))


def _merged(leaf: Any, whole: Any, codec: Any, fed: Any) -> tuple[Any, str]:
    """(the leaf of `leaf` and its pair, how it was made)."""
    if codec is not None:
        return _encoded_again(leaf, whole, codec, fed), "codec"
    if not is_encoded(leaf):
        dense = each_layer(lambda x: x.decode(), leaf.ndim - 2, whole)
        return dense, "exact" if jnp.finfo(dense.dtype).bits >= 32 else "cast"
    if isinstance(leaf, CastArray):
        dense = each_layer(lambda x: x.astype(jnp.float32).decode(), leaf.ndim - 2, whole)
        return dataclasses.replace(leaf, values=dense.astype(leaf.values.dtype)), "cast"
    if isinstance(leaf, SumArray) and isinstance(whole, SumArray):
        return _in_low_rank(leaf, whole.parts[-1]), "exact"
    if isinstance(leaf, SparseArray):
        return each_layer(_on_support, len(leaf.batch_shape), (leaf, whole)), "support"
    if grid_codec(leaf) is None:
        raise ValueError(f"{type(leaf).__name__} has no codes to choose; give codec=")
    if fed.second.ndim == fed.mean.ndim:
        raise ValueError('it wants stats of moments="gram", got "diag"')

    def one(args: tuple[Any, Any, Any]) -> Any:
        leaf, whole, gram = args
        return round_on_grid(leaf, _matrix(whole, leaf.fold), gram)

    return each_layer(one, len(leaf.batch_shape), (leaf, whole, fed.second)), "rounded"


def _encoded_again(leaf: Any, whole: Any, codec: Any, fed: Any) -> Any:
    stack, fold = weight_fold(leaf)
    sides = range(-len(fold.order), 0)
    axes = tuple(a for a, place in zip(sides, fold.order) if place >= -len(fold.summed))
    dense = lambda args: codec.encode(args[0].decode(), axes, args[1])
    return each_layer(dense, len(stack), (whole, fed))


def _in_low_rank(leaf: SumArray, pair: LowRankArray) -> SumArray:
    """The sum whose low-rank part has the pair's columns and rows, too."""
    place = next((i for i, p in enumerate(leaf.parts) if isinstance(p, LowRankArray)), None)
    if place is None or is_encoded(leaf.parts[place].u) or is_encoded(leaf.parts[place].v):
        raise ValueError("a sum takes a pair into a low-rank part of floats; give codec=")
    part = leaf.parts[place]
    u = jnp.concatenate([part.u.astype(jnp.float32), pair.u], -1)
    v = jnp.concatenate([part.v.astype(jnp.float32), pair.v], -2)
    parts = list(leaf.parts)
    parts[place] = dataclasses.replace(part, u=u, v=v)
    return SumArray(tuple(parts))


def _on_support(args: tuple[SparseArray, Any]) -> SparseArray:
    """The sparse leaf with the numbers of `whole` at its places."""
    leaf, whole = args
    if is_encoded(leaf.values):
        raise ValueError("its numbers are encoded; give codec=")
    filled = lambda values: dataclasses.replace(leaf, values=values).rows()
    ones = jnp.ones(leaf.values.shape, jnp.float32)
    rows, back = jax.vjp(filled, ones)
    counts = back(rows)[0]  # how often a place is held: padding holds none
    values = back(_matrix(whole, leaf.fold))[0] / jnp.maximum(counts, 1)
    values = jnp.where(counts > 0, values, 0).astype(leaf.values.dtype)
    return dataclasses.replace(leaf, values=values)


def _matrix(whole: Any, fold: Fold) -> jax.Array:
    """The matrix (n, k) in f32 of an unstacked leaf."""
    dense = whole.astype(jnp.float32)
    if isinstance(dense, MatrixLeaf):
        return dense.rows()
    sides = range(-len(fold.order), 0)
    axes = tuple(a for a, place in zip(sides, fold.order) if place >= -len(fold.summed))
    return Fold.from_weight(dense.decode(), axes)[0]


def _divergence(fn: Callable, merged: Any, attached: Any, batches: list[tuple]) -> float:
    """The mean KL(merged ‖ attached) over the rows of the outputs, in nats."""

    @jax.jit
    def divergence(merged, attached, *batch):
        log_p, log_q = (
            jax.nn.log_softmax(lift(fn)(params, *batch).astype(jnp.float32))
            for params in (merged, attached)
        )
        kl = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
        return kl.sum(), kl.size

    sums = [divergence(merged, attached, *batch) for batch in batches]
    return float(sum(float(kl) for kl, _ in sums) / sum(int(size) for _, size in sums))
