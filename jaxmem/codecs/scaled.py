"""Scaled: w ≈ scale · value(code), what float and codebook formats share.

Codes are packed along n like those of `Int`; a scale is shared by a row or a group of a row.
"""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..kernels.packed_matmul import packed_product
from ..kernels.tiled_matmul import UNROLLED_TILES, cpu_product, decoded_product
from .packing import WIDTHS, divided, interleave, pack, shifts, slices, strands, unpack, unpack_rows

_LAST = (((1,), (1,)), ((), ()))  # both operands summed over their last axis


class Scaled(abc.ABC):
    """A codec that rounds each group of a row to the values it has, times a scale."""

    group: int | None

    @abc.abstractmethod
    def range(self, low: Array, high: Array) -> tuple[Array, None]:
        """The f32 scale of groups whose weights lie in [low, high]; (*stack, n, groups)."""

    @abc.abstractmethod
    def round(self, matrix, scale, zero, fold, dtype) -> "ScaledArray":
        """The leaf with the nearest codes, given scales (*stack, n, groups); there is no zero."""

    @abc.abstractmethod
    def snap(self, values: Array, scale: Array, zero: None = None) -> Array:
        """What the nearest codes stand for, in f32, given scales as they are decoded."""

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "ScaledArray":
        if is_encoded(w):
            return w.map(self.encode)
        return _encode(self, w, tuple(axes))

    def fit(self, matrix: Array, fold: Fold, dtype: Any) -> "ScaledArray":
        """The leaf of a matrix (*stack, n, k), each group scaled to its largest weight."""
        return self.round(matrix, *self.spans(matrix), fold, dtype)

    def spans(self, matrix: Array, stats: Any = None) -> tuple[Array, None]:
        """The scales that span each group, (*stack, n, groups)."""
        parts = grouped(matrix, self.group)
        return self.range(parts.min(-1, initial=0.0), parts.max(-1, initial=0.0))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes):
    """Compiled, since step by step it would hold several copies of the weight in f32."""
    matrix, fold = Fold.from_weight(w, axes)
    return codec.fit(matrix.astype(jnp.float32), fold, w.dtype)


@dataclasses.dataclass(frozen=True)
class ScaledArray(MatrixLeaf):
    """Codes packed along n and scales (*stack, groups, n); a subclass says what a code means."""

    codes: tuple[Array, ...]  # bit fields, each (*stack, n·width/8, k)
    scale: Array  # (*stack, groups, n)
    bits: int = dataclasses.field(metadata=dict(static=True))
    group: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.scale.shape[:-2])

    @abc.abstractmethod
    def values(self, codes: Array) -> Array:
        """What unpacked codes (int8, as `unpack` gives them) stand for, in f32."""

    def scales(self) -> Array:
        """(*stack, groups, n) in f32."""
        return self.scale.astype(jnp.float32)

    def on_chip(self) -> dict[str, Any]:
        """What a kernel reads of an unstacked leaf; `values` of codes in int32."""
        how = dict(shifts=tuple(shifts(self.bits)), group=self.group)
        return dict(fields=self.codes, scale=self.scale, values=self.values, **how)

    def rows(self):
        codes = unpack(self.codes, self.bits, self.scale.shape[-1], axis=-2)
        return self._scaled(codes, self.scales())

    def interleaved_rows(self):
        parts, scale = strands(self.codes, self.bits, self.scale.shape[-1], axis=-2), self.scales()
        return [self._scaled(codes, scale[..., j :: len(parts)]) for j, codes in enumerate(parts)]

    def _scaled(self, codes, scale):
        """Rows in f32 of their codes (*stack, rows, k) and scales (*stack, groups, rows)."""
        scale, k = scale.mT, codes.shape[-1]
        scale = scale if scale.shape[-1] == 1 else jnp.repeat(scale, self.group, -1)[..., :k]
        return self.values(codes) * scale

    def slice_rows(self, start, size):
        def cut(field, width):
            return lax.dynamic_slice_in_dim(field, start * width // 8, -(-size * width // 8), 0)

        codes = tuple(cut(a, w) for a, w in zip(self.codes, WIDTHS[self.bits]))
        scale = lax.dynamic_slice_in_dim(self.scale, start, size, 1)
        return dataclasses.replace(self, codes=codes, scale=scale)

    def shard_matrix(self, fold, side, parts):
        how = dict(group=self.group, widths=WIDTHS[self.bits])
        cut = divided(self.codes, self.scale, fold, side, parts, **how)
        if cut is NotImplemented:
            return cut
        return dataclasses.replace(self, codes=cut[0], scale=cut[1], fold=fold)

    def take_rows(self, index):
        at = index.reshape(-1)
        rows = self._scaled(unpack_rows(self.codes, self.bits, at), self.scales()[:, at])
        return rows.reshape(*index.shape, rows.shape[-1])

    def matmul(self, x, precision=None):
        return _shared_matmul(x, self, precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _matmul(x, leaf, precision):
    """x (m, k) . rows^T: (m, n) f32, by what is fast where it runs."""
    wide = functools.partial(cpu_product, precision=precision)
    elsewhere = functools.partial(decoded_product, precision=precision, unrolled=UNROLLED_TILES)
    alone = leaf.scale.shape[-2] == 1 and getattr(leaf, "low", None) is None
    if alone and (leaf.bits == 8 or len(x) == 1):
        elsewhere = functools.partial(_scaled_after, precision=precision)
    else:
        elsewhere = functools.partial(packed_product, otherwise=elsewhere, precision=precision)
    return lax.platform_dependent(x, leaf, cpu=wide, default=elsewhere)


@_matmul.defjvp
def _matmul_jvp(precision, primals, tangents):
    decoded = functools.partial(decoded_product, precision=precision)
    return _matmul(*primals, precision), jax.jvp(decoded, primals, tangents)[1]


_shared_matmul = jax.jit(_matmul, static_argnums=2)  # layers of one shape trace and lower it once


def _scaled_after(x, leaf, precision):
    """(x . values) · scale: the accelerator reads packed codes and nothing is materialised."""

    def dot(codes):
        w = leaf.values(codes).astype(x.dtype)
        return lax.dot_general(x, w, _LAST, precision, preferred_element_type=jnp.float32)

    (field,), n = leaf.codes, leaf.scale.shape[-1]
    return interleave([dot(part) for part in slices(field, leaf.bits)], -1)[:, :n] * leaf.scales()


def checked_group(codec: Any) -> None:
    group = codec.group
    if group is not None and (not isinstance(group, int | np.integer) or group < 1):
        name = type(codec).__name__
        raise ValueError(f"{name} takes a group of at least 1 weight, an integer, got {group!r}")


def grouped(matrix: Array, group: int | None) -> Array:
    """The matrix (*stack, n, k) as (*stack, n, groups, group), the last group padded with zeros."""
    k = matrix.shape[-1]
    g = min(group or k, k) or 1
    short = [(0, 0)] * (matrix.ndim - 1) + [(0, -k % g)]
    return jnp.pad(matrix, short).reshape(*matrix.shape[:-1], -(-k // g), g)


def spread(groups: Array, group: int | None, k: int) -> Array:
    """One number a group (*stack, n, groups), for each weight (*stack, n, k)."""
    return jnp.repeat(groups, min(group or k, k) or 1, -1)[..., :k]


def packed(codes: Array, bits: int) -> tuple[Array, ...]:
    """Codes (*stack, n, k) as bit fields along n."""
    return pack(codes.astype(jnp.uint8), bits, axis=-2)


def selected(codes: Array, levels) -> Array:
    """levels[codes] as a chain of selections: a TPU takes 1 GiB for the gather of one matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> selected(jnp.array([1, 0, 2], jnp.int8), (0.5, 1.5, 4.0)).tolist()
        [1.5, 0.5, 4.0]
    """
    pick = lambda y, pair: jnp.where(codes == pair[0], pair[1], y)
    return functools.reduce(pick, enumerate(levels[1:], 1), jnp.full(codes.shape, levels[0], "f4"))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _packed(x, leaf, precision):
    """x (m, k) . rows^T: (m, n) f32, by what is fast where it runs."""
    wide = functools.partial(cpu_product, precision=precision)
    tiles = functools.partial(decoded_product, precision=precision, unrolled=UNROLLED_TILES)
    elsewhere = functools.partial(packed_product, otherwise=tiles, precision=precision)
    return lax.platform_dependent(x, leaf, cpu=wide, default=elsewhere)


@_packed.defjvp
def _packed_jvp(precision, primals, tangents):
    decoded = functools.partial(decoded_product, precision=precision)
    return _packed(*primals, precision), jax.jvp(decoded, primals, tangents)[1]


packed_matmul = jax.jit(_packed, static_argnums=2)  # layers of one shape trace and lower it once
