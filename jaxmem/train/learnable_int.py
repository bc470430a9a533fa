"""LearnedArray: an `Int` leaf in training, ŵ = s · (clip(round(w / s) + z) − z) with w and s free.

The gradient passes straight through the rounding (Bengio et al., 2013); the gradient of s is that
of LSQ (Esser et al., 2020). The zero points z stay.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..codecs import Int
from ..codecs.dynamic_quantization import DynamicArray
from ..codecs.float16_scales import divisor, finite_scale
from ..codecs.integer import IntArray
from ..codecs.scaled import repeat_groups
from ..codecs.smooth import SmoothArray
from ..codecs.sum import SumArray
from ..core.fold import Fold
from ..core.leaf import Encoded, is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.segmented import Segmented

SCALE_RATE = 0.05  # relative change of a scale for a `scale_change` of 1: scales learn more slowly
START_SHARE = 0.5  # share of the way from its code to the dense weight where a weight starts
LEAST_SCALE = 1 / 8  # the smallest scale that can be learned, relative to the initial one


def split_trainable(enc: Any, params: Any) -> tuple[list[Array], Any]:
    """(the trainable arrays, two for each `Int` leaf; the tree with None in their places).

    `enc` is the tree `params`, encoded. `Int` leaves inside those of `Dynamic`, `Smooth`, `Sum`
    and `Segmented` are trainable too.
    """
    tree = jax.tree.map(_to_learned, enc, params, is_leaf=is_encoded)
    leaves = jax.tree.leaves(tree, is_leaf=_is_learned)
    trainable = [a for x in leaves if _is_learned(x) for a in (x.units, x.scale_change)]
    return trainable, merge_trainable([None] * len(trainable), tree)


def merge_trainable(trainable: list[Array], frozen: Any) -> Any:
    """The tree that `split_trainable` took apart, its `Int` leaves as `LearnedArray`."""
    arrays = iter(trainable)
    filled = lambda x: dataclasses.replace(x, units=next(arrays), scale_change=next(arrays))
    return jax.tree.map(lambda x: filled(x) if _is_learned(x) else x, frozen, is_leaf=_is_learned)


def encode_trained(trainable: list[Array], frozen: Any) -> Any:
    """The tree with each `LearnedArray` rounded to an `Int` leaf again."""
    to_int = lambda x: x.encoded() if _is_learned(x) else x
    return jax.tree.map(to_int, merge_trainable(trainable, frozen), is_leaf=_is_learned)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedArray(MatrixLeaf):
    """An `Int` leaf in training: `units` and `scale_change` learn, the other fields stay."""

    units: Array  # (*stack, n, k) f32, the weight divided by the initial scale
    scale_change: Array  # (*stack, n, groups) f32: scale = start · (1 + SCALE_RATE · scale_change)
    start: Array  # (*stack, n, groups) f16, the initial scale
    zero: Array  # (*stack, n, groups) uint8
    codec: Int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.start.shape[:-2])
    dot = Encoded.dot  # decodes the whole weight: a training step has many rows

    @classmethod
    def of(cls, leaf: IntArray, w: Array) -> "LearnedArray":
        """`leaf`, which encodes the dense weight `w`, ready to train."""
        return _learned(leaf, w)

    def encoded(self) -> IntArray:
        """The `Int` leaf with the nearest codes and the learned scales in f16."""
        return _encoded(self)

    def scale(self) -> Array:
        """(*stack, n, groups) f32, positive."""
        start = self.start.astype(jnp.float32)
        return start * jnp.maximum(1 + SCALE_RATE * self.scale_change, LEAST_SCALE)

    def rows(self):
        constant = lax.stop_gradient
        wide = lambda a: repeat_groups(a, self.codec.group, self.fold.k)
        w, scale = self.units * wide(self.start.astype(jnp.float32)), wide(self.scale())
        rounded = constant(self.codec.snap(w, scale, wide(self.zero)))
        # the weights that rounding does not clip: only their gradient is passed on
        inside = jnp.abs(rounded - constant(w)) <= 0.5001 * constant(scale)
        # the value is `rounded`; the terms added are zero and carry the gradients of w and s
        by = divisor(constant(scale))
        scale_gradient = rounded / by - jnp.where(inside, constant(w) / by, 0.0)
        through = jnp.where(inside, w - constant(w), 0.0)
        return rounded + through + (scale - constant(scale)) * scale_gradient

    def slice_rows(self, start, size):
        return self._map_arrays(lambda a: lax.dynamic_slice_in_dim(a, start, size))

    def take_rows(self, index):
        rows = self._map_arrays(lambda a: a[index.reshape(-1)]).rows()
        return rows.reshape(*index.shape, self.fold.k)

    def _map_arrays(self, fn):
        """The leaf with `fn` applied to each of its arrays (n, ...)."""
        names = ("units", "scale_change", "start", "zero")
        return dataclasses.replace(self, **{name: fn(getattr(self, name)) for name in names})


def _is_learned(x: Any) -> bool:
    return isinstance(x, LearnedArray)


def _to_learned(leaf: Any, w: Array) -> Any:
    """`leaf`, which encodes the dense weight `w`, with each `Int` leaf in it as `LearnedArray`."""
    match leaf:
        case IntArray():
            return LearnedArray.of(leaf, w)
        case DynamicArray():
            return dataclasses.replace(leaf, inner=_to_learned(leaf.inner, w))
        case SmoothArray():
            scaled = _matrix(leaf, w) * leaf.s.astype(jnp.float32)[..., None, :]
            return dataclasses.replace(
                leaf, inner=_to_learned(leaf.inner, leaf.fold.unfold(scaled))
            )
        case SumArray():
            # each part learns to correct the error of the whole sum
            decoded = [part.astype(jnp.float32).decode() for part in leaf.parts]
            error = w.astype(jnp.float32) - sum(decoded)
            pairs = zip(leaf.parts, decoded)
            return SumArray(tuple(_to_learned(part, error + value) for part, value in pairs))
        case Segmented():
            ends = leaf.ends
            runs = zip(leaf.parts, (0, *ends), ends)
            return Segmented(tuple(_to_learned(part, w[a:b]) for part, a, b in runs))
    return leaf


def _matrix(leaf: MatrixLeaf, w: Array) -> Array:
    """The dense weight `w` of `leaf` as a matrix (*stack, n, k) in f32."""
    order = [leaf.fold.full_order(w.ndim).index(a) for a in range(-w.ndim, 0)]
    return (
        w.transpose(order).reshape(*leaf.batch_shape, leaf.fold.n, leaf.fold.k).astype(jnp.float32)
    )


@jax.jit
def _learned(leaf: IntArray, w: Array) -> LearnedArray:
    """What `LearnedArray.of` returns."""
    matrix, k = _matrix(leaf, w), leaf.fold.k
    codec = Int(leaf.bits, group=leaf.group, symmetric=leaf.zero is None)
    start = leaf.scale.mT
    zero = jnp.full(start.shape, 2 ** (leaf.bits - 1)) if leaf.zero is None else leaf.zeros().mT
    by = repeat_groups(divisor(start), leaf.group, k)
    code = leaf.rows() / by  # in units of the scale
    units = code + START_SHARE * jnp.clip(matrix / by - code, -0.5, 0.5)
    change = jnp.zeros(start.shape, jnp.float32)
    return LearnedArray(units, change, start, zero.astype(jnp.uint8), codec, leaf.fold, leaf.dtype)


@jax.jit
def _encoded(leaf: LearnedArray) -> IntArray:
    """What `LearnedArray.encoded` returns."""
    wide = lambda a: repeat_groups(a, leaf.codec.group, leaf.fold.k)
    scale = finite_scale(leaf.scale(), leaf.start.dtype)
    w = leaf.units * wide(leaf.start.astype(jnp.float32))
    return leaf.codec.round(w, scale, leaf.zero.astype(jnp.int32), leaf.fold, leaf.dtype)
