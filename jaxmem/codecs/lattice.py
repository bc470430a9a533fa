"""LatticeArray: w ≈ scale · sign · point[index], one index for 4 or 8 neighbouring weights.

Weights in turn are a point of a table, which was chosen from a lattice, up to their signs: the IQ1,
IQ2 and IQ3 types of GGUF. Tseng et al., 2024 (QuIP#), have the idea. Such leaves are read from
files; no codec here makes them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..kernels.decoded_tiles import decoded_product
from .packing import WIDTHS, slice_packed, unpack, unpack_rows

_SHIFT = 0.125  # of the points of IQ1, upwards or downwards


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatticeArray(MatrixLeaf):
    """Indices and signs packed along n; a table of points; scales as an array or a leaf.

    With 7 bits for the signs of 8 weights, the eighth makes the number of minus signs even. In a
    type without signs, points are shifted by 1/8, up or down.

    Example:
        >>> index, signs = jnp.array([[1]], jnp.uint8), (jnp.array([[-126]], jnp.int8),)
        >>> points = jnp.array([[0] * 8, [1, 2, 3, 4, 5, 6, 7, 8]], jnp.int8)
        >>> leaf = LatticeArray(index, (), signs, (), points, jnp.array([[0.5]]), 0, 8, 0, 8,
        ...                     Fold((1,), (8,), (-2, -1)), jnp.dtype("float32"))
        >>> leaf.decode().tolist()
        [[0.5, -1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]]
    """

    index: Array  # (*stack, n, k / size of a point) uint8: the lowest 8 bits
    high: tuple[Array, ...]  # bit fields of the other bits
    signs: tuple[Array, ...]  # bit fields (*stack, n·width/8, k / 8)
    shifts: tuple[Array, ...]  # bit fields; a 1 shifts down
    points: Array  # (*stack, entries, size of a point) int8
    scale: Any  # (*stack, groups, n)
    high_bits: int = dataclasses.field(metadata=dict(static=True))
    sign_bits: int = dataclasses.field(metadata=dict(static=True))
    shift_group: int = dataclasses.field(metadata=dict(static=True))  # weights of a shift; 0: none
    group: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    integer_fields = MatrixLeaf.integer_fields | {"index", "high", "signs", "shifts", "points"}
    batch_shape = property(lambda self: self.index.shape[:-2])

    def rows(self):
        n = self.index.shape[-2]
        read = lambda fields, bits: _unsigned(unpack(fields, bits, n, -2), bits)
        return self._values(self.index, self._scales(), read)

    def take_rows(self, index):
        flat = index.reshape(-1)
        read = lambda fields, bits: _unsigned(unpack_rows(fields, bits, flat), bits)
        rows = self._values(self.index[flat], self._scales()[:, flat], read)
        return rows.reshape(*index.shape, rows.shape[-1])

    def slice_rows(self, start, size):
        cut = lambda fields, bits: slice_packed(fields, WIDTHS[bits], start, size)
        return dataclasses.replace(
            self,
            index=lax.dynamic_slice_in_dim(self.index, start, size, 0),
            high=cut(self.high, self.high_bits) if self.high else (),
            signs=cut(self.signs, self.sign_bits) if self.signs else (),
            shifts=cut(self.shifts, 1) if self.shifts else (),
            scale=lax.dynamic_slice_in_dim(self._scales(), start, size, 1),
        )

    def matmul(self, x, precision=None):
        # Scales are decoded once, not in each tile.
        return decoded_product(x, dataclasses.replace(self, scale=self._scales()), precision)

    def _scales(self):
        """(*stack, groups, n) in f32."""
        return self.scale.decode() if is_encoded(self.scale) else self.scale

    def _values(self, low, scale, read):
        """Rows in f32 of indices (*stack, rows, k / size) and scales (*stack, groups, rows).

        `read(fields, bits)` gives the numbers in bit fields for these rows, as int32.
        """
        index, k = low.astype(jnp.int32), self.fold.k
        if self.high:
            index = index | read(self.high, self.high_bits) << 8
        look_up = jnp.vectorize(lambda table, i: table[i], signature="(e,g),(r,m)->(r,m,g)")
        shape = (*low.shape[:-1], k)
        values = look_up(self.points, index).reshape(shape).astype(jnp.float32)
        if self.signs:
            signs = read(self.signs, self.sign_bits)
            if self.sign_bits == 7:
                signs = signs | (lax.population_count(signs) & 1) << 7
            minus = jnp.stack([signs >> j & 1 for j in range(8)], -1).reshape(shape)
            values = jnp.where(minus == 1, -values, values)
        if self.shifts:
            down = jnp.repeat(read(self.shifts, 1), self.shift_group, -1)
            values = values + jnp.where(down == 1, -_SHIFT, _SHIFT)
        return values * jnp.repeat(scale.mT, self.group, -1)


def _unsigned(codes: Array, bits: int) -> Array:
    """Codes as `unpack` gives them, as int32 from 0 on."""
    return codes.astype(jnp.int32) + (128 if bits == 8 else 0)
