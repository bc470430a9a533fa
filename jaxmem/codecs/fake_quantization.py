"""Fake: a float weight that acts as its encoded form and learns through the rounding (QAT)."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import TREE, check_fields, takes
from ..core.codec import (
    CODEC,
    RoundingCodec,
    RowEncoder,
    SolvingCodec,
    backward_codes,
    needs_stats,
    rounding_codec,
    row_unit,
    ties_layers,
)
from ..core.fold import Fold, matrix_shape
from ..core.leaf import Encoded, divided_shape, is_encoded
from ..core.strided_weight import StridedWeight
from ..kernels.dispatch import differentiated_by
from .float16_scales import divisor
from .scaled import group_limits, grouped, repeat_groups
from .trained_product import BACKWARD, TrainedArray

T = TypeVar("T")

# A learned range is at least this share of the range of its group's weights.
MIN_RANGE_SHARE = 1 / 16
FAR_STEPS = 1e5  # steps from 0 to beyond every code


@dataclasses.dataclass(frozen=True)
class Fake:
    """Trains a weight that `codec` will round: the leaf decodes to `codec.encode(w).decode()`.

    The weight is stored in full. The gradient goes straight through the rounding (Bengio et al.,
    2013), and through the rounding of the inputs if `codec` does that too (`Dynamic`). `export`
    returns the encoded weights, and so does `encode` with the same codec: bit for bit those of
    training.

    With `learn`, each group's range is trained too, by LSQ's gradient of a scale (Esser et al.,
    2020). The range is the span of the weights plus a learned number in the units of the weights,
    so that one learning rate of Adam suits both; a clipped weight is still trained, and moves the
    span. A range starts at the choice of `codec` (such as `Search`), or at LSQ's scale if that is
    less. The bytes are those of w, and an f32 for each group.

    `backward` says what a product of a codec that rounds inputs keeps for the backward pass:

    - None: x and the decoded weight, as floats, as a product that rounds no inputs does.
    - codes: the codes of both operands that the product multiplied. The inputs take half or a
      quarter of their bytes, the codes of the weight come on top. The gradient of the weight is
      that for the rounded inputs.
    - int8: likewise, and the gradient that comes in is rounded to int8 at random (so that its mean
      is right), with a scale for each token and one for each output, so that both products of the
      backward pass are int8 × int8, summed in int32.

    Raises:
        TypeError: `codec` needs stats, or does not round to scales and `learn` is set; or, with
            `backward`, it is no `Dynamic`, or for "int8" no `Dynamic` of a symmetric `Int` without
            groups.
        ValueError: `backward` is unknown, or goes with `learn`, whose ranges want floats.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params = {"w": Fake(jm.Int(2)).encode(jnp.array([[1.0, 0.2]]).T)}
        >>> loss = lambda p: (jm.lift(lambda p: jnp.ones((1, 2)) @ p["w"])(p) ** 2).sum()
        >>> float(loss(params)), jax.grad(loss)(params)["w"].w[:, 0].tolist()
        (1.0, [2.0, 2.0])
        >>> jm.export(params)["w"].decode()[:, 0].tolist()
        [1.0, 0.0]
    """

    codec: Any
    _: dataclasses.KW_ONLY
    learn: bool = False
    backward: str | None = dataclasses.field(default=None, metadata=dict(added=True))

    def __post_init__(self):
        check_fields(self, codec=CODEC)
        self._check_backward()
        if needs_stats(self.codec):
            raise TypeError(f"Fake rounds anew at each step, without the stats {self.codec} wants")
        if self.learn and (rounding_codec(self.codec) is None or ties_layers(self.codec)):
            raise TypeError(f"{self.codec} has no scales to learn, expected Int, Float or Codebook")

    def _check_backward(self):
        """Refuses a backward pass that the codec's product has no codes for."""
        if self.backward is None:
            return
        if self.backward not in BACKWARD or self.learn:
            raise ValueError(
                f"backward is {self.backward!r}, learn {self.learn}: expected None or one of "
                f"{', '.join(BACKWARD)}, and learn False"
            )
        if self.backward not in backward_codes(self.codec):
            raise TypeError(
                f"backward {self.backward!r} of {self.codec}: expected a Dynamic; for 'int8' one "
                "to int8, of a symmetric Int without groups"
            )

    def row_encoder(self, w, axes, stats):
        """Finds the ranges of some rows; the weight itself is not encoded."""
        unit = row_unit(self.codec)
        if not self.learn or unit is None:
            return None
        w = w.dense() if isinstance(w, StridedWeight) else w
        grown = lambda rows: _start(self.codec, rows, axes)
        leaf = lambda rows, start: self._leaf(w, grown(rows), axes)
        return RowEncoder(leaf, unit)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "FakeArray":
        if is_encoded(w):
            return w.map(self.encode)
        axes = tuple(a if a < 0 else a - w.ndim for a in axes)
        Fold.from_weight(w, axes)  # raises if the weight has no such axes
        grown = _start(self.codec, jnp.asarray(w), axes) if self.learn else None
        return self._leaf(jnp.asarray(w), grown, axes)

    def _leaf(self, w, grown, axes):
        return FakeArray(w, grown, self.codec, axes, jnp.dtype(w.dtype), self.backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FakeArray(Encoded):
    """A float weight w that decodes to `codec.encode(w).decode()`."""

    w: Array
    grown: Array | None  # learned ranges less their spans, (*stack, n, groups) f32
    codec: Any = dataclasses.field(metadata=dict(static=True))
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))
    backward: str | None = dataclasses.field(default=None, metadata=dict(static=True))

    shape = property(lambda self: self.w.shape)
    recomputed = property(lambda self: self.backward is None)  # else what is kept is codes

    @property
    def stack(self):
        return matrix_shape(self.w, self.axes)[:-2]

    def encoded(self) -> Encoded:
        """The encoded weight, with the learned ranges if there are any."""
        if self.grown is None:
            return self.codec.encode(self.w, self.axes).astype(self.dtype)
        return _around(self.codec, self._rounded()[0], self)

    def decode(self):
        return self._straight(lax.stop_gradient(self).encoded())

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        leaf = lax.stop_gradient(self).encoded()
        if self.backward is not None:
            matrix = Fold.from_weight(self.w, self.axes)[0]
            y = TrainedArray(leaf, matrix, self.backward).dot(x, dims, jnp.float32, precision)
            if y is not NotImplemented:
                return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))
        y = _product(x, self._straight(leaf).astype(x.dtype), leaf, dims=dims, precision=precision)
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def transpose(self, axes):
        last = self.ndim - 1
        if axes != (*range(last - 1), last, last - 1) or self.axes not in ((-1,), (-2,)):
            return NotImplemented
        return dataclasses.replace(self, w=self.w.mT, axes=(-3 - self.axes[0],))

    def shard_shape(self, axis, parts):
        w, grown = divided_shape(self.w, axis, parts), self.grown
        if grown is not None:
            grid = rounding_codec(self.codec)
            matrix = lambda w: Fold.from_weight(w, self.axes)[0].astype(jnp.float32)
            start = lambda w: group_limits(matrix(w), grid.group)[0]
            shard = jax.eval_shape(start, w)
            divides = all(a in (b, b * parts) for a, b in zip(grown.shape, shard.shape))
            grown = jax.ShapeDtypeStruct(shard.shape, grown.dtype) if divides else grown
        return dataclasses.replace(self, w=w, grown=grown)

    def map(self, fn):
        if self.grown is not None:
            raise TypeError("its scales are learned, expected jm.export before another codec")
        return fn(self.w, self.axes)

    def _rounded(self):
        """(the leaf of the rounding codec by the learned ranges, the zeros of its groups)."""
        matrix, fold = Fold.from_weight(self.w, self.axes)
        matrix, grid = matrix.astype(jnp.float32), rounding_codec(self.codec)
        low, high = group_limits(matrix.astype(jnp.float32), grid.group)
        share = jnp.maximum(1 + self.grown / divisor(jnp.maximum(-low, high)), MIN_RANGE_SHARE)
        scale, zero = grid.range(low * share, high * share)
        return grid.round(matrix, scale, zero, fold, self.dtype), zero

    def _straight(self, leaf):
        """The decoded `leaf`, which is this weight encoded, with gradients for `w` and `grown`."""
        w = self.w.astype(self.dtype)
        y = leaf.decode() + (w - lax.stop_gradient(w))
        return y if self.grown is None else y + self._range_gradient(leaf.rows()).astype(self.dtype)

    def _range_gradient(self, y):
        """0 for each weight, with LSQ's gradient for `grown`; y is the decoded matrix."""
        constant = lax.stop_gradient(self)
        matrix, fold = Fold.from_weight(constant.w, self.axes)
        grid, k = rounding_codec(self.codec), fold.k
        leaf, zero = constant._rounded()
        scale, wide = leaf.scales().mT, lambda a: repeat_groups(a, grid.group, k)
        # The weights inside the smallest and the largest code are not clipped.
        low, high = (grid.snap(end * scale, scale, zero) for end in (-FAR_STEPS, FAR_STEPS))
        inside = (matrix >= wide(low)) & (matrix <= wide(high))
        slope = y - jnp.where(inside, matrix.astype(jnp.float32), 0.0)  # by the log of the scale
        steps = jnp.maximum(-low, high) / divisor(scale)  # of a range
        lsq = lax.rsqrt(jnp.maximum(steps * min(grid.group or k, k), 1.0))  # LSQ's gradient scale
        growth = (self.grown - constant.grown) * lsq * steps / divisor(scale)
        return fold.unfold(wide(growth) * slope)


@takes(tree=TREE)
def export(tree: T) -> T:
    """The tree with every leaf of `Fake` replaced by its encoded weight.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> trained = {"w": jm.Fake(jm.Int(4)).encode(jnp.ones((64, 64)))}
        >>> jm.nbytes(trained), jm.nbytes(export(trained))
        (16384, 2176)
    """
    is_fake = lambda x: isinstance(x, FakeArray)
    return jax.tree.map(lambda x: x.encoded() if is_fake(x) else x, tree, is_leaf=is_fake)


def _start(codec, w, axes):
    """The first `grown`: range less span. LSQ's scale is 2 · mean |w| / √(largest code)."""
    grid, matrix = rounding_codec(codec), Fold.from_weight(w, axes)[0]
    while codec is not grid and not isinstance(codec, SolvingCodec):
        codec = codec.codec
    low, high = group_limits(matrix.astype(jnp.float32), grid.group)
    leaf, span = codec.encode(w, axes), jnp.maximum(-low, high)
    # The share of the span that a solver chose.
    share = 1.0 if codec is grid else leaf.scales().mT / divisor(grid.range(low, high)[0])
    total, count = (
        grouped(a.astype(jnp.float32), grid.group).sum(-1)
        for a in (jnp.abs(matrix), jnp.ones_like(matrix))
    )
    lsq = 2 * total / count * (2 ** (leaf.bits - 1) - 1) ** 0.5
    return jnp.minimum(span * share, lsq) - span


def _around(codec, leaf, fake):
    """The leaf of `codec`, given the leaf that its rounding codec made."""
    if isinstance(codec, RoundingCodec):
        return leaf
    inner = _around(codec.codec, leaf, fake)
    if isinstance(codec, SolvingCodec):  # it would choose scales, which are learned here
        return inner
    return dataclasses.replace(codec, codec=_Fixed(inner)).encode(fake.w, fake.axes)


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A codec that returns a given leaf for every weight."""

    leaf: Any

    def encode(self, w, axes, stats=None):
        return self.leaf


def _straight_product(x, w, leaf, dims, precision):
    """x · w in f32."""
    return lax.dot_general(x, w, dims, precision, preferred_element_type=jnp.float32)


@differentiated_by(_straight_product)
def _product(x, w, leaf, *, dims, precision):
    """x · leaf in f32, with the gradient of x · w; w is the decoded leaf."""
    options = dict(precision=precision, preferred_element_type=jnp.float32)
    y = leaf.dot(x, dims, **options) if leaf.rounds_inputs else NotImplemented
    return _straight_product(x, w, leaf, dims, precision) if y is NotImplemented else y
