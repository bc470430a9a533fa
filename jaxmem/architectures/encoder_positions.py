"""Where the tokens of an encoder are: rows of a table, rotations, windows, distances."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .positions import rope_frequencies

_FARTHEST = 128  # tokens; beyond it all distances have one bucket


def table_rows(ids: Array, pad: int | None) -> Array:
    """The row of each token in the table of positions: (1, T), or (B, T) with `pad`.

    The id `pad` has row `pad`, and other tokens count from `pad` + 1.
    """
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
        values["window"] = np.where(local, c.window, np.iinfo(np.int32).max).astype(np.int32)
    return values


def in_window(length: int, window: Array) -> Array:
    """Which tokens are at most `window` tokens from each other: (1, 1, 1, length, length)."""
    return (jnp.abs(token_distances(length)) <= window)[None, None, None]


def distance_buckets(length: int, buckets: int) -> Array:
    """The bucket of the distance of each key from each query (Raffel et al., 2020).

    The result is (length, length). Half of the buckets is for keys after the query. Of a half, the
    first half has a bucket for each distance, and further distances share buckets, wider and wider
    up to 128 tokens.

    Example:
        >>> distance_buckets(10, 8)[0].tolist()
        [0, 5, 6, 6, 6, 6, 6, 6, 6, 6]
    """
    distance = -token_distances(length)
    half, exact = buckets // 2, buckets // 4
    away = jnp.abs(distance)
    growth = jnp.log(jnp.maximum(away, 1).astype(jnp.float32) / exact) / math.log(_FARTHEST / exact)
    far = jnp.minimum(exact + (growth * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(distance > 0, half, 0) + jnp.where(away < exact, away, far)


def token_distances(length: int) -> Array:
    """Tokens from key s back from query t: (length, length)."""
    shape = (length, length)
    return lax.broadcasted_iota(jnp.int32, shape, 0) - lax.broadcasted_iota(jnp.int32, shape, 1)
