"""A short prompt, read a few tokens at a time: one small program for prompts of every length.

The compiled library multiplies a few rows as fast as XLA multiplies a whole prompt, if that is
padded. A program of its calls is compiled in a tenth of the time, and loaded in as much.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .device_decode_loop import Forward

MOST_BLOCK_TOKENS = 64  # a longer prompt is read faster at once


@functools.partial(
    jax.jit, static_argnames=("config", "forward", "columns"), donate_argnames="cache"
)
def logits_by_blocks(
    config: Any,
    forward: Forward,
    inputs: Any,
    ids: Array,
    cache: Any,
    count: Array,
    *,
    columns: int,
) -> tuple[Array, Any]:
    """`logits_after` the first `count` ids of each row, of which it reads `columns` at a time.

    One program reads prompts of every length up to that of `ids`, a multiple of `columns`.
    """

    def read(carry: tuple) -> tuple:
        start, cache, _ = carry
        block = lax.dynamic_slice_in_dim(ids, start, columns, axis=1)
        last = jnp.minimum(columns, count - start) - 1
        logits, cache = forward(config, inputs, block, cache, start, last)
        return start + columns, cache, logits[:, 0]

    begin = jnp.int32(0), cache, jnp.zeros((len(ids), config.vocab))
    _, cache, logits = lax.while_loop(lambda carry: carry[0] < count, read, begin)
    return logits, cache
