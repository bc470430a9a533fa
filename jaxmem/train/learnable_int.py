"""A leaf of `Int` as it learns: ŵ = s · (clip(round(w / s) + z) − z), where w and s move.

The gradient goes straight through the rounding (Bengio et al., 2013), and to s as in LSQ (Esser et
al., 2020).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..codecs import Int
from ..codecs.dynamic import DynamicArray
from ..codecs.integer import IntArray
from ..codecs.scale_rounding import divisor, finite_scale
from ..codecs.scaled import spread
from ..codecs.smooth import SmoothArray
from ..codecs.sum import SumArray
from ..core.fold import Fold
from ..core.leaf import Encoded, is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.segmented import Segmented

SLOWER = 0.05  # how much less than a weight, in steps of its grid, a scale moves relative to itself
NEARER = 0.5  # how much of its way to the dense one, within its code, a weight starts


def opened(enc: Any, params: Any) -> tuple[list[Array], Any]:
    """What learns, two arrays for each leaf of `Int`, and the tree without it."""
    tree = jax.tree.map(_wide, enc, params, is_leaf=is_encoded)
    leaves = jax.tree.leaves(tree, is_leaf=_learns)
    moving = [a for x in leaves if _learns(x) for a in (x.at, x.grown)]
    return moving, joined([None] * len(moving), tree)


def closed(moving: list[Array], still: Any) -> Any:
    """The tree with each leaf that learned as the leaf of `Int` that it stands for."""
    made = lambda x: x.encoded() if _learns(x) else x
    return jax.tree.map(made, joined(moving, still), is_leaf=_learns)


def joined(moving: list[Array], still: Any) -> Any:
    """What `opened` took apart."""
    given = iter(moving)
    new = lambda x: dataclasses.replace(x, at=next(given), grown=next(given))
    return jax.tree.map(lambda x: new(x) if _learns(x) else x, still, is_leaf=_learns)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedArray(MatrixLeaf):
    """A leaf of `Int` on its way: weights in steps of the first scales, and the scales' change."""

    at: Array  # (*stack, n, k) f32, in steps of `start`
    grown: Array  # (*stack, n, groups) f32: scale = start · (1 + SLOWER · grown)
    start: Array  # (*stack, n, groups) f16
    zero: Array  # (*stack, n, groups) uint8
    codec: Int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.start.shape[:-2])
    dot = Encoded.dot  # decoded at once: a step has many rows

    @classmethod
    def of(cls, leaf: IntArray, w: Array) -> "LearnedArray":
        return _of(leaf, w)

    def encoded(self) -> IntArray:
        return _encoded(self)

    def scale(self) -> Array:
        """(*stack, n, groups) f32, positive."""
        start = self.start.astype(jnp.float32)
        return start * jnp.maximum(1 + SLOWER * self.grown, 1 / 8)

    def rows(self):
        still, wide = lax.stop_gradient, lambda a: spread(a, self.codec.group, self.fold.k)
        w, scale = self.at * wide(self.start.astype(jnp.float32)), wide(self.scale())
        near = still(self.codec.snap(w, scale, wide(self.zero)))
        inside = jnp.abs(near - still(w)) <= 0.5001 * still(scale)
        by = divisor(still(scale))
        slope = near / by - jnp.where(inside, still(w) / by, 0.0)
        return near + jnp.where(inside, w - still(w), 0.0) + (scale - still(scale)) * slope

    def slice_rows(self, start, size):
        return self._each(lambda a: lax.dynamic_slice_in_dim(a, start, size))

    def take_rows(self, index):
        rows = self._each(lambda a: a[index.reshape(-1)]).rows()
        return rows.reshape(*index.shape, self.fold.k)

    def _each(self, cut):
        names = ("at", "grown", "start", "zero")
        return dataclasses.replace(self, **{name: cut(getattr(self, name)) for name in names})


def _learns(x: Any) -> bool:
    return isinstance(x, LearnedArray)


def _wide(leaf: Any, w: Array) -> Any:
    """`leaf`, which stands for `w`, with every leaf of `Int` that its products read on its way."""
    match leaf:
        case IntArray():
            return LearnedArray.of(leaf, w)
        case DynamicArray():
            return dataclasses.replace(leaf, inner=_wide(leaf.inner, w))
        case SmoothArray():
            wide = _matrix(leaf, w) * leaf.s.astype(jnp.float32)[..., None, :]
            return dataclasses.replace(leaf, inner=_wide(leaf.inner, leaf.fold.unfold(wide)))
        case SumArray():
            held = [part.astype(jnp.float32).decode() for part in leaf.parts]
            rest = w.astype(jnp.float32) - sum(held)  # what a part lacks is what all of them lack
            return SumArray(tuple(_wide(p, rest + h) for p, h in zip(leaf.parts, held)))
        case Segmented():
            ends = leaf.ends
            runs = zip(leaf.parts, (0, *ends), ends)
            return Segmented(tuple(_wide(part, w[a:b]) for part, a, b in runs))
    return leaf


def _matrix(leaf: MatrixLeaf, w: Array) -> Array:
    """`w` as the matrix (*stack, n, k) that `leaf` holds, in f32."""
    order = [leaf.fold.full_order(w.ndim).index(a) for a in range(-w.ndim, 0)]
    return (
        w.transpose(order).reshape(*leaf.batch_shape, leaf.fold.n, leaf.fold.k).astype(jnp.float32)
    )


@jax.jit
def _of(leaf, w):
    matrix, k = _matrix(leaf, w), leaf.fold.k
    codec = Int(leaf.bits, group=leaf.group, symmetric=leaf.zero is None)
    start = leaf.scale.mT
    zero = jnp.full(start.shape, 2 ** (leaf.bits - 1)) if leaf.zero is None else leaf.zeros().mT
    by = spread(divisor(start), leaf.group, k)
    near = leaf.rows() / by
    at = near + NEARER * jnp.clip(matrix / by - near, -0.5, 0.5)
    grown = jnp.zeros(start.shape, jnp.float32)
    return LearnedArray(at, grown, start, zero.astype(jnp.uint8), codec, leaf.fold, leaf.dtype)


@jax.jit
def _encoded(x):
    wide = lambda a: spread(a, x.codec.group, x.fold.k)
    scale = finite_scale(x.scale(), x.start.dtype)
    w = x.at * wide(x.start.astype(jnp.float32))
    return x.codec.round(w, scale, x.zero.astype(jnp.int32), x.fold, x.dtype)
