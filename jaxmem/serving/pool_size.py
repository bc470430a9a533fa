"""How many pages a number of bytes holds, and how many tokens a program reads."""

from typing import Any

import jax
from jax.typing import DTypeLike

from ..core.byte_counts import nbytes as bytes_of
from ..kv_cache.page_pool import Pages

_LEAST_CHUNK = 128  # tokens


class PoolTooSmall(ValueError):
    """A number of bytes that does not hold the smallest pool; `least` is what that takes."""

    def __init__(self, nbytes: int | float, least: int, rows: int):
        self.least = least
        super().__init__(
            f"nbytes is {nbytes}, expected at least {least}: a pool of {rows} rows and one page"
        )


def chunk_of(chunk: int | None, size: int) -> int:
    """Tokens of a prompt that one program reads: a multiple of a page, or a divisor.

    Raises:
        ValueError: it is neither.

    Example:
        >>> chunk_of(None, 64), chunk_of(None, 48), chunk_of(16, 64)
        (128, 144, 16)
    """
    chunk = -(-_LEAST_CHUNK // size) * size if chunk is None else chunk
    if chunk < 1 or (chunk % size and size % chunk):
        raise ValueError(f"chunk is {chunk}, expected a positive multiple of {size}, or a divisor")
    return chunk


def pages_within(
    nbytes: int, how: Pages, config: Any, *, rows: int, most: int, dtype: DTypeLike
) -> int:
    """The most pages with which a pool takes no more than `nbytes` bytes.

    Pages of a model without attention hold nothing, and no more are given than all rows can take.

    Args:
        nbytes: bytes of the pool: pages, tables and counts.
        how: the form of its pages.
        config: the configuration of a decoder.
        rows: rows of the pool.
        most: the most pages of a row.
        dtype: the type of keys and values.

    Raises:
        PoolTooSmall: not even a pool of one page is so small.
        NotImplementedError: no pool holds what this model keeps.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> config = jm.models.load("smollm2-135m").config
        >>> pages_within(256_000_000, Pages(), config, rows=8, most=32, dtype=jnp.bfloat16)
        172
    """
    pools = [
        jax.eval_shape(lambda: how.empty(config, n, rows, most, dtype))  # noqa: B023
        for n in (1, 2)
    ]
    one, two = map(bytes_of, pools)
    if nbytes < one:
        raise PoolTooSmall(nbytes, one, rows)
    count = 1 + int(nbytes - one) // (two - one)
    return count if pools[0].stores[0].keys.size else min(count, rows * most)
