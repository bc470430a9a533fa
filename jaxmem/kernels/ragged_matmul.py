"""Rows in segments, each times a matrix of its own: what `lax.ragged_dot` computes, by tiles.

XLA for CPU and GPU multiplies all rows by all matrices. Here a tile of rows belongs to one segment
and is multiplied by one matrix, so that an encoded stack of matrices is decoded one by one.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

_FEWEST_ROWS, _MOST_ROWS = 8, 512  # of a tile


def ragged_matmul(x: Array, w: Array, sizes: Array, dtype: Any = jnp.float32) -> Array:
    """The product (m, n) of segments of the rows of x, each with a matrix of w (Gale et al., 2023).

    The first `sizes[0]` rows are multiplied by `w[0]`, the next `sizes[1]` by `w[1]`, ... Rows
    after all segments give zeros. At most m + groups * tile rows are multiplied, where a tile has
    about m / groups rows.

    Args:
        x: rows (m, k).
        w: matrices (groups, k, n).
        sizes: rows of each segment, (groups,) int32.
        dtype: of the result.

    Example:
        >>> import jax.numpy as jnp
        >>> x, w = jnp.ones((4, 2)), jnp.array([[[1.0], [1.0]], [[5.0], [5.0]]])
        >>> ragged_matmul(x, w, jnp.array([1, 2]))[:, 0].tolist()
        [2.0, 10.0, 10.0, 0.0]
    """
    # 1. Each segment begins a tile.
    m, groups = x.shape[0], w.shape[0]
    tile = _tile_rows(m, groups)
    count = m // tile + groups  # at least the tiles of all segments
    sizes = sizes.astype(jnp.int32)
    row_ends = jnp.cumsum(sizes, dtype=jnp.int32)
    tile_counts = -(-sizes // tile)
    tile_ends = jnp.cumsum(tile_counts, dtype=jnp.int32)
    row_starts, tile_starts = row_ends - sizes, tile_ends - tile_counts

    # 2. The matrix and the rows of each tile. Rows of another segment become zeros.
    index = jnp.arange(count, dtype=jnp.int32)
    group = jnp.searchsorted(tile_ends, index, side="right").astype(jnp.int32)
    group = jnp.minimum(group, groups - 1)
    first = row_starts[group] + (index - tile_starts[group]) * tile
    rows = first[:, None] + jnp.arange(tile, dtype=jnp.int32)[None]
    in_tile = (rows < row_ends[group][:, None])[..., None]
    x_tiles = jnp.where(in_tile, jnp.take(x, rows, axis=0, mode="clip"), jnp.zeros((), x.dtype))

    # 3. The products.
    def multiply(_, tile):
        x, group = tile
        matrix = lax.dynamic_index_in_dim(w, group, 0, keepdims=False)
        dims = (((1,), (0,)), ((), ()))
        return None, lax.dot_general(x, matrix, dims, preferred_element_type=dtype)

    _, y_tiles = lax.scan(multiply, None, (x_tiles, group))

    # 4. The rows in order.
    row = jnp.arange(m, dtype=jnp.int32)
    of_row = jnp.searchsorted(row_ends, row, side="right").astype(jnp.int32)
    is_in_segment, of_row = of_row < groups, jnp.minimum(of_row, groups - 1)
    places = tile_starts[of_row] * tile + row - row_starts[of_row]
    y = jnp.take(y_tiles.reshape(-1, w.shape[-1]), places, axis=0, mode="clip")
    return jnp.where(is_in_segment[:, None], y, jnp.zeros((), y.dtype))


def _tile_rows(m: Any, groups: int) -> int:
    """Rows of a tile: those of a segment of usual size, as a power of two."""
    if not isinstance(m, int):  # a symbol of jax.export
        return _MOST_ROWS
    usual = max(m // groups, 1)
    return min(max(1 << (usual - 1).bit_length(), _FEWEST_ROWS), _MOST_ROWS)
