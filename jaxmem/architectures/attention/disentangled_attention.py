"""Disentangled attention: scores of tokens with the distance of another token (He et al., 2021)."""

import jax.numpy as jnp
from jax import Array

from ...kv_cache.attention_masks import token_distances


def distance_rows(length: int, span: int, farthest: int) -> Array:
    """The row (length, length) of each distance of two tokens in a table of 2 * `span` rows.

    Up to span / 2 tokens each distance has a row. Further ones share rows, wider and wider up to
    `farthest` tokens; if it is 0, every distance has a row.

    Example:
        >>> distance_rows(10, 4, 16)[9].tolist()
        [7, 7, 7, 7, 7, 7, 7, 6, 5, 4]
    """
    distance = token_distances(length, length)
    if farthest:
        half, away = span // 2, jnp.abs(distance)
        share = jnp.log(jnp.maximum(away, half).astype(jnp.float32) / half)
        share = share / jnp.log(jnp.float32((farthest - 1) / half))
        far = jnp.ceil(share * (half - 1)).astype(jnp.int32) + half
        distance = jnp.where(away <= half, distance, far * jnp.sign(distance))
    return jnp.clip(distance + span, 0, 2 * span - 1)


def disentangled_bias(q: Array, k: Array, far_q: Array, far_k: Array, rows: Array) -> Array:
    """The products (B, H, T, T) f32 of queries and of keys with the vectors of their distance.

    Args:
        q: queries (B, H, T, h).
        k: keys (B, H, T, h).
        far_q: queries of the table of distances (1, H, 2 * span, h).
        far_k: keys of it (1, H, 2 * span, h).
        rows: the row (T, T) of the distance of each key from each query.
    """
    product = lambda x, y: jnp.einsum("bhtc,hrc->bhtr", x, y[0], preferred_element_type=jnp.float32)
    rows = rows[None, None]
    of_queries = jnp.take_along_axis(product(q, far_k), rows, axis=-1)
    of_keys = jnp.take_along_axis(product(k, far_q), rows.swapaxes(2, 3), axis=-1)
    return of_queries + of_keys.swapaxes(2, 3)
