"""next_token_loss: mean of −log softmax(x · head)[next id], with few logits in memory at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import IDS, POSITIVE, Kind, takes
from ..core.lifting import dot_general

_HIDDEN = Kind(
    "hidden states (rows, tokens, width)", lambda x: hasattr(x, "shape") and len(x.shape) == 3
)

_HEAD = Kind(
    "an array or an encoded leaf of two axes", lambda x: hasattr(x, "shape") and len(x.shape) == 2
)


@takes(x=_HIDDEN, head=_HEAD, ids=IDS, chunk=POSITIVE)
def next_token_loss(
    x: Array,
    head: Any,
    ids: Array,
    *,
    axis: int = 0,
    chunk: int = 512,
    logits: Callable[[Array], Array] = lambda products: products,
) -> Array:
    """The mean cross entropy of predicting each next id, in nats, in f32.

    Shapes: hidden states x (B, T, D); `head` (D, V), or (V, D) with `axis=1`, dense or encoded; ids
    (B, T) int32. Logits are computed for `chunk` positions at a time, which takes B · chunk · V · 4
    bytes, and computed again in the backward pass. All logits would take B · T · V · 4 bytes, and
    their gradient as many. `logits` makes them of the products (B, chunk, V) in f32: by a bias, a
    factor or a soft cap, where a model has one; the loss has gradients for what it closes over.

    Raises:
        ValueError: `chunk` does not divide T, or `head` does not take vectors of D.

    Example:
        >>> import jax.numpy as jnp
        >>> x, head = jnp.zeros((1, 8, 4)), jnp.ones((4, 16))
        >>> float(next_token_loss(x, head, jnp.zeros((1, 8), jnp.int32), chunk=4)).__round__(4)
        2.7726
    """
    batch, steps, width = x.shape
    if head.shape[axis] != width:
        raise ValueError(f"head has shape {head.shape}, expected {width} on its axis {axis}")
    chunk = min(chunk, steps)
    if steps % chunk:
        raise ValueError(f"a chunk of {chunk} positions does not divide the {steps} of each row")
    targets = jnp.roll(ids, -1, axis=1)
    # the last position of a row has no next id
    counted = jnp.broadcast_to(jnp.arange(steps)[None] < steps - 1, ids.shape)
    # (B, T, ...) as (chunks, B, chunk, ...)
    chunks = lambda a: jnp.moveaxis(a.reshape(batch, steps // chunk, chunk, *a.shape[2:]), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(total, inputs):
        x, targets, counted = inputs
        dims = (((2,), (axis,)), ((), ()))
        scores = logits(dot_general(x, head, dims, preferred_element_type=jnp.float32))
        chosen = jnp.take_along_axis(scores, targets[..., None], -1)[..., 0]
        loss = jax.nn.logsumexp(scores, axis=-1) - chosen
        return total + jnp.where(counted, loss, 0.0).sum(), None

    total, _ = lax.scan(
        add, jnp.zeros((), jnp.float32), (chunks(x), chunks(targets), chunks(counted))
    )
    return total / (batch * (steps - 1))
