"""padded_encoder: a matrix is encoded with rows and columns of zeros behind it, and its leaf cut.

So weights of many shapes share a program, and each has the bits of a program of its own.
"""

import jax.numpy as jnp
from jax import Array, lax

from .codec import Codec, PaddedEncoder, ignores_zeros


def padded_encoder(codec: Codec) -> PaddedEncoder | None:
    """What encodes padded matrices as a codec encodes them without the padding; None if nothing.

    Example:
        >>> import jaxmem as jm
        >>> padded_encoder(jm.NM(2, 4)).unit, padded_encoder(jm.LowRank(8))
        (4, None)
    """
    own = getattr(codec, "padded_encoder", None)
    if own is not None:
        return own()
    if not ignores_zeros(codec):
        return None
    return PaddedEncoder(
        lambda matrix, _: codec.encode(matrix, (-1,)), lambda leaf, fold: leaf.cut(fold)
    )


def with_last_column(matrix: Array, columns: Array) -> Array:
    """The matrix (*stack, n, k) with a copy of column `columns` − 1 in all columns behind it.

    Example:
        >>> with_last_column(jnp.array([[1.0, 2.0, 0.0, 0.0]]), 2).tolist()
        [[1.0, 2.0, 2.0, 2.0]]
    """
    index = jnp.minimum(jnp.arange(matrix.shape[-1]), columns - 1)
    return jnp.take(matrix, index, -1)


def block_of_sums(group: int | None) -> int:
    """The block of `sum_in_blocks` for groups of this length: a power of two, 64 at most.

    Example:
        >>> block_of_sums(24), block_of_sums(None)
        (32, 64)
    """
    return min(64, 1 << ((group or 64) - 1).bit_length())


def sum_in_blocks(x: Array, block: int) -> Array:
    """The sum over the last axis, in an order that zeros behind do not change.

    Blocks of `block` numbers are summed, and then their sums in pairs, of the first half and the
    second half of a power of two. The barrier keeps a compiler from joining the sum with a product
    before it, where the product would not be rounded.

    Example:
        >>> sum_in_blocks(jnp.arange(10.0), 4).item()
        45.0
    """
    fill = lambda x, size: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
    x = lax.optimization_barrier(x)
    count = max(1, -(-x.shape[-1] // block))
    x = fill(x, count * block) if x.shape[-1] % block or not x.shape[-1] else x
    sums = x.reshape(*x.shape[:-1], count, block).sum(-1)
    sums = fill(sums, 1 << (count - 1).bit_length())
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]
