"""code >> d, step · 2ᵈ, low + step · (2ᵈ − 1) / 2: pages in fewer bits, without encoding again.

The high bits of a code are a code of fewer bits (as planes of QuantSpec are; Tiwari et al., 2025).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import Kind, takes
from .encoded_pages import split_ranges, unpacked_codes
from .page_pool import PagePool, PageStore
from .quantized import packed_codes

_PAGES = Kind(
    "a pool, or what take or take_row gave",
    lambda x: isinstance(x, PagePool | PageStore) or (isinstance(x, dict) and "pages" in x),
)


@takes(pages=_PAGES)
def fewer_bits(pages: Any, bits: int) -> Any:
    """A pool, or what `take` or `take_row` gave of one, whose codes have lost their low bits.

    Of a pool, rows, tables and counts stay as they are. What was taken from a pool of 8 bits can be
    put into one of 4, and the pool's own bytes come back when nothing else refers to it. Unfinished
    pages are floats and stay so.

    Error: beside that of the codes before, half a step of the new codes at most, as of pages that
    were encoded in `bits` bits, and 2^-10 · (|low| + range) for f16.

    Raises:
        ValueError: `bits` is not 4 or 2 and below what the codes have; or pages are floats.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(8, size=8).empty(llama.Config(**sizes), pages=64, rows=1, most=4)
        >>> fewer = jm.pages.fewer_bits(pool, 4)
        >>> fewer.options.bits, jm.nbytes(fewer.stores[0].keys) / jm.nbytes(pool.stores[0].keys)
        (4, 0.5)
    """
    if isinstance(pages, dict):
        return pages | {"pages": fewer_bits(pages["pages"], bits)}
    stores = pages.stores if isinstance(pages, PagePool) else (pages,)
    had = _bits_of(stores[0])
    if bits not in (4, 2) or bits >= had:
        raise ValueError(f"bits is {bits}, expected 4 or 2, and fewer than the {had} of the pages")
    stores = tuple(_fewer(store, had, bits) for store in stores)
    if isinstance(pages, PageStore):
        return stores[0]
    return dataclasses.replace(
        pages, stores=stores, options=dataclasses.replace(pages.options, bits=bits)
    )


def _bits_of(store: PageStore) -> int:
    """The bits of the codes of pages."""
    if store.ranges is None:
        raise ValueError("the pages hold floats, expected codes: jm.Pages(8)")
    return 8 * store.keys.shape[-2] // split_ranges(store)[2].shape[-1]


@functools.partial(jax.jit, static_argnames=("had", "bits"))
def _fewer(store: PageStore, had: int, bits: int) -> PageStore:
    lost = had - bits

    def codes(x: Array | None) -> Array | None:
        return None if x is None else packed_codes(unpacked_codes(x, had) >> lost, bits, -2)

    key_step, key_low, value_step, value_low = split_ranges(store)
    middle = (2**lost - 1) / 2
    parts = [key_step * 2**lost, key_low + key_step * middle]
    parts += [value_step * 2**lost, value_low + value_step * middle]
    ranges = jnp.concatenate(parts, -1).astype(store.ranges.dtype)
    return PageStore(codes(store.keys), codes(store.values), ranges)
