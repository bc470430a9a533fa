"""Attention through a cache, dense or in few bits: write what is new, then attend to all."""

import dataclasses
from typing import Any

from jax import Array

from ..core.hadamard import hadamard
from .attention import attend, causal
from .dense import write
from .quantized import Quantized, _attended, _turned, _written


def attend_through(
    cache: Any, layer: Array, position: Array | int, q: Array, k: Array, v: Array, window, scale
):
    """(cache with k and v at `position`, attention of q over it); a dense or a `Quantized` cache.

    Shapes: q (B, H, T, h); k, v (B, K, T, h); the result (B, H, T, h). With None for a cache,
    attention among the given.

    Raises:
        ValueError: a `Quantized` cache and a T that is neither 1 nor a multiple of `STEP` (then
            `position` is one, too), or more than the cache is long.
    """
    if not isinstance(cache, Quantized):
        if cache is not None:
            cache, k, v = write(cache, layer, position, k, v)
        start = 0 if cache is None else position
        return cache, attend(q, k, v, causal(q.shape[2], k.shape[2], start, window), scale)
    turn = hadamard(k.shape[-1]) if cache.how.rotate else None
    back = None if turn is None else turn.T
    q, k, v = (_turned(x, turn) for x in (q, k, v))
    keys, values = (
        _written(held, layer, position, x) for held, x in ((cache.keys, k), (cache.values, v))
    )
    cache = dataclasses.replace(cache, keys=keys, values=values)
    return cache, _turned(_attended(cache, layer, position, q, window, scale), back)
