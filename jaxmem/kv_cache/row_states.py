"""The states of recurrent layers in a pool: each row of tokens has its own, of one size."""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from .page_pool import PagePool
from .paged_rows import PagedRows


def row_states(pool: PagePool, name: str, layer: Array, where: PagedRows) -> Array:
    """The states `name` (B, ...) of the rows of a call, in a layer of those with a state."""
    states = lax.dynamic_index_in_dim(pool.states[name], layer, 0, keepdims=False)
    return states[: pool.rows] if where.is_whole else jnp.take(states, where.numbers, 0)


def with_row_states(
    pool: PagePool, name: str, layer: Array, where: PagedRows, new: Array
) -> PagePool:
    """The pool with the states `new` (B, ...) of rows that have new tokens; others keep theirs.

    Each row is one `dynamic_update_slice`, as in `write_pages`.
    """
    states = pool.states[name]
    is_kept = (where.counts == 0).reshape(-1, *(1,) * (new.ndim - 1))
    new = jnp.where(is_kept, row_states(pool, name, layer, where), new.astype(states.dtype))
    rest = (0,) * (new.ndim - 1)
    if where.is_whole:
        states = lax.dynamic_update_slice(states, new[None], (layer, 0, *rest))
    else:
        for i in range(len(new)):
            start = (layer, where.numbers[i], *rest)
            states = lax.dynamic_update_slice(states, new[None, i : i + 1], start)
    return dataclasses.replace(pool, states=pool.states | {name: states})
