"""Attention through a cache of any kind: write the new tokens, then attend to all."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..core.hadamard import hadamard
from ..cpu_kernels.attended_row import attended_row
from .attention_masks import causal, causal_in_texts
from .attention_scores import PLAIN, ScoreTerms, attend
from .dense import layer_of, write
from .head_rotation import rotated_heads
from .packed_texts import Packed
from .paged_attention import attend_through_pages
from .paged_rows import PagedRows
from .quantized import QuantizedCache, write_states
from .quantized_attention import attend_quantized


def attend_through(
    cache: Any,
    layer: Array,
    position: Array | int | Packed | PagedRows,
    q: Array,
    k: Array,
    v: Array,
    window: Array | int,
    scale: float,
    terms: ScoreTerms = PLAIN,
) -> tuple[Any, Array]:
    """(the cache with k and v at `position`, attention of q over it).

    Args:
        cache: a dense cache, a `QuantizedCache`, a `PagePool`, or None for attention among the
            given tokens.
        layer: which layer of the cache, an integer.
        position: position of the first given token; or, without a cache, where the tokens of
            several texts in a row are; or the rows of a pool.
        q: queries (B, H, T, h).
        k: keys (B, K, T, h), K dividing H.
        v: values (B, K, T, h).
        window: tokens that a query sees, itself included; or (1, 1, 1, T, 1), for each query.
        scale: factor of the scores before `terms`.
        terms: what else changes a score: a soft cap, ALiBi, sinks.

    Returns:
        the cache, and the result (B, H, T, h).

    Raises:
        ValueError: a `QuantizedCache` and a T that is neither 1 nor a multiple of `BLOCK_TOKENS`
            (then `position` is one, too), or more than the cache is long.
    """
    if isinstance(position, Packed):
        return None, attend(q, k, v, causal_in_texts(position, window), scale, terms, position)
    if isinstance(position, PagedRows):
        return attend_through_pages(cache, layer, position, q, k, v, window, scale, terms)
    if not isinstance(cache, QuantizedCache):
        if cache is None:
            allowed = causal(q.shape[2], k.shape[2], 0, window)
            return None, attend(q, k, v, allowed, scale, terms, 0)
        cache, *_ = write(cache, layer, position, k, v)
        return cache, _attend_dense(cache, layer, position, q, window, scale, terms)

    rotation = hadamard(k.shape[-1]) if cache.options.rotate else None
    q, k, v = (rotated_heads(x, rotation) for x in (q, k, v))
    cache = dataclasses.replace(
        cache,
        keys=write_states(cache.keys, layer, position, k),
        values=write_states(cache.values, layer, position, v),
    )
    y = attend_quantized(cache, layer, position, q, window, scale, terms)
    return cache, rotated_heads(y, None if rotation is None else rotation.T)


def _attend_dense(
    cache: dict,
    layer: Array,
    position: Array | int,
    q: Array,
    window: Array | int,
    scale: float,
    terms: ScoreTerms,
) -> Array:
    """Attention of q (B, H, T, h), at `position`, over a layer of a dense cache."""
    steps = q.shape[2]

    def attended(q, keys, values, layer, position, window):
        keys, values = (layer_of(states, layer, q.dtype) for states in (keys, values))
        allowed = causal(steps, keys.shape[2], position, window)
        return attend(q, keys, values, allowed, scale, terms, position)

    args = q, cache["k"], cache["v"], layer, position, window
    all_f32 = {x.dtype for x in args[:3]} == {jnp.dtype(jnp.float32)}
    if steps == 1 and terms.is_plain and all_f32 and not jnp.ndim(window):
        return attended_row(*args, scale=scale, otherwise=attended)
    return attended(*args)
