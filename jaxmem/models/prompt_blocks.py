"""A short prompt, read a few tokens at a time: one small program for prompts of every length.

The compiled library multiplies a few rows as fast as XLA multiplies a whole prompt, if that is
padded. A program of its calls is compiled in a tenth of the time, and loaded in as much.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from .device_decode_loop import Forward

MOST_BLOCK_TOKENS = 64  # a longer prompt is read faster at once


@functools.partial(jax.jit, static_argnames=("config", "forward", "columns", "room", "dtype"))
def logits_by_blocks(
    config: Any,
    forward: Forward,
    inputs: Any,
    ids: Array,
    count: Array,
    *,
    columns: int,
    room: int,
    dtype: DTypeLike,
) -> tuple[Array, Any]:
    """(logits (batch, vocab) after the first `count` ids of each row, a cache with them in it).

    It reads `columns` tokens at a time. One program reads prompts of every length up to that of
    `ids`, a multiple of `columns`; the cache has room for `room` tokens.
    """
    cache = config.cache(len(ids), room, dtype)

    def read(carry: tuple) -> tuple:
        start, cache, _ = carry
        block = lax.dynamic_slice_in_dim(ids, start, columns, axis=1)
        last = jnp.minimum(columns, count - start) - 1
        logits, cache = forward(config, inputs, block, cache, start, last)
        return start + columns, cache, logits[:, 0]

    begin = jnp.int32(0), cache, jnp.zeros((len(ids), config.vocab))
    _, cache, logits = lax.while_loop(lambda carry: carry[0] < count, read, begin)
    return logits, cache
