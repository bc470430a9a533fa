"""Attention of queries over keys and values, whole or a block of tokens at a time."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def attend(q: Array, k: Array, v: Array, allowed: Array, scale: float) -> Array:
    """softmax(scale * q kᵀ) v where `allowed`, each query head beside the k/v head it shares.

    The queries of one group are rows of one product, so keys and values are never repeated.

    Shapes: q (B, H, T, h); k, v (B, K, S, h) with K dividing H; allowed broadcasts to
    (B, K, H/K, T, S).
    """
    both = ((0, 1), (0, 1))

    def scores(rows):
        return lax.dot_general(rows, k, (((3,), (3,)), both), preferred_element_type=jnp.float32)

    def mix(shares):
        shares = shares.astype(v.dtype)
        return lax.dot_general(shares, v, (((3,), (2,)), both), preferred_element_type=jnp.float32)

    return attend_by(scores, mix, q, k.shape[1], allowed, scale)


def attend_by(scores, mix, q: Array, kv_heads: int, allowed: Array, scale: float) -> Array:
    """`attend` where `scores` multiplies rows of queries with keys, and `mix` shares with values.

    A single row is doubled: XLA for TPU makes of a lone row a sum of products, which wants another
    layout of the whole cache and copies it (GPT-2, batch 8, v5e, jax 0.10.2: 806 MB against none).

    Shapes: scores takes (B, K, R, h) and gives (B, K, R, S) f32, mix the other way round.
    """
    batch, heads, steps, width = q.shape
    rows = q.reshape(batch, kv_heads, -1, width)  # (B, K, G*T, h)
    if lone := rows.shape[2] == 1:
        rows = jnp.broadcast_to(rows, (batch, kv_heads, 2, width))
    found = scores(rows)
    found = found.reshape(batch, kv_heads, -1, steps, found.shape[-1]) * scale
    shares = jax.nn.softmax(jnp.where(allowed, found, jnp.finfo(jnp.float32).min), axis=-1)
    out = mix(shares.reshape(batch, kv_heads, -1, shares.shape[-1]))
    out = out[:, :, :1] if lone else out
    return out.astype(q.dtype).reshape(batch, heads, steps, width)


def causal(steps: int, length: int, position: Array | int, window: Array | int) -> Array:
    """(1, 1, 1, steps, length): key `s` is seen from `position + t` if 0 <= distance < window."""
    shape = (1, 1, 1, steps, length)
    distance = position + lax.broadcasted_iota(jnp.int32, shape, 3)
    distance -= lax.broadcasted_iota(jnp.int32, shape, 4)
    return (distance >= 0) & (distance < window)
