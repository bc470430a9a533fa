"""static: the ranges of activations, fixed by calibration instead of measured for each token.

A leaf counts what it multiplies into bins of |x|, eight to an octave, and returns the counts as the
cotangent of a zero probe, as `stats` does its moments.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from .codecs.activating import DynamicArray
from .folding import Wrapped
from .leaf import decode, is_encoded
from .lifting import lift
from .select import paths

Method = Literal["minmax", "percentile", "mse"]
T = TypeVar("T")

_BINS, _PER_OCTAVE, _LEAST = 256, 8, -20  # from 2^-20 to 2^12
_SHARE = 0.9999  # what the percentile keeps, on each side of zero
_SHRINKS = 64


def static(tree: T, fn: Callable, batches: Iterable[tuple], *, method: Method = "mse") -> T:
    """The encoded tree with every range of `Dynamic` fixed to what `fn(tree, *batch)` shows.

    "minmax" keeps all, "percentile" 99.99 % of each side, "mse" the share of the full range with
    the least squared error of rounding and clipping (Nagel et al., 2021). A range takes 8 bytes for
    each slice of a stack, and saves two reductions a product.

    Raises:
        ValueError: an unknown method, no batch, or a tree without a leaf of `Dynamic`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> enc, x = {"w": jm.Dynamic(jm.Int(8)).encode(jnp.eye(4))}, jnp.linspace(-1, 3, 8)
        >>> fixed = jm.static(enc, lambda p, x: x @ p["w"], [(x.reshape(2, 4),)], method="minmax")
        >>> fixed["w"].limits.tolist()
        [-1.0, 3.0]
    """
    if method not in ("minmax", "percentile", "mse"):
        raise ValueError(f"method is {method!r}, expected minmax, percentile or mse")
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_encoded)
    names = paths(tree)
    own = {p: w for p, w in zip(names, leaves) if isinstance(w, DynamicArray)}
    if not own:
        raise ValueError("static found no leaf of Dynamic in the tree")
    total = None
    for batch in batches:
        seen = _count(fn, tree, batch)
        total = seen if total is None else {p: _joined(total[p], seen[p]) for p in seen}
    if total is None:
        raise ValueError("static takes at least one batch, got none")
    fix = lambda path, leaf: dataclasses.replace(leaf, limits=_limits(total[path], method, leaf.to))
    return structure.unflatten([fix(p, w) if p in own else w for p, w in zip(names, leaves)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Counts:
    """How often |x| was in each bin, on each side of zero, and how far it went: f32."""

    bins: Array  # (*stack, 2, bins)
    far: Array  # (*stack, 2)


@functools.partial(jax.jit, static_argnums=0)
def _count(fn, tree, batch):
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_encoded)
    named = list(zip(paths(tree), leaves))
    own = {path: leaf for path, leaf in named if isinstance(leaf, DynamicArray)}
    shapes = lambda lead: _Counts(jnp.zeros((*lead, 2, _BINS)), jnp.zeros((*lead, 2)))

    def loss(probes):
        held = [_Counting(w.inner, probes[p]) if p in own else w for p, w in named]
        outs = jax.tree.leaves(decode(lift(fn)(structure.unflatten(held), *batch)))
        outs = [y for y in outs if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(jnp.sum(y.astype(jnp.float32)) for y in outs)

    return jax.grad(loss)({path: shapes(leaf.lead) for path, leaf in own.items()})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Counting(Wrapped):
    """A weight whose probe's cotangent is the counts of what the weight multiplies."""

    inner: Any
    probe: _Counts

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
    return _Counts(a.bins + b.bins, jnp.maximum(a.far, b.far))


def _limits(counts: _Counts, method: Method, to: str) -> Array:
    """(*stack, 2): the least and the largest x."""
    edges = 2.0 ** (_LEAST + (jnp.arange(_BINS, dtype=jnp.float32) + 1) / _PER_OCTAVE)
    far = counts.far
    if method == "percentile":
        share = jnp.cumsum(counts.bins, -1) / counts.bins.sum((-2, -1), keepdims=True).clip(1)
        rest = 1 - counts.bins.sum(-1, keepdims=True) / counts.bins.sum(
            (-2, -1), keepdims=True
        ).clip(1)
        inside = jnp.argmax(share + rest >= _SHARE, -1)
        far = jnp.minimum(far, edges[inside])
    if method == "mse":
        far = far * _best_share(counts, edges, to)[..., None]
    return jnp.stack([-far[..., 0], far[..., 1]], -1)


def _best_share(counts, edges, to):
    """(*stack,): the part of the full range with the least squared error."""
    middles = edges * 2.0 ** (-0.5 / _PER_OCTAVE)
    lead = (1,) * (counts.far.ndim - 1)
    middles = middles.reshape(*lead, 1, -1)
    total = counts.bins.sum((-2, -1))
    span = counts.far.sum(-1) / 255

    def error(share):
        lost = jnp.maximum(middles - share * counts.far[..., None], 0.0)
        clipped = (counts.bins * lost**2).sum((-2, -1))
        steps = 0.0 if to == "e4m3" else total * (share * span) ** 2 / 12  # a float's are relative
        return clipped + steps

    shares = (jnp.arange(_SHRINKS, dtype=jnp.float32) + 1) / _SHRINKS
    return shares[jnp.argmin(jax.lax.map(error, shares)[::-1], 0) * -1 - 1]
