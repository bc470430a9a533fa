"""The states of recurrent layers in a cache: read before the first token, kept after the last.

A cache is a dict of states, or a pool, in which each row has its own. Of the tokens that a call
gives to a row of a pool only some may be real: the others must leave its state as it is.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from ...kv_cache.page_pool import PagePool
from ...kv_cache.paged_rows import PagedRows
from ...kv_cache.row_states import row_states, with_row_states
from ..layers.linear import row


def state_before(
    cache: Any, name: str, layer: dict, position: Array | int | PagedRows, initial: Array
) -> Array:
    """The state (B, ...) of a layer before the token at `position`; `initial` at position 0.

    Without a cache the text begins here, and the state is `initial`, too.
    """
    if cache is None:
        return initial
    if isinstance(cache, PagePool):
        kept = row_states(cache, name, layer["state"], position)
        position = position.starts.reshape(-1, *(1,) * (initial.ndim - 1))
    else:
        kept = lax.dynamic_index_in_dim(cache[name], layer["state"], 0, keepdims=False)
    return jnp.where(jnp.equal(position, 0), initial, kept.astype(initial.dtype))


def with_state(
    cache: Any, name: str, layer: dict, position: Array | int | PagedRows, state: Array
) -> Any:
    """The cache with the state (B, ...) of a layer, which is written in place."""
    if cache is None:
        return None
    if isinstance(cache, PagePool):
        return with_row_states(cache, name, layer["state"], position, state)
    states = cache[name]
    kept = lax.dynamic_update_index_in_dim(states, state.astype(states.dtype), layer["state"], 0)
    return cache | {name: kept}


def if_real(position: Array | int | PagedRows, x: Array, otherwise: float) -> Array:
    """x (B, T, ...) at real tokens, `otherwise` at those that fill up a row of a pool."""
    if not isinstance(position, PagedRows):
        return x
    is_real = jnp.arange(x.shape[1], dtype=jnp.int32)[None] < position.counts[:, None]
    return jnp.where(is_real.reshape(*is_real.shape, *(1,) * (x.ndim - 2)), x, otherwise)


def last_inputs(position: Array | int | PagedRows, before: Array, x: Array) -> Array:
    """As many of the last tokens of before‖x (B, k + T, n) as `before` has: (B, k, n)."""
    both, k = jnp.concatenate([before, x], axis=1), before.shape[1]
    if not isinstance(position, PagedRows):
        return both[:, x.shape[1] :]
    at = position.counts[:, None] + jnp.arange(k, dtype=jnp.int32)[None]
    return jnp.take_along_axis(both, at[..., None], axis=1)


class Convolution(nn.Module):
    """y_t = Σ_k taps_k * x_(t - K + 1 + k) (+ bias) in each channel, over K tokens.

    Maps x (B, T, n) to y (B, T, n) and the cache with the last K - 1 inputs under `state`.
    """

    taps: int
    bias: bool
    state: str = "conv"

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        k, n, steps = self.taps, x.shape[-1], x.shape[1]
        taps = self.param("taps", nn.initializers.lecun_normal(), (k, n))
        zeros = jnp.zeros((x.shape[0], k - 1, n), x.dtype)
        before = state_before(cache, self.state, layer, position, zeros)
        after = last_inputs(position, before, x)
        cache = with_state(cache, self.state, layer, position, after)
        x = jnp.concatenate([before, x], axis=1)
        terms = (x[:, i : i + steps].astype(jnp.float32) * row(taps[i], x) for i in range(k))
        y = sum(terms)
        if self.bias:
            y = y + row(self.param("bias", nn.initializers.zeros, (n,)), y)
        return y.astype(x.dtype), cache
