"""PagedRows: where the new tokens of each row go in a pool, as one call of a model has it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .page_pool import PagePool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedRows:
    """In place of the position of a row's first token: rows of a pool start at places of their own.

    A row has room for `counts` of the given tokens. The rest is padding, which is not stored and
    has the position of the last real token.
    """

    numbers: Array  # (B,) int32: rows of the pool; beyond them for what is no row
    starts: Array  # (B,) int32: tokens before the first given one
    counts: Array  # (B,) int32
    table: Array  # (B, most) int32
    is_whole: bool = dataclasses.field(metadata=dict(static=True))  # all rows, in order

    def positions(self, steps: int) -> Array:
        """The position of each of `steps` tokens, (B, steps)."""
        last = jnp.maximum(self.counts - 1, 0)[:, None]
        step = jnp.minimum(jnp.arange(steps, dtype=jnp.int32)[None], last)
        return self.starts[:, None] + step

    @property
    def ends(self) -> Array:
        """The tokens of each row after the call, (B,); 0 for a row without new tokens."""
        return jnp.where(self.counts > 0, self.starts + self.counts, 0)

    def of_group(self, group: Array | int, groups: int) -> "PagedRows":
        """The same rows, with the table of one of `groups` groups of layers."""
        if groups == 1:
            return self
        table = self.table.reshape(len(self.table), -1, groups)
        table = lax.dynamic_index_in_dim(table, group, 2, keepdims=False)
        return dataclasses.replace(self, table=table)

    def pages(self, column: Array) -> Array:
        """The page of each row in a column (B,) of its table: (B,), 0 outside the table."""
        most = self.table.shape[1]
        page = jnp.take_along_axis(self.table, jnp.minimum(column, most - 1)[:, None], axis=1)
        return jnp.where(column < most, page[:, 0], 0)


def position_in(cache: Any, ids: Array, position: Any, rows: Array | None) -> Any:
    """The position of ids (B, T): `position` itself, or `PagedRows` if the cache is a pool.

    Args:
        cache: a pool, another cache, or None.
        ids: token ids (B, T).
        position: what the caller gave; a pool knows it, and takes 0 only.
        rows: rows (B,) of the pool, all different; None for all of them, in order.

    Raises:
        ValueError: a position for a pool, rows without a pool, or another number of rows than B.
    """
    if not isinstance(cache, PagePool):
        if rows is not None:
            raise ValueError("rows are given without a pool of jm.Pages, which has rows")
        return position
    if not (isinstance(position, int) and position == 0):
        raise ValueError("a position is given with a pool, whose rows go on where they ended")
    return _paged_rows(cache, ids, rows)


def advanced(pool: PagePool, where: PagedRows) -> PagePool:
    """The pool after all layers have written the tokens of `where`: its rows are longer."""
    length = pool.length.at[where.numbers].add(where.counts, mode="drop")
    return dataclasses.replace(pool, length=length)


def _paged_rows(pool: PagePool, ids: Array, rows: Array | None) -> PagedRows:
    """Where ids (B, T) go: to rows `rows` (B,) of the pool, or to all of them in order."""
    batch, steps = ids.shape
    numbers = jnp.arange(pool.rows, dtype=jnp.int32)
    starts, room, table = pool.length, pool.room, pool.table
    if rows is not None:
        numbers = jnp.asarray(rows).astype(jnp.int32)
        is_row = pool.is_row(numbers)
        starts, room, table = (jnp.take(x, numbers, 0, mode="clip") for x in (starts, room, table))
        starts, room = (jnp.where(is_row, x, 0) for x in (starts, room))
        numbers = jnp.where(is_row, numbers, pool.rows)
    if numbers.shape != (batch,):
        raise ValueError(
            f"ids of {batch} rows for rows of shape {numbers.shape} of the pool; give `rows`, a "
            "number for each row of the ids"
        )
    return PagedRows(numbers, starts, jnp.minimum(room - starts, steps), table, rows is None)
