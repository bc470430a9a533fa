"""static: activation ranges that are fixed by calibration instead of measured for each token.

A leaf counts its inputs x in bins of |x|, eight bins per octave. The counts are returned as the
cotangent of a zero probe, as `stats` returns moments.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs.dynamic_quantization import DynamicArray
from ..core.arguments import BATCHES, FUNCTION, TREE, takes
from ..core.leaf import decode, is_encoded
from ..core.lifting import lift
from ..core.matrix_leaf import MatrixLeafWrapper
from ..core.paths import paths
from .batches import tuples

Method = Literal["minmax", "percentile", "mse"]
T = TypeVar("T")

_PER_OCTAVE, _LEAST, _MOST = 8, -126, 128  # from 2^-126 to 2^128: all of f32
_BINS = (_MOST - _LEAST) * _PER_OCTAVE
_SHARE = 0.9999  # of the numbers on each side of zero, the share that "percentile" keeps
_SHRINKS = 64  # shares of the full range that "mse" compares


@takes(tree=TREE, fn=FUNCTION, batches=BATCHES)
def static(tree: T, fn: Callable, batches: Iterable[tuple], *, method: Method = "mse") -> T:
    """The encoded tree with the ranges of all `Dynamic` leaves fixed, from `fn(tree, *batch)`.

    "minmax" keeps the whole range, "percentile" 99.99 % of the numbers on each side of zero, and
    "mse" the share of the whole range with the least squared error of rounding and clipping (Nagel
    et al., 2021). A range takes 8 bytes for each slice of a stack, and saves two reductions per
    product. A leaf inside another leaf (of `Smooth`, `Sum`, or a stack by layers) gets the range of
    its own inputs. A leaf that is multiplied more than once per call may get a range up to 9 % too
    wide.

    Raises:
        ValueError: `method` is unknown, there is no batch, or the tree has no leaf of `Dynamic`;
            the inputs of a leaf hold NaN or infinity, or no batch multiplies it (the message has
            its path).
        TypeError: a batch is no tuple.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> enc, x = {"w": jm.Dynamic(jm.Int(8)).encode(jnp.eye(4))}, jnp.linspace(-1, 3, 8)
        >>> fixed = jm.static(enc, lambda p, x: x @ p["w"], [(x.reshape(2, 4),)], method="minmax")
        >>> fixed["w"].limits.tolist()
        [-1.0, 3.0]
    """
    if method not in ("minmax", "percentile", "mse"):
        raise ValueError(f"method is {method!r}, expected minmax, percentile or mse")
    weights = zip(paths(tree), jax.tree.leaves(tree, is_leaf=is_encoded))
    names = [path for path, w in weights for part in _parts(w)[0] if _is_dynamic(part)]
    if not names:
        raise ValueError("static found no leaf of Dynamic in the tree")
    total = None
    for batch in tuples(batches, "static"):
        seen = _count(fn, tree, batch)
        total = seen if total is None else list(map(_joined, total, seen))
    for path, counts in zip(names, total):
        if not bool(jnp.isfinite(counts.far).all()):
            raise ValueError(f"{path}: what it multiplies holds NaN or infinity, expected numbers")
        if not bool(counts.bins.any((-2, -1)).all()):
            raise ValueError(f"{path}: no batch multiplies it on the way to what fn returns")
    return _replaced(tree, lambda w, c: replace(w, limits=_limits(c, method, w.to)), total)


def _is_dynamic(x: Any) -> bool:
    return isinstance(x, DynamicArray)


def _parts(tree: Any) -> tuple[list, Any]:
    """(the arrays and, at any depth, the leaves of `Dynamic`; the tree's structure)."""
    return jax.tree.flatten(tree, is_leaf=_is_dynamic)


def _replaced(tree: Any, fn: Callable, others: list) -> Any:
    """The tree with each leaf of `Dynamic` replaced by fn(leaf, its item of `others`)."""
    (parts, structure), it = _parts(tree), iter(others)
    return structure.unflatten([fn(w, next(it)) if _is_dynamic(w) else w for w in parts])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Counts:
    """f32 counts of |x| in each bin, and the largest |x|; both for each side of zero."""

    bins: Array  # (*stack, 2, bins)
    far: Array  # (*stack, 2)


@functools.partial(jax.jit, static_argnums=0)
def _count(fn: Callable, tree: Any, batch: tuple) -> list[_Counts]:
    """The counts of one batch for each leaf of `Dynamic`."""
    zeros = lambda stack: _Counts(jnp.zeros((*stack, 2, _BINS)), jnp.zeros((*stack, 2)))

    def loss(probes):
        counting = _replaced(tree, lambda w, probe: _Counting(w.inner, probe), probes)
        outs = jax.tree.leaves(decode(lift(fn)(counting, *batch)))
        outs = [y for y in outs if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(jnp.sum(y.astype(jnp.float32)) for y in outs)

    return jax.grad(loss)([zeros(w.batch_shape) for w in _parts(tree)[0] if _is_dynamic(w)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Counting(MatrixLeafWrapper):
    """A weight whose probe's cotangent is the counts of the weight's inputs."""

    inner: Any
    probe: _Counts

    def stop_gradient(self):
        return self  # the counts are cotangents, also those of frozen weights

    def matmul(self, x, precision=None):
        return _tap(self.inner.matmul(x, precision), x, self.probe)


@jax.custom_vjp
def _tap(y, x, probe):
    """y, with the counts of x as the cotangent of `probe`."""
    return y


def _tap_fwd(y, x, probe):
    return y, x


def _tap_bwd(x, ct):
    zero = jnp.zeros_like(x)
    x = x.astype(jnp.float32).reshape(-1)
    at = jnp.floor((jnp.log2(jnp.abs(x) + 2.0**_LEAST) - _LEAST) * _PER_OCTAVE)
    at = jnp.clip(at, 0, _BINS - 1).astype(jnp.int32)
    bins = jnp.zeros((2, _BINS)).at[(x > 0).astype(jnp.int32), at].add(1.0)
    far = jnp.stack([-x.min(initial=0.0), x.max(initial=0.0)])
    return ct, zero, _Counts(bins, far)


_tap.defvjp(_tap_fwd, _tap_bwd)


def _joined(a: _Counts, b: _Counts) -> _Counts:
    """The counts of two batches together."""
    return _Counts(a.bins + b.bins, jnp.maximum(a.far, b.far))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _limits(counts: _Counts, method: Method, to: str) -> Array:
    """(*stack, 2): the least and the largest x of the range."""
    edges = 2.0 ** (_LEAST + (jnp.arange(_BINS, dtype=jnp.float32) + 1) / _PER_OCTAVE)
    edges = jnp.broadcast_to(edges, counts.bins.shape)
    # `far` is a cotangent: a leaf that is multiplied twice has the sum of both uses' largest |x|.
    # The largest |x| is no larger than the edge of the last bin that is not empty.
    far = jnp.minimum(counts.far, jnp.where(counts.bins > 0, edges, 0.0).max(-1))
    if method == "percentile":
        sums = counts.bins.sum(-1, keepdims=True)
        share = (jnp.cumsum(counts.bins, -1) - sums) / sums.sum(-2, keepdims=True) + 1
        far = jnp.minimum(far, jnp.where(share >= _SHARE, edges, jnp.inf).min(-1))
    if method == "mse":
        far = far * _best_share(counts.bins, far, edges, to)[..., None]
    return jnp.stack([-far[..., 0], far[..., 1]], -1)


def _best_share(bins: Array, far: Array, edges: Array, to: str) -> Array:
    """(*stack,): the share of the full range that has the least squared error.

    `bins` and `edges` are (*stack, 2, bins), `far` is (*stack, 2).
    """
    largest = far.max(-1, keepdims=True)
    unit = jnp.where(largest > 0, largest, 1.0)  # in this unit squares do not overflow or vanish
    middles = edges * 2.0 ** (-0.5 / _PER_OCTAVE)
    middles = jnp.minimum(middles, largest[..., None]) / unit[..., None]  # (*stack, 2, bins)
    far = far / unit

    def error(share):
        lost = jnp.maximum(middles - share * far[..., None], 0.0)
        clipped = (bins * lost**2).sum((-2, -1))
        if to != "int8":  # the rounding error of a float is relative: it does not depend on share
            return clipped
        return clipped + bins.sum((-2, -1)) * (share * far.sum(-1) / 255) ** 2 / 12

    # On equal errors, the largest share is taken.
    shares = (jnp.arange(_SHRINKS, dtype=jnp.float32) + 1) / _SHRINKS
    return shares[jnp.argmin(jax.lax.map(error, shares)[::-1], 0) * -1 - 1]
