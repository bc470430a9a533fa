"""Which keys a query sees, with and without a cache: those before it, in a window, in its chunk."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .packed_texts import Packed, token_positions

NO_LIMIT = np.iinfo(np.int32).max  # a window that holds every token


def causal(steps: int, length: int, position: Array | int, window: Array | int) -> Array:
    """Which keys a query sees, (1, 1, 1, steps, length).

    Query t, at `position + t`, sees key s if 0 <= position + t - s < window.

    Example:
        >>> causal(2, 4, 1, 2)[0, 0, 0].astype(int).tolist()
        [[1, 1, 0, 0], [0, 1, 1, 0]]
    """
    distance = token_distances(steps, length, position)[None, None, None]
    return (distance >= 0) & (distance < window)


def causal_in_texts(position: Packed, window: Array | int) -> Array:
    """`causal` in rows of several texts: tokens see those of their own text, (B, 1, 1, T, T)."""
    if position.ends is not None:
        return position.goes_on() & (position.distances() < window)
    length = position.segments.shape[1]
    return causal(length, length, 0, window) & position.same_text()


def in_window(length: int, window: Array) -> Array:
    """Which tokens are at most `window` tokens from each other: (1, 1, 1, length, length)."""
    return (jnp.abs(token_distances(length, length)) <= window)[None, None, None]


def window_in_chunk(chunk: Array, position: Array | int | Packed, steps: int) -> Array:
    """Tokens that each query sees of the chunk it is in, itself included: (1, 1, 1, steps, 1).

    Of `Packed` rows (B, 1, 1, steps, 1).
    """
    inside = token_positions(position, steps) % chunk
    return (inside + 1)[:, None, None, :, None]


def token_distances(queries: int, keys: int, position: Array | int = 0) -> Array:
    """Tokens from key s back from query t, which is at `position` + t: (queries, keys)."""
    shape = (queries, keys)
    at = position + lax.broadcasted_iota(jnp.int32, shape, 0)
    return at - lax.broadcasted_iota(jnp.int32, shape, 1)
