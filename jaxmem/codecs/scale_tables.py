"""Scales of other tools' files in the bytes of the file: one for a block of rows, or codes.

All stand for an f32 array (*stack, groups, n). They are the `scale` in a `DoubleQuantArray` or
a `LatticeArray`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.leaf import Encoded, divided_shape
from .packing import unpack


class _Scales(Encoded):
    """An array (*stack, groups, n) of f32."""

    dtype = jnp.dtype("float32")
    stack = property(lambda self: self.shape[:-2])

    def astype(self, dtype):
        """Itself: scales are decoded to f32 whatever the dtype of the weight."""
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowBlockScales(_Scales):
    """Scales that `block` neighbouring rows share; the last block may be short.

    Example:
        >>> RowBlockScales(jnp.array([[1.0, 2.0]]), 2, 3).decode().tolist()
        [[1.0, 1.0, 2.0]]
    """

    values: Array  # (*stack, groups, ⌈n / block⌉)
    block: int = dataclasses.field(metadata=dict(static=True))
    n: int = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: (*self.values.shape[:-1], self.n))

    def decode(self):
        return jnp.repeat(self.values.astype(jnp.float32), self.block, -1)[..., : self.n]

    def shard_shape(self, axis, parts):
        axis -= self.ndim if axis >= 0 else 0
        if axis < -1:
            return dataclasses.replace(self, values=divided_shape(self.values, axis, parts))
        if self.n % parts or (self.n // parts % self.block and self.values.shape[-1] > 1):
            return NotImplemented
        values = self.values
        values = divided_shape(values, -1, parts) if values.shape[-1] > 1 else values
        return dataclasses.replace(self, values=values, n=self.n // parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NestedScales(_Scales):
    """table[code] · absmax of a block of codes + offset: bitsandbytes' double quantization.

    Codes are counted row by row of the weight, and `block` of them in turn share an `absmax`; the
    first `start` of the first block belong to rows that are not here. Dettmers et al., 2023.

    Example:
        >>> codes, table = jnp.array([[0, 1, 1]], jnp.uint8), jnp.array([0.5, 1.0])
        >>> absmax, offset = jnp.array([2.0, 4.0]), jnp.array(0.25)
        >>> NestedScales(codes, table, absmax, offset, 2, 0).decode().tolist()
        [[1.25, 2.25, 4.25]]
    """

    codes: Array  # (*stack, groups, n) uint8
    table: Array  # (*stack, 256) f32
    absmax: Array  # (*stack, blocks) f32
    offset: Array  # (*stack,) f32
    block: int = dataclasses.field(metadata=dict(static=True))
    start: int = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: self.codes.shape)

    def decode(self):
        groups, n = self.shape[-2:]
        place = jnp.arange(n)[None] * groups + jnp.arange(groups)[:, None] + self.start
        take = jnp.vectorize(lambda a, i: a[i], signature="(m),(g,n)->(g,n)")
        parts = take(self.table, self.codes), take(self.absmax, place // self.block)
        return parts[0] * parts[1] + self.offset[..., None, None]


def row_block_scales(values: np.ndarray, block: int, rows: np.ndarray) -> Any:
    """The scales (groups, rows) of some rows of a matrix with `values` (blocks of rows, groups).

    Rows in turn that begin with a block keep one scale a block; others have one each.

    Example:
        >>> values = np.array([[1.0], [2.0]], np.float32)
        >>> row_block_scales(values, 2, np.arange(4)).values.shape
        (1, 2)
        >>> row_block_scales(values, 2, np.array([3, 0])).tolist()
        [[2.0, 1.0]]
    """
    first, n = int(rows[0]), len(rows)
    if np.array_equal(rows, first + np.arange(n)) and (first % block == 0 or len(values) == 1):
        end = -(-(first + n) // block)
        return RowBlockScales(jnp.asarray(values[first // block : end].T), block, n)
    return jnp.asarray(values[rows // block].T)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OddScales(_Scales):
    """unit · factor · (2 · code + 1): the scales of GGUF's IQ1, IQ2 and IQ3.

    Example:
        >>> codes = (jnp.array([[0x21], [0x43]], jnp.uint8),)  # two groups of two rows
        >>> OddScales(codes, jnp.array([[1.0, 2.0]], jnp.float16), 4, 0.5).decode().tolist()
        [[1.5, 5.0], [3.5, 9.0]]
    """

    codes: tuple[Array, ...]  # bit fields (*stack, groups, n·width/8)
    unit: Array  # (*stack, groups / some, n) f16
    bits: int = dataclasses.field(metadata=dict(static=True))
    factor: float = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: (*self.codes[0].shape[:-1], self.unit.shape[-1]))

    def decode(self):
        codes = unpack(self.codes, self.bits, self.unit.shape[-1], -1).astype(jnp.float32)
        unit = jnp.repeat(self.unit.astype(jnp.float32), self.shape[-2] // self.unit.shape[-2], -2)
        return unit * self.factor * (2 * codes + 1)
