"""Where the tokens of an encoder are: rows of a table, rotations, windows, distances."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...kv_cache.attention_masks import NO_LIMIT
from ...kv_cache.packed_texts import Packed
from .positions import rope_frequencies


def table_rows(ids: Array, pad: int | None, texts: Packed | None = None) -> Array:
    """The row of each token in the table of positions: (1, T), or (B, T) with `pad`.

    The id `pad` has row `pad`, and other tokens count from `pad` + 1. In rows of several texts
    they count in each text.
    """
    if texts is not None:
        first = 0 if pad is None else pad + 1
        rows = texts.positions + first
        return rows if pad is None else jnp.where(ids == pad, pad, rows)
    if pad is None:
        return jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    real = (ids != pad).astype(jnp.int32)
    return jnp.cumsum(real, axis=1, dtype=jnp.int32) * real + pad


def per_layer(config: Any) -> dict[str, np.ndarray]:
    """The values that differ between layers, stacked for the scan.

    "frequencies" (layers, h / 2) f32, in radians for each position, are there with rotary
    positions, and "window" (layers,) int32 where a layer is local.
    """
    c = config
    local = np.asarray(c.local or (False,) * c.layers)
    values = {}
    if c.positions == "rotary":
        by_kind = [rope_frequencies(c.head_dim, theta) for theta in (c.theta, c.local_theta)]
        values["frequencies"] = np.where(local[:, None], by_kind[1], by_kind[0])
    if c.local:
        values["window"] = np.where(local, c.window, NO_LIMIT).astype(np.int32)
    return values


def distance_buckets(
    back: Array, buckets: int, farthest: int = 128, *, both_ways: bool = True
) -> Array:
    """The bucket of each distance, in tokens from a key back from a query (Raffel et al., 2020).

    With `both_ways` half of the buckets is for keys after the query; without, such keys have the
    bucket of the query itself. Of the buckets of one way, the first half has one for each distance,
    and further distances share buckets, wider and wider up to `farthest` tokens.

    Example:
        >>> from jaxmem.kv_cache.attention_masks import token_distances
        >>> distance_buckets(token_distances(10, 10), 8)[0].tolist()
        [0, 5, 6, 6, 6, 6, 6, 6, 6, 6]
    """
    count = buckets // 2 if both_ways else buckets
    exact, away = count // 2, jnp.abs(back) if both_ways else jnp.maximum(back, 0)
    growth = jnp.log(jnp.maximum(away, 1).astype(jnp.float32) / exact) / math.log(farthest / exact)
    far = jnp.minimum(exact + (growth * (count - exact)).astype(jnp.int32), count - 1)
    rows = jnp.where(away < exact, away, far)
    return rows + jnp.where(back < 0, count, 0) if both_ways else rows
