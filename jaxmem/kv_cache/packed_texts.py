"""Packed: several texts in a row, each of which attends to itself alone; or a tree of texts."""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .paged_rows import PagedRows


@flax.struct.dataclass
class Packed:
    """Where the tokens of rows are, in place of the position of a row's first token.

    Tokens of one text have one number in `segments`, and stand one after the other; `positions`
    count from 0 in each text. Padding is a text, too: nothing else attends to it.

    With `ends` a row is a tree in which texts share their first tokens. A token stands before those
    that go on from it, in order of depth: these are the tokens after it and before its end. Then
    `positions` are depths, and `segments` are None.
    """

    segments: Array | None  # (B, T) int32
    positions: Array  # (B, T) int32
    ends: Array | None = None  # (B, T) int32

    def same_text(self) -> Array:
        """Which tokens are of one text: (B, 1, 1, T, T)."""
        return (self.segments[:, :, None] == self.segments[:, None, :])[:, None, None]

    def distances(self) -> Array:
        """Tokens from key s back from query t, by their positions: (B, 1, 1, T, T)."""
        return (self.positions[:, :, None] - self.positions[:, None, :])[:, None, None]

    def goes_on(self) -> Array:
        """Which queries of a tree go on from key s, or are it: (B, 1, 1, T, T)."""
        at = lax.broadcasted_iota(jnp.int32, (1, *self.positions.shape[1:], 1), 1)  # (1, T, 1)
        key = at.swapaxes(1, 2)
        return ((key <= at) & (at < self.ends[:, None, :]))[:, None, None]


def packed(ids: Array, segments: Array, positions: Array | None = None) -> Packed:
    """`Packed` of rows of ids (B, T); without `positions` each text's are counted from its start.

    Raises:
        ValueError: `segments` or `positions` have another shape than `ids`.
        TypeError: they are no integers.

    Example:
        >>> import jax.numpy as jnp
        >>> packed(jnp.zeros((1, 5), int), jnp.array([[1, 1, 1, 2, 2]])).positions.tolist()
        [[0, 1, 2, 0, 1]]
    """
    arrays = {"segments": segments} | ({} if positions is None else {"positions": positions})
    for name, x in arrays.items():
        if np.shape(x) != np.shape(ids):
            raise ValueError(f"{name} have the shape {np.shape(x)}, expected {np.shape(ids)}")
        if not jnp.issubdtype(jnp.asarray(x).dtype, jnp.integer):
            raise TypeError(f"{name} are of type {jnp.asarray(x).dtype}, expected integers")
    segments = jnp.asarray(segments, jnp.int32)
    if positions is None:
        count = lax.broadcasted_iota(jnp.int32, segments.shape, 1)
        before = jnp.pad(segments, ((0, 0), (1, 0)), mode="edge")[:, :-1]
        starts = lax.cummax(jnp.where(segments != before, count, 0), axis=1)
        return Packed(segments, count - starts)
    return Packed(segments, jnp.asarray(positions, jnp.int32))


def token_positions(position: Any, steps: int) -> Array:
    """The position of each of `steps` tokens: (1, steps), or (B, steps) of rows with their own."""
    if isinstance(position, Packed):
        return position.positions
    if isinstance(position, PagedRows):
        return position.positions(steps)
    return (position + jnp.arange(steps, dtype=jnp.int32))[None]
