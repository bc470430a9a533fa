"""What of a pool is in use: capacity = free + allocated; utilisation = tokens / slots."""

import dataclasses

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
    """

    capacity: int
    allocated: int
    free: int
    shared: int
    tokens: int
    utilisation: float
    fragmentation: float


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
    """
    parts = (pool.table, pool.length, pool.refs)
    table, length, refs = (np.asarray(x) for x in jax.device_get(parts))
    groups = len(pool.groups)
    slots = np.arange(pool.most) // groups * pool.size
    filled = np.clip(length[:, None] - slots[None], 0, pool.size)
    of_page = np.zeros(len(refs), np.int64)
    np.maximum.at(of_page, table, filled)
    in_table = np.zeros(len(refs), bool)
    in_table[table] = True
    of_page[(refs > 0) & ~in_table] = pool.size
    of_page[0] = 0
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
    )
