"""What of a pool is in use: capacity = free + allocated; utilisation = tokens / slots."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np

from ..core.arguments import takes
from .page_pool import PagePool


@dataclasses.dataclass(frozen=True)
class Usage:
    """Pages and tokens of a pool at one time.

    `free` = `capacity` − `allocated`, in pages; `shared` pages have more than one reference.
    `tokens` are those that pages hold, each once; a page that no row has, but is held, counts as
    full. Where layers have pages of their own, a token counts by the share of groups of layers that
    keep it. `utilisation` is tokens ÷ slots of allocated pages, and `fragmentation` the empty rest:
    as pages are of one size, none is lost between them.

    `unseen` is the share of what pages hold, a token in a layer each, that lies behind the window
    of its layer: no query to come sees it. It is lost where a page holds other layers, too, which
    see further; `jm.Pages(by_window=True)` sets such layers apart, and `release_behind` frees what
    is behind all windows of a page. A token that a cache holds for other rows counts as seen.
    """

    capacity: int
    allocated: int
    free: int
    shared: int
    tokens: int
    utilisation: float
    fragmentation: float
    unseen: float = 0.0


@takes()
def usage(pool: PagePool) -> Usage:
    """`Usage` of a pool, read to the host.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=3, most=4)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([12, 8, 0]))
        >>> use = jm.pages.usage(dataclasses.replace(pool, length=pool.room))  # tokens are read
        >>> use.capacity, use.allocated, use.free, use.tokens, round(use.utilisation, 3)
        (4, 3, 1, 20, 0.833)
        >>> config = llama.Config(**sizes, local=(True, False), window=4)
        >>> pool = jm.Pages(size=8).empty(config, pages=4, rows=1, most=4)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([19]))
        >>> jm.pages.usage(dataclasses.replace(pool, length=pool.room)).unseen  # 16 of 19, and 0
        0.42105263157894735
    """
    parts = (pool.table, pool.length, pool.refs)
    table, length, refs = (np.asarray(x) for x in jax.device_get(parts))
    groups = len(pool.groups)
    slots = np.arange(pool.most) // groups * pool.size
    filled = np.clip(length[:, None] - slots[None], 0, pool.size)
    in_table = np.zeros(len(refs), bool)
    in_table[table] = True
    by_page = functools.partial(_by_page, table, (refs > 0) & ~in_table, pool.size)
    of_page = by_page(filled)
    allocated, tokens = int((refs > 0).sum()), int(of_page.sum())
    utilisation = tokens / (allocated * pool.size) if allocated else 0.0
    return Usage(
        capacity=pool.capacity,
        allocated=allocated,
        free=int(pool.top),
        shared=int((refs > 1).sum()),
        tokens=tokens // groups,
        utilisation=utilisation,
        fragmentation=1 - utilisation if allocated else 0.0,
        unseen=_unseen(pool, by_page, filled, length),
    )


def _by_page(table: np.ndarray, kept: np.ndarray, size: int, tokens: np.ndarray) -> np.ndarray:
    """The most tokens that any row has in each page (1 + capacity,).

    Args:
        table: (rows, most) pages.
        kept: (1 + capacity,) which pages no row has, but are held.
        size: tokens of a page.
        tokens: (rows, most) tokens in each column of the table.
    """
    found = np.zeros(len(kept), np.int64)
    np.maximum.at(found, table, tokens)
    found[kept] = size
    found[0] = 0
    return found


def _unseen(
    pool: PagePool,
    by_page: Callable[[np.ndarray], np.ndarray],
    filled: np.ndarray,
    length: np.ndarray,
) -> float:
    """The share of what pages hold that no query to come sees.

    Args:
        pool: the pool.
        by_page: tokens (rows, most) in the columns of its table -> in its pages.
        filled: (rows, most) tokens that pages hold.
        length: (rows,) tokens of each row.
    """
    groups = pool.groups
    column = np.arange(pool.most)
    starts = column[None] // len(groups) * pool.size
    held = seen = 0
    for number, layers in enumerate(groups.layers):
        mine = column % len(groups) == number
        for window, count in Counter(groups.windows[layer] for layer in layers).items():
            first = np.maximum(length - (window or pool.limit + 1) + 1, 0)[:, None]
            near = starts + filled - np.maximum(starts, first)
            sinks = np.minimum(pool.options.sinks, first) - starts
            seen_here = np.clip(near, 0, filled) + np.clip(sinks, 0, filled)
            seen += count * by_page(np.where(mine, np.minimum(seen_here, filled), 0)).sum()
            held += count * by_page(np.where(mine, filled, 0)).sum()
    return float(1 - seen / held) if held else 0.0
