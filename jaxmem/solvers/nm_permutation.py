"""Permute: an order of inputs in which n of every m neighbours keep the most of Σ w² · E[x²]."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import NM, Chain
from ..codecs.permuted import PermutedArray
from ..codecs.sparse import index_dtype
from ..core.arguments import check_fields
from ..core.codec import CODEC, needs_stats
from ..core.fold import Fold, matrix_shape
from ..core.mapped_rows import MappedRows
from ..core.row_slices import first_kept_axis, slice_along
from .solver import Solver

SCORED_ROWS = 128  # rows of a matrix, evenly spaced, from which the order is chosen


@dataclasses.dataclass(frozen=True)
class Permute(Solver):
    """Reorders a weight's inputs, then encodes with `NM`, a `Chain` of it, or a solver of either.

    Example: `Permute(Refit(SparseGPT(NM(2, 4))))`. The important weights are spread evenly over the
    groups of m neighbours, so that more of them are kept. First, inputs are dealt out to groups by
    their total saliency. Then groups are paired, and each pair swaps the two inputs whose exchange
    gains most; `steps` times, for all pairs at once. The order takes a byte an input up to 256
    inputs, two up to 65,536, and a product reorders its inputs. Pool and Yu, 2021 (swaps); Zhang et
    al., 2024 (dealing).

    Raises:
        TypeError: `codec` does not begin with an `NM`.
        ValueError: `steps` is negative; the codec needs stats and there are none.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3, 0.4])[:, None]
        >>> kept = lambda codec: round(float(abs(codec.encode(w).decode()).sum()), 1)
        >>> kept(jm.NM(2, 4)), kept(Permute(jm.NM(2, 4)))
        (17.7, 30.0)
    """

    steps: int = 64

    def __post_init__(self):
        check_fields(self, codec=CODEC)
        if self.steps < 0:
            raise ValueError(f"Permute takes at least 0 steps, got {self.steps}")
        self.pattern  # noqa: B018  raises if there is none

    @property
    def calibrated(self) -> bool:
        return needs_stats(self.codec)

    @property
    def pattern(self) -> NM:
        """The `NM` whose groups the order is for."""
        codec = self.codec
        while isinstance(codec, Solver | Chain):
            codec = codec.codec if isinstance(codec, Solver) else codec.codecs[0]
        if not isinstance(codec, NM):
            raise TypeError(f"Permute takes an NM, or a Chain or solver of one, got {self.codec}")
        return codec

    by_rows = False  # one order for all rows
    rows_apart = True
    sequential = property(lambda self: getattr(self.codec, "sequential", False))

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        return self.row_solver(matrix, (-1,), stats)(matrix, fold, dtype)

    def row_solver(self, w, axes, stats):
        """`solve` of some rows, given the order, and what the solver inside computes of it."""
        sample = _sample(w, axes).astype(jnp.float32)
        energy = jnp.ones(sample.shape[1]) if stats is None else stats.diag
        saliency = sample * sample * energy[None]
        order = best_order(saliency, self.pattern.n, self.pattern.m, self.steps)
        stats = None if stats is None else reordered(stats, order)
        inner = None

        def permuted(rows):
            matrix, fold = Fold.from_weight(rows, axes)
            return fold.unfold(matrix[:, order])

        if isinstance(self.codec, Solver):
            inner = self.codec.row_solver(MappedRows(w, permuted), axes, stats)
        return functools.partial(self._solve, inner=inner, order=order, stats=stats)

    def _solve(self, matrix, fold, dtype, inner, order, stats):
        """The leaf of rows (n, k) in f32, given the order (k,) and the stats in that order."""
        matrix = matrix[:, order]
        if inner is not None:
            leaf = inner(matrix, fold, dtype)
        else:
            leaf = self.codec.encode(matrix.astype(dtype), (-1,), stats)
            leaf = dataclasses.replace(leaf, fold=fold)
        return PermutedArray(leaf, order.astype(index_dtype(fold.k)))


def _sample(w: Any, axes: tuple[int, ...]) -> Array:
    """At most `SCORED_ROWS` rows (rows, k) of one layer `w`, evenly spaced."""
    n = matrix_shape(w, axes)[-2]
    index = jnp.arange(min(SCORED_ROWS, n)) * n // min(SCORED_ROWS, n)
    if not hasattr(w, "slice_along"):
        return Fold.from_weight(w, axes)[0][index]
    axis, rows = first_kept_axis(w, axes)

    def row(i):
        matrix, _ = Fold.from_weight(slice_along(w, i // rows, 1, axis), axes)
        return matrix[i % rows]

    return lax.map(row, index)


def reordered(stats: Moments, order: Array) -> Moments:
    """The moments of the inputs in the order (k,)."""
    second = stats.second[order]
    second = second if second.ndim == 1 else second[:, order]
    return Moments(second, stats.mean[order], stats.absmax[order], stats.count)


def best_order(saliency: Array, n: int, m: int, steps: int) -> Array:
    """The order (k,) of inputs in which the best n of every m hold the most saliency (rows, k).

    Example:
        >>> import jax.numpy as jnp
        >>> order = best_order(jnp.array([[9.0, 8.0, 0.0, 1.0]]), 1, 2, 0)
        >>> sorted(order.reshape(2, 2).tolist())  # 9 and 8 are in different groups
        [[0, 2], [1, 3]]
    """
    k = saliency.shape[1]
    if k % m:
        raise ValueError(f"{n}:{m} takes rows of a multiple of {m}, got {k}")
    groups, pairs = k // m, k // m // 2
    dealt = jnp.argsort(-saliency.sum(0)).reshape(m, groups)
    # every second round of dealing goes backwards, so that no group gets the best of all rounds
    backwards = jnp.arange(m)[:, None] % 2 == 1
    order = jnp.where(backwards, dealt[:, ::-1], dealt).T  # (groups, m)

    def swap(order, key):
        # random pairs of groups a, b (pairs, m)
        shuffled = order[jax.random.permutation(key, groups)]
        a, b = shuffled[:pairs], shuffled[pairs : 2 * pairs]
        # the gain of both groups for each exchange of input i of a and input j of b
        saliency_a, saliency_b = saliency[:, a], saliency[:, b]  # (rows, pairs, m)
        gain = _gain(saliency_a, saliency_b, n) + _gain(saliency_b, saliency_a, n).mT
        gain = gain.reshape(pairs, m * m)
        # exchange the best two, where that gains anything
        best = gain.argmax(-1)
        better = jnp.take_along_axis(gain, best[:, None], 1) > 0  # (pairs, 1)
        i, j = (index[:, None] for index in jnp.divmod(best, m))
        position = jnp.arange(m)[None]
        x, y = jnp.take_along_axis(a, i, 1), jnp.take_along_axis(b, j, 1)
        a, b = jnp.where(better & (position == i), y, a), jnp.where(better & (position == j), x, b)
        return jnp.concatenate([a, b, shuffled[2 * pairs :]]), None

    if pairs:
        order = lax.scan(swap, order, jax.random.split(jax.random.key(0), steps))[0]
    return order.reshape(-1)


def _gain(group: Array, other: Array, n: int) -> Array:
    """What a group's kept saliency gains if its input i becomes the other group's j: (pairs, m, m).

    `group` and `other` are saliencies (rows, pairs, m); the gain is summed over rows.
    """
    falling = jnp.sort(group, -1)[..., ::-1]
    nth, next_ = falling[..., n - 1 : n], falling[..., n : n + 1]
    kept = falling[..., :n].sum(-1, keepdims=True)
    # among inputs equal to the n-th it does not matter which ones count as kept
    is_kept = group >= nth
    without = kept - jnp.where(is_kept, group, nth)  # the best n − 1 inputs other than i
    last = jnp.where(is_kept, next_, nth)  # and the n-th best
    new = without[..., :, None] + jnp.maximum(other[..., None, :], last[..., :, None])
    return (new - kept[..., None]).sum(0)
