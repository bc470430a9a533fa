"""Smooth: x · w = (x / s) · (s w), for weights with no norm before x that could absorb 1 / s."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import check_fields
from ..core.codec import CODEC, row_encoder
from ..core.fold import Fold, matrix_shape
from ..core.leaf import divided_shape, is_encoded
from ..core.mapped_rows import MappedRows
from ..core.matrix_leaf import MatrixLeaf, MatrixLeafWrapper
from ..core.row_slices import scan_rows


@dataclasses.dataclass(frozen=True)
class Smooth:
    """Divides each channel of the inputs by an s, and encodes s · w.

    s = max|x|^strength / max|w|^(1 − strength), so that `Dynamic` rounds large channels of x more
    finely, or that weights of large inputs lose less. `models.smooth` does this at no cost if a
    norm or a matrix comes before x; here every product divides x, and s takes 16 bits a channel. It
    needs `stats` ("diag" moments are enough). Xiao et al., 2023 (SmoothQuant).

    Raises:
        ValueError: `strength` is outside 0 to 1, or a concrete weight comes without `stats`.
        TypeError: the leaf of `codec` does not store its matrix by rows.

    Example:
        >>> import jax, jaxmem as jm
        >>> w, x = (jax.random.normal(jax.random.key(i), (64, 64)) for i in range(2))
        >>> x = x.at[:, 3].mul(100.0)  # one large channel
        >>> fed = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)], moments="diag")["w"]
        >>> dot = jm.lift(lambda w, x: x @ w)
        >>> error = lambda leaf: float(abs(dot(leaf, x) - x @ w).mean())
        >>> plain, smooth = jm.Dynamic(jm.Int(8)), Smooth(jm.Dynamic(jm.Int(8)))
        >>> error(smooth.encode(w, stats=fed)) < error(plain.encode(w)) / 3
        True
    """

    codec: Any
    strength: float = 0.5
    calibrated: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self, codec=CODEC)
        if not 0 <= self.strength <= 1:
            raise ValueError(f"Smooth takes a strength of 0 to 1, got {self.strength}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "SmoothArray":
        if is_encoded(w):
            raise TypeError("Smooth takes a dense weight: in a Chain it comes first")
        if stats is None and not isinstance(w, jax.core.Tracer):
            raise ValueError("Smooth wants the stats of what the weight is fed")
        s, inner_stats = self._scales_and_stats(_largest(w, axes), stats)
        return self._around(self.codec.encode(_scaled(w, axes, s), axes, inner_stats), s)

    def row_encoder(self, w, axes, stats):
        step = lambda most, rows, _: jnp.maximum(most, _largest(rows, axes))
        largest = scan_rows(step, jnp.zeros(matrix_shape(w, axes)[-1]), w, axes)
        s, inner_stats = self._scales_and_stats(largest, stats)
        scaled = MappedRows(w, lambda rows: _scaled(rows, axes, s))
        inner = row_encoder(self.codec, scaled, axes, inner_stats)
        encode = lambda rows, start: self._around(inner.encode(_scaled(rows, axes, s), start), s)
        return inner and inner._replace(encode=encode)

    def _scales_and_stats(self, w_max, stats):
        """s (*stack, k) float16, and the stats of the inputs divided by s, from the largest |w|."""
        s = self._scale(w_max if stats is None else stats.absmax, w_max)
        return s, None if stats is None else _divided_stats(stats, s.astype(jnp.float32))

    def _around(self, inner, s):
        """The leaf around that of `codec`."""
        if not isinstance(inner, MatrixLeaf):
            raise TypeError(f"Smooth takes a codec of rows, got {self.codec}")
        return SmoothArray(inner, s)

    def _scale(self, x_max, w_max):
        """s (*stack, k) float16 from the largest |x| and |w| of each channel; 1 where one is 0."""
        known = (x_max > 0) & (w_max > 0)
        or_one = lambda a: jnp.where(known, a, 1.0)
        s = or_one(x_max) ** self.strength / or_one(w_max) ** (1 - self.strength)
        middle = jnp.sqrt(
            s.max(-1, keepdims=True, initial=0) * s.min(-1, keepdims=True, initial=jnp.inf)
        )
        return jnp.clip(s / middle, 2.0**-14, 2.0**14).astype(jnp.float16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SmoothArray(MatrixLeafWrapper):
    """An encoded s · w; products divide x by s, which has one number for each column."""

    inner: Any
    s: Array  # (*stack, k) f16

    def rows(self):
        return self.inner.rows() / self.s.astype(jnp.float32)[..., None, :]

    def slice_rows(self, start, size):
        return dataclasses.replace(self, inner=self.inner.slice_rows(start, size))

    def take_rows(self, index):
        rows = self.inner.take_rows(index)
        return rows / self.s.astype(jnp.float32).reshape((1,) * (rows.ndim - 1) + (-1,))

    def shard_matrix(self, fold, side, parts):
        inner = self.inner.shard_matrix(fold, side, parts)
        if inner is NotImplemented:
            return inner
        s = self.s if side == "kept" else divided_shape(self.s, -1, parts)
        return dataclasses.replace(self, inner=inner, s=s)

    def matmul(self, x, precision=None):
        divided = x.astype(jnp.float32) / self.s.astype(jnp.float32)[None]
        return self.inner.matmul(divided.astype(x.dtype), precision)


def _largest(w, axes):
    """The largest |w| of each input channel, (*stack, k) f32."""
    return jnp.abs(Fold.from_weight(w, axes)[0].astype(jnp.float32)).max(-2, initial=0.0)


def _scaled(w, axes, s):
    """The weight s · w, each of its input channels multiplied by its s (*stack, k)."""
    matrix, fold = Fold.from_weight(w, axes)
    scaled = matrix.astype(jnp.float32) * s.astype(jnp.float32)[..., None, :]
    return fold.unfold(scaled).astype(w.dtype)


def _divided_stats(stats, s):
    """The moments of x / s, given those of x; s is (*stack, k) f32."""
    square = s * s if stats.second.ndim == s.ndim else s[..., :, None] * s[..., None, :]
    changes = dict(second=stats.second / square, mean=stats.mean / s, absmax=stats.absmax / s)
    return dataclasses.replace(stats, **changes)
