"""Bitmask: one bit a weight says whether it is there, and the values that are stand in order."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.leaf import divided_shape
from .packing import pack
from .sparse import (
    Count,
    Sparse,
    SparseArray,
    checked_density,
    compressed,
    highest,
    kept_count,
    kept_of,
    narrow_values,
    pick_values,
    value_rows,
)


@dataclasses.dataclass(frozen=True)
class Bitmask(Sparse):
    """Keeps round(density · k) of the k weights of each output channel, those largest in size.

    d of the weights and a bit for each are there: d + 1/32 of f32, d + 1/16 of bf16. What stays is
    exact, or encoded by what follows in a `Chain`. A form to store: a product decodes it some rows
    at a time. Wins over `Csr` above about 1/16 (f32) of the weights. Han et al., 2015.

    Raises:
        ValueError: a density that is not between 0 and 1, or keeps none or all of k weights.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.arange(-32.0, 32.0).reshape(64, 1)
        >>> leaf = jm.Bitmask(density=0.5).encode(w)
        >>> jm.nbytes(leaf) / jm.nbytes(w)  # .5 + 1/32
        0.53125
        >>> jm.nbytes(jm.Chain((jm.Bitmask(0.5), jm.Int(8))).encode(w))  # 8 + 32 and a scale
        42
        >>> bert = jax.ShapeDtypeStruct((16_000, 21_250), jnp.float32)  # 340M weights, 1.36 GB
        >>> size = lambda codec: jm.nbytes(jax.eval_shape(codec.encode, bert))
        >>> size(jm.Bitmask(0.4)) / jm.nbytes(bert)  # .4 + 1/32
        0.43125
        >>> size(jm.Chain((jm.Bitmask(0.4), jm.Int(8))))  # .1 + 1/32 of it, and the scales
        178542500
        >>> share = lambda codec: jm.nbytes(codec.encode(jnp.ones((320, 8)))) / (4 * 320 * 8)
        >>> share(jm.Bitmask(0.4)), share(jm.Bitmask(0.5))  # the textbook's .4 and .5, and the mask
        (0.43125, 0.53125)
        >>> share(jm.Chain((jm.Bitmask(0.4), jm.Int(8)))) - 2 / 1280  # .1 + 1/32, and a scale a row
        0.13125
        >>> jm.nbytes(jnp.zeros(320)) == jm.nbytes(jnp.ones(320))  # zeros stored dense save nothing
        True
        >>> [float(x) for x in leaf.decode()[14:18, 0]]  # -16 and 16 tie
        [-18.0, -17.0, -16.0, 0.0]
    """

    density: float = 0.5
    independent_rows: ClassVar[bool] = True

    def __post_init__(self):
        checked_density(self.density, "Bitmask")

    def mask(self, scores, count: Count = kept_of):
        k = scores.shape[-1]
        return highest(scores, count(k, self._count(k)))

    def hold(self, matrix, mask, fold, dtype):
        values, _ = compressed(matrix, mask, self._count(fold.k))
        (bits,) = pack(mask.astype(jnp.uint8), 1, axis=-1)
        return BitmaskArray(values.astype(dtype), fold, jnp.dtype(dtype), bits)

    def _count(self, k):
        return kept_count(self.density, k, "weights of each row")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitmaskArray(SparseArray):
    """Values (*stack, n, kept) and the mask, eight neighbours of a row in a byte."""

    bits: Array  # (*stack, n, ⌈k/8⌉) uint8, the first weight in the lowest bit

    def rows(self):
        return spread_values(self.bits, value_rows(self.values), self.fold.k)

    def slice_rows(self, start, size):
        values = narrow_values(self.values, start, size)
        bits = lax.dynamic_slice_in_dim(self.bits, start, size, 0)
        return dataclasses.replace(self, values=values, bits=bits)

    def shard_matrix(self, fold, side, parts):
        if side == "summed":  # runs of columns keep different numbers of weights
            return NotImplemented
        return self.cut_rows(fold, parts, bits=divided_shape(self.bits, -2, parts))

    def take_rows(self, index):
        at = index.reshape(-1)
        rows = spread_values(self.bits[at], pick_values(self.values, at), self.fold.k)
        return rows.reshape(*index.shape, self.fold.k)


def spread_values(bits: Array, values: Array, k: int) -> Array:
    """Rows (..., k) with values (..., kept) where packed bits (..., ⌈k/8⌉) are set, else zero.

    Example:
        >>> import jax.numpy as jnp
        >>> spread_values(jnp.array([0b1010], jnp.uint8), jnp.array([5.0, 7.0]), 5).tolist()
        [0.0, 5.0, 0.0, 7.0, 0.0]
    """
    counts = lax.population_count(bits).astype(jnp.int32)
    before = jnp.cumsum(counts, -1) - counts  # values that the bytes to the left hold
    place = jnp.arange(8, dtype=jnp.uint8).reshape((1,) * bits.ndim + (8,))
    bits = bits[..., None]
    lower = lax.population_count(bits & ((jnp.uint8(1) << place) - jnp.uint8(1)))
    flat = lambda a: a.reshape(*a.shape[:-2], -1)[..., :k]
    rank = flat(before[..., None] + lower.astype(jnp.int32))
    there = flat((bits >> place & 1).astype(bool))
    # the bits after the last value have a rank past the end, and are not there
    found = jnp.take_along_axis(values, rank, -1, mode="clip")
    return jnp.where(there, found, 0.0)
