"""Attention of queries over keys and values, all at once or a block of tokens at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax


def attend(q: Array, k: Array, v: Array, allowed: Array, scale: float) -> Array:
    """softmax(scale * q kᵀ) v where `allowed`: (B, H, T, h).

    H/K query heads share a head of keys and values. They are rows of one product, so keys and
    values are never repeated.

    Shapes: q (B, H, T, h); k, v (B, K, S, h) with K dividing H; allowed broadcasts to
    (B, K, H/K, T, S).

    Example:
        >>> k = v = jnp.ones((1, 1, 3, 8))
        >>> attend(jnp.ones((1, 2, 3, 8)), k, v, causal(3, 3, 0, 3), 1.0).shape
        (1, 2, 3, 8)
    """
    both = ((0, 1), (0, 1))

    def scores(rows):
        return lax.dot_general(rows, k, (((3,), (3,)), both), preferred_element_type=jnp.float32)

    def mix(shares):
        shares = shares.astype(v.dtype)
        return lax.dot_general(shares, v, (((3,), (2,)), both), preferred_element_type=jnp.float32)

    return attend_by(scores, mix, q, k.shape[1], allowed, scale)


def attend_by(
    scores: Callable[[Array], Array],
    mix: Callable[[Array], Array],
    q: Array,
    kv_heads: int,
    allowed: Array,
    scale: float,
) -> Array:
    """`attend`, with functions that multiply by keys and values in place of keys and values.

    A single row is doubled: XLA for TPU turns a single row into a sum of products, for which it
    copies the whole cache into another layout (GPT-2, batch 8, v5e, jax 0.10.2: 806 MB against
    none).

    Args:
        scores: rows of queries (B, K, R, h) -> their products with the keys (B, K, R, S) f32.
        mix: shares of attention (B, K, R, S) -> their products with the values (B, K, R, h) f32.
        q: queries (B, H, T, h).
        kv_heads: K, which divides H.
        allowed: broadcasts to (B, K, H/K, T, S).
        scale: factor of the scores before the softmax.
    """
    batch, heads, steps, width = q.shape
    rows = q.reshape(batch, kv_heads, -1, width)  # (B, K, G*T, h)
    if single := rows.shape[2] == 1:
        rows = jnp.broadcast_to(rows, (batch, kv_heads, 2, width))
    products = scores(rows)
    products = products.reshape(batch, kv_heads, -1, steps, products.shape[-1]) * scale
    shares = jax.nn.softmax(jnp.where(allowed, products, jnp.finfo(jnp.float32).min), axis=-1)
    out = mix(shares.reshape(batch, kv_heads, -1, shares.shape[-1]))
    out = out[:, :, :1] if single else out
    return out.astype(q.dtype).reshape(batch, heads, steps, width)


def causal(steps: int, length: int, position: Array | int, window: Array | int) -> Array:
    """Which keys a query sees, (1, 1, 1, steps, length).

    Query t, at `position + t`, sees key s if 0 <= position + t - s < window.

    Example:
        >>> causal(2, 4, 1, 2)[0, 0, 0].astype(int).tolist()
        [[1, 1, 0, 0], [0, 1, 1, 0]]
    """
    shape = (1, 1, 1, steps, length)
    distance = position + lax.broadcasted_iota(jnp.int32, shape, 3)
    distance -= lax.broadcasted_iota(jnp.int32, shape, 4)
    return (distance >= 0) & (distance < window)
