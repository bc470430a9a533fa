"""Permute: the order of inputs in which n of every m neighbours keep most, Σ w² · E[x²]."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import NM, Chain
from ..codecs.permuted import PermutedArray
from ..codecs.sparse import index_dtype
from ..core.codec import needs_stats
from ..core.fold import Fold
from .solver import Solver

ROWS = 128  # of a matrix, evenly spaced, that an order is judged by


@dataclasses.dataclass(frozen=True)
class Permute(Solver):
    """Reorders the inputs of `NM`, a `Chain` of it or a solver of one, before it encodes.

    `Permute(Refit(SparseGPT(NM(2, 4))))`: groups of m neighbours then hold weights that compete
    less, so that more of what matters stays. Inputs are dealt out by what they carry, then pairs of
    groups swap the two inputs that gain most, `steps` times for all pairs at once. Takes a byte
    an input up to 256 and two up to 65,536, and a product reorders its inputs. Pool and Yu, 2021
    (swaps); Zhang et al., 2024 (dealing).

    Raises:
        TypeError: a codec that does not begin with an `NM`.
        ValueError: fewer steps than 0; no stats where the codec wants them.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3, 0.4])[:, None]
        >>> kept = lambda codec: round(float(abs(codec.encode(w).decode()).sum()), 1)
        >>> kept(jm.NM(2, 4)), kept(Permute(jm.NM(2, 4)))
        (17.7, 30.0)
    """

    steps: int = 64

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"Permute takes at least 0 steps, got {self.steps}")
        self.pattern  # noqa: B018  raises where there is none

    @property
    def calibrated(self) -> bool:
        return needs_stats(self.codec)

    @property
    def pattern(self) -> NM:
        """The codec whose groups the order is for."""
        codec = self.codec
        while isinstance(codec, Solver | Chain):
            codec = codec.codec if isinstance(codec, Solver) else codec.codecs[0]
        if not isinstance(codec, NM):
            raise TypeError(f"Permute takes an NM, or a Chain or solver of one, got {self.codec}")
        return codec

    by_rows = False  # the order is that of all rows

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        energy = jnp.ones(fold.k) if stats is None else stats.diag
        saliency = matrix * matrix * energy[None]
        few = jnp.arange(min(ROWS, fold.n)) * fold.n // min(ROWS, fold.n)
        order = best_order(saliency[few], self.pattern.n, self.pattern.m, self.steps)
        turned = None if stats is None else reordered(stats, order)
        matrix = matrix[:, order]
        if isinstance(self.codec, Solver):
            leaf = self.codec.solve(matrix, fold, dtype, turned)
        else:
            leaf = self.codec.encode(matrix.astype(dtype), (-1,), turned)
            leaf = dataclasses.replace(leaf, fold=fold)
        return PermutedArray(leaf, order.astype(index_dtype(fold.k)))


def reordered(stats: Moments, order: Array) -> Moments:
    """The moments of the inputs in another order."""
    second = stats.second[order]
    second = second if second.ndim == 1 else second[:, order]
    return Moments(second, stats.mean[order], stats.absmax[order], stats.count)


def best_order(saliency: Array, n: int, m: int, steps: int) -> Array:
    """The order (k,) of inputs whose n of every m hold the most of a saliency (rows, k).

    Example:
        >>> import jax.numpy as jnp
        >>> order = best_order(jnp.array([[9.0, 8.0, 0.0, 1.0]]), 1, 2, 0)
        >>> sorted(order.reshape(2, 2).tolist())  # 9 and 8 lie apart
        [[0, 2], [1, 3]]
    """
    k = saliency.shape[1]
    if k % m:
        raise ValueError(f"{n}:{m} takes rows of a multiple of {m}, got {k}")
    groups, pairs = k // m, k // m // 2
    dealt = jnp.argsort(-saliency.sum(0)).reshape(m, groups)
    turn = jnp.arange(m)[:, None] % 2 == 1  # there and back, so that no group gets all the best
    order = jnp.where(turn, dealt[:, ::-1], dealt).T  # (groups, m)

    def swap(order, key):
        mixed = order[jax.random.permutation(key, groups)]
        a, b = mixed[:pairs], mixed[pairs : 2 * pairs]  # (pairs, m)
        mine, other = saliency[:, a], saliency[:, b]  # (rows, pairs, m)
        gain = _with_another(mine, other, n) + _with_another(other, mine, n).mT
        gain = gain.reshape(pairs, m * m)
        best = gain.argmax(-1)
        better = jnp.take_along_axis(gain, best[:, None], 1) > 0  # (pairs, 1)
        i, j = (at[:, None] for at in jnp.divmod(best, m))
        place = jnp.arange(m)[None]
        x, y = jnp.take_along_axis(a, i, 1), jnp.take_along_axis(b, j, 1)
        a, b = jnp.where(better & (place == i), y, a), jnp.where(better & (place == j), x, b)
        return jnp.concatenate([a, b, mixed[2 * pairs :]]), None

    if pairs:
        order = lax.scan(swap, order, jax.random.split(jax.random.key(0), steps))[0]
    return order.reshape(-1)


def _with_another(mine: Array, other: Array, n: int) -> Array:
    """What a group gains when its i-th input becomes the other's j-th: (pairs, m, m), over rows."""
    sizes = jnp.sort(mine, -1)[..., ::-1]
    last, next_ = sizes[..., n - 1 : n], sizes[..., n : n + 1]
    kept = sizes[..., :n].sum(-1, keepdims=True)
    inside = mine >= last  # of equals one is dropped in any case, and both ways give the same
    rest = kept - jnp.where(inside, mine, last)  # the best n − 1 without i
    least = jnp.where(inside, next_, last)  # and the n-th
    new = rest[..., :, None] + jnp.maximum(other[..., None, :], least[..., :, None])
    return (new - kept[..., None]).sum(0)
