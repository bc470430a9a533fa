"""Attention for a block of queries at a time, so that a step which trains holds few scores."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax

LEAST = 8  # queries of a block
_most: contextvars.ContextVar[int | None] = contextvars.ContextVar("most", default=None)


@contextlib.contextmanager
def scores_within(nbytes: int) -> Iterator[None]:
    """What is traced inside holds about `nbytes` of attention scores in f32 at a time.

    The backward pass computes the scores of a block again. It adds up the gradients of keys and
    values block by block in their own dtype.
    """
    token = _most.set(nbytes)
    try:
        yield
    finally:
        _most.reset(token)


def queries_at_once(rows: int, queries: int, keys: int) -> int:
    """How many of the queries of `rows` heads, of all texts, are attended for at a time.

    It is a divisor of `queries`.

    Example:
        >>> queries_at_once(32, 2048, 2048)
        2048
        >>> with scores_within(2**26):
        ...     queries_at_once(32, 2048, 2048), queries_at_once(32, 128, 128)
        (256, 128)
    """
    most = _most.get()
    if most is None or rows * queries * keys * 4 <= most:
        return queries
    fit = max(most // (rows * keys * 4), LEAST)
    blocks = [n for n in range(LEAST, fit + 1) if queries % n == 0]
    return max(blocks, default=queries)


def in_query_blocks(
    attended: Callable[[Array, Array, Array | None, Array], Array],
    block: int,
    q: Array,
    allowed: Array,
    bias: Array | None,
) -> Array:
    """`attended(q, allowed, bias, 0)` from `block` queries at a time: (B, H, T, h).

    Args:
        attended: (queries (B, H, block, h), allowed, bias, place of the first of them) -> result.
        block: a divisor of T.
        q: queries (B, H, T, h).
        allowed: (..., T, S), or (..., 1, S) for all queries alike.
        bias: likewise, or None.
    """
    steps = q.shape[2]
    cut = lambda x: jnp.moveaxis(x.reshape(*x.shape[:-2], -1, block, x.shape[-1]), -3, 0)
    sliced = {"q": cut(q), "start": jnp.arange(0, steps, block)}
    whole = {}
    for name, x in (("allowed", allowed), ("bias", bias)):
        if x is not None:
            is_sliced = x.shape[-2] == steps
            (sliced if is_sliced else whole)[name] = cut(x) if is_sliced else x

    def of_block(_, slices):
        known = whole | slices
        return None, attended(known["q"], known["allowed"], known.get("bias"), known["start"])

    parts = lax.scan(jax.checkpoint(of_block, prevent_cse=False), None, sliced)[1]
    return jnp.moveaxis(parts, 0, 2).reshape(*q.shape[:3], parts.shape[-1])
