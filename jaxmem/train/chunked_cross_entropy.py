"""next_token_loss: mean of −log softmax(x · head)[next id], with few logits in memory at a time."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..core.arguments import IDS, POSITIVE, Kind, takes
from .chunked_logits import HEAD, HIDDEN, MASK, Logits, chunked
from .token_losses import cross_entropy
from .vocabulary_cross_entropy import tiled_cross_entropy

_TILE = Kind("an int of at least 1, or None", lambda x: x is None or POSITIVE.accepts(x))


@takes(x=HIDDEN, head=HEAD, ids=IDS, mask=MASK, chunk=POSITIVE, tile=_TILE)
def next_token_loss(
    x: Array,
    head: Any,
    ids: Array,
    *,
    axis: int = 0,
    chunk: int = 512,
    tile: int | None = None,
    mask: Array | None = None,
    smoothing: float = 0.0,
    z: float = 0.0,
    logits: Callable[[Array], Array] = lambda products: products,
) -> Array:
    """The mean cross entropy of predicting each next id, in nats, in f32.

    Args:
        x: hidden states (B, T, D).
        head: (D, V), or (V, D) with `axis=1`, dense or encoded.
        ids: (B, T) int32.
        axis: the axis of `head` that has D.
        chunk: positions of each row whose logits exist at a time, see `chunked`.
        tile: ids whose logits exist at a time, for all positions, in place of chunks; see
            `tiled_cross_entropy`: the head's gradient is in memory once, and `logits` then has no
            gradients for what it closes over.
        mask: (B, T), which ids are to be predicted, such as those of an answer. The mean is over
            them, and 0 if there are none; chunks without any are not computed. By default all ids
            but the first of each row.
        smoothing: label smoothing, see `cross_entropy`.
        z: the weight of the squared log of the softmax's sum, see `cross_entropy`.
        logits: makes logits of the products (B, chunk, V) in f32: by a bias, a factor or a soft
            cap, where a model has one; the loss has gradients for what it closes over.

    Raises:
        ValueError: `chunk` does not divide T, or `head` does not take vectors of D.

    Example:
        >>> import jax.numpy as jnp
        >>> x, head = jnp.zeros((1, 8, 4)), jnp.ones((4, 16))
        >>> float(next_token_loss(x, head, jnp.zeros((1, 8), jnp.int32), chunk=4)).__round__(4)
        2.7726
    """
    output = Logits(x, head, axis=axis, finish=logits)
    loss = cross_entropy(smoothing=smoothing, z=z)
    # the last position of a row has no next id
    has_next = jnp.broadcast_to(jnp.arange(ids.shape[1])[None] < ids.shape[1] - 1, ids.shape)
    counted = has_next if mask is None else has_next & jnp.roll(mask, -1, axis=1)
    targets = jnp.roll(ids, -1, axis=1)
    if tile is None:
        shown = None if mask is None else counted
        values = chunked(loss, output, targets, mask=shown, chunk=chunk)
    else:
        values = tiled_cross_entropy(output, targets, smoothing=smoothing, z=z, tile=tile)
    count = jnp.maximum(counted.sum(dtype=jnp.float32), 1.0)
    return jnp.where(counted, values, 0.0).sum() / count
