"""Fake: a float weight that acts as its rounded self, and learns through it (QAT)."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..folding import Fold
from ..leaf import Encoded, is_encoded, shrunk
from .scaled import divisor, grouped, spread

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Fake:
    """Trains what `codec` will round: w stays in full, and stands for `codec.encode(w).decode()`.

    The gradient goes straight through the rounding (Bengio et al., 2013). With `learn`, the scales
    are trained too, by LSQ's gradient (Esser et al., 2020), for a codec of scales: `Int`, `Float`,
    `Codebook`; then a weight that is clipped has no gradient. `export` gives the encoded weights,
    bit for bit what training saw. The bytes are those of w, and of f32 scales.

    Raises:
        TypeError: `learn` with a codec that has no scales.

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

    def __post_init__(self):
        if self.learn and not hasattr(self.codec, "range"):
            raise TypeError(f"{self.codec} has no scales to learn, expected Int, Float or Codebook")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "FakeArray":
        if is_encoded(w):
            return w.map(self.encode)
        axes = tuple(a if a < 0 else a - w.ndim for a in axes)
        matrix, scale = Fold.of(w, axes)[0], None  # refuses axes that the weight has not
        if self.learn:
            scale, _ = _range(self.codec, matrix.astype(jnp.float32))
            scale = scale.astype(jnp.float32)
        return FakeArray(jnp.asarray(w), scale, self.codec, axes, jnp.dtype(w.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FakeArray(Encoded):
    """A float weight that decodes to what its codec makes of it."""

    w: Array
    scale: Array | None  # (*stack, n, groups) f32, when it is learned
    codec: Any = dataclasses.field(metadata=dict(static=True))
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: self.w.shape)

    @property
    def stack(self):
        return jax.eval_shape(lambda w: Fold.of(w, self.axes)[0], self.w).shape[:-2]

    def encoded(self) -> Encoded:
        """What `codec` makes of it; with learned scales, by them."""
        if self.scale is None:
            return self.codec.encode(self.w, self.axes).astype(self.dtype)
        matrix, fold = Fold.of(self.w, self.axes)
        matrix = matrix.astype(jnp.float32)
        zero = _range(self.codec, matrix)[1]
        return self.codec.round(matrix, jnp.abs(self.scale), zero, fold, self.dtype)

    def decode(self):
        if self.scale is None:
            w = self.w.astype(self.dtype)
            return w + (lax.stop_gradient(self).encoded().decode() - lax.stop_gradient(w))
        matrix, fold = Fold.of(self.w, self.axes)
        w, k = matrix.astype(jnp.float32), matrix.shape[-1]
        still = lax.stop_gradient(self)
        y = still.encoded().rows()
        least, most = still._ends(lax.stop_gradient(w), fold)
        inside = (w >= least) & (w <= most)
        start = jnp.abs(self.scale)
        wide = lambda a: spread(a, self.codec.group, k)
        top = jnp.maximum(-least, most) / wide(divisor(lax.stop_gradient(start)))
        count = min(self.codec.group or k, k)
        slow = lax.rsqrt(jnp.maximum(top.max(-1, keepdims=True) * count, 1.0))
        scale = wide(start)
        scale = scale * slow + lax.stop_gradient(scale * (1 - slow))  # LSQ's gradient scale
        ratio = lambda a: lax.stop_gradient(a / divisor(wide(start)))
        moves = jnp.where(inside, w - scale * ratio(w), 0.0)  # zero; its gradient is not
        value = y + scale * ratio(y) - lax.stop_gradient(scale * ratio(y))
        return fold.unfold(value + moves - lax.stop_gradient(moves)).astype(self.dtype)

    def _ends(self, w, fold):
        """The least and largest number that each weight could become."""
        _, zero = _range(self.codec, w)
        end = lambda far: self.codec.round(far, jnp.abs(self.scale), zero, fold, jnp.float32)
        return (end(jnp.full_like(w, far)).rows() for far in (-1e30, 1e30))

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def part(self, axis, parts):
        w, scale = shrunk(self.w, axis, parts), self.scale
        if scale is not None:
            start = lambda w: _range(self.codec, Fold.of(w, self.axes)[0])[0].astype(scale.dtype)
            own = jax.eval_shape(start, w)
            divides = all(a in (b, b * parts) for a, b in zip(scale.shape, own.shape))
            scale = own if divides else scale
        return dataclasses.replace(self, w=w, scale=scale)

    def map(self, fn):
        if self.scale is not None:
            raise TypeError("its scales are learned, expected jm.export before another codec")
        return fn(self.w, self.axes)

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        y = lax.dot_general(
            x, self.decode().astype(x.dtype), dims, precision, preferred_element_type=jnp.float32
        )
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))


def export(tree: T) -> T:
    """The tree with every leaf of `Fake` replaced by the encoded weight that it stood for.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> trained = {"w": jm.Fake(jm.Int(4)).encode(jnp.ones((64, 64)))}
        >>> jm.nbytes(trained), jm.nbytes(export(trained))
        (16384, 2176)
    """
    made = lambda x: x.encoded() if isinstance(x, FakeArray) else x
    return jax.tree.map(made, tree, is_leaf=is_encoded)


def _range(codec, matrix):
    parts = grouped(matrix, codec.group)
    return codec.range(parts.min(-1, initial=0.0), parts.max(-1, initial=0.0))
