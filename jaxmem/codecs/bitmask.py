"""Bitmask: one bit for each weight says whether it is kept; the kept values follow in order."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from .packing import pack
from .row_sparse import RowSparse, RowSparseArray
from .sparse import compressed


@dataclasses.dataclass(frozen=True)
class Bitmask(RowSparse):
    """Keeps round(density · k) of the k weights of each output channel, those largest in size.

    It takes density + 1/32 of the bytes of f32, or density + 1/16 of bf16. The kept weights are
    exact, or encoded by the next codec of a `Chain`. It saves storage: a product decodes some rows
    at a time. It is smaller than `Csr` above a density of about 1/16 (f32). Han et al., 2015.

    Raises:
        ValueError: `density` is not between 0 and 1, or keeps none or all of k weights.

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
        >>> size(jm.Chain((jm.Bitmask(0.4), jm.Int(8))))  # .1 + 1/32 of `bert`, and the scales
        178542500
        >>> share = lambda codec: jm.nbytes(codec.encode(jnp.ones((320, 8)))) / (4 * 320 * 8)
        >>> share(jm.Bitmask(0.4)), share(jm.Bitmask(0.5))  # .4 and .5, and the mask
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

    def encode_masked(self, matrix, mask, fold, dtype):
        values, _ = compressed(matrix, mask, self.kept(fold.k))
        (bits,) = pack(mask.astype(jnp.uint8), 1, axis=-1)
        return BitmaskArray(values.astype(dtype), fold, jnp.dtype(dtype), bits)

    def cut_places(self, places, k):
        return places[..., : -(-k // 8)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitmaskArray(RowSparseArray):
    """Values (*stack, n, kept) and the mask, eight neighbours of a row in a byte."""

    bits: Array  # (*stack, n, ⌈k/8⌉) uint8, the first weight in the lowest bit
    places_field = "bits"

    def dense(self, values, places):
        return expand_bitmask(places, values, self.fold.k)


def expand_bitmask(bits: Array, values: Array, k: int) -> Array:
    """Rows (..., k) with values (..., kept) where packed bits (..., ⌈k/8⌉) are set, else zero.

    Example:
        >>> import jax.numpy as jnp
        >>> expand_bitmask(jnp.array([0b1010], jnp.uint8), jnp.array([5.0, 7.0]), 5).tolist()
        [0.0, 5.0, 0.0, 7.0, 0.0]
    """
    counts = lax.population_count(bits).astype(jnp.int32)
    before = jnp.cumsum(counts, -1) - counts  # kept values of the bytes to the left
    place = jnp.arange(8, dtype=jnp.uint8).reshape((1,) * bits.ndim + (8,))
    bits = bits[..., None]
    lower = lax.population_count(bits & ((jnp.uint8(1) << place) - jnp.uint8(1)))
    flat = lambda a: lax.collapse(a, a.ndim - 2)[..., :k]
    rank = flat(before[..., None] + lower.astype(jnp.int32))
    is_set = flat((bits >> place & 1).astype(bool))
    # A bit after the last value has a rank past the end, and is not set.
    ranked = jnp.take_along_axis(values, rank, -1, mode="clip")
    return jnp.where(is_set, ranked, 0.0)
