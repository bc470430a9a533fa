"""Pages that none of their layers sees any more, since these have a window, are free again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arguments import takes
from .page_allocator import drop
from .page_pool import PagePool


@takes()
@jax.jit
def release_behind(pool: PagePool) -> PagePool:
    """The pool without the pages that lie behind the windows of all their layers, for each row.

    A row of any length then takes ⌈window / size⌉ + 1 pages at most, besides the new ones and those
    of its sinks. It cannot be shared from any more.

    Raises:
        ValueError: each page has a layer that sees all tokens.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config = llama.Config(**sizes, local=(True, True), window=12)
        >>> pool = jm.Pages(size=8).empty(config, pages=8, rows=1, most=8)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([40]))
        >>> pool = jm.pages.release_behind(dataclasses.replace(pool, length=pool.room))
        >>> pool.table.tolist(), int(pool.top)  # the next query, at 40, sees tokens from 29 on
        ([[0, 0, 0, 4, 5, 0, 0, 0]], 6)
    """
    reaches = pool.groups.reaches
    if set(reaches) == {None}:
        raise ValueError(
            "release_behind: each page has a layer that sees all tokens, so none is free; "
            "jm.Pages(window=...) sets a window, and jm.Pages(by_window=True) sets layers apart"
        )
    reach = np.array([pool.limit if reach is None else reach for reach in reaches], np.int32)
    column = np.arange(pool.most)
    starts = (column // len(reaches) * pool.size).astype(np.int32)
    first_seen = pool.length[:, None] - reach[column % len(reaches)][None] + 1
    behind = (starts + pool.size)[None] <= first_seen
    behind &= starts[None] >= pool.options.sinks
    pool = drop(pool, jnp.where(behind, pool.table, 0).reshape(-1))
    return dataclasses.replace(pool, table=jnp.where(behind, 0, pool.table))
