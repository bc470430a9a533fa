"""next_token_loss: mean of -log softmax(x · head)[next id], some positions' logits at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.lifting import dot_general


def next_token_loss(x: Array, head: Any, ids: Array, *, axis: int = 0, chunk: int = 512) -> Array:
    """Cross entropy of each position's prediction of the next id, in f32.

    x (B, T, D) are hidden states, `head` (D, V), or (V, D) with `axis=1`, dense or encoded; ids
    (B, T) int32. Logits exist for `chunk` positions at a time, B · chunk · V · 4 bytes, and again
    in the backward pass, instead of B · T · V · 4 and their gradient.

    Raises:
        ValueError: `chunk` does not divide T.

    Example:
        >>> import jax.numpy as jnp
        >>> x, head = jnp.zeros((1, 8, 4)), jnp.ones((4, 16))
        >>> float(next_token_loss(x, head, jnp.zeros((1, 8), jnp.int32), chunk=4)).__round__(4)
        2.7726
    """
    batch, steps, _ = x.shape
    chunk = min(chunk, steps)
    if steps % chunk:
        raise ValueError(f"a chunk of {chunk} positions does not divide the {steps} of each row")
    wanted = jnp.roll(ids, -1, axis=1)
    counts = jnp.broadcast_to(jnp.arange(steps)[None] < steps - 1, ids.shape)
    cut = lambda a: jnp.moveaxis(a.reshape(batch, steps // chunk, chunk, *a.shape[2:]), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(total, part):
        x, wanted, counts = part
        dims = (((2,), (axis,)), ((), ()))
        logits = dot_general(x, head, dims, preferred_element_type=jnp.float32)
        here = jnp.take_along_axis(logits, wanted[..., None], -1)[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - here
        return total + jnp.where(counts, loss, 0.0).sum(), None

    total, _ = lax.scan(add, jnp.zeros((), jnp.float32), (cut(x), cut(wanted), cut(counts)))
    return total / (batch * (steps - 1))
