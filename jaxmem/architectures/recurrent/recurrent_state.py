"""The states of recurrent layers in a cache: read before the first token, kept after the last."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from ..layers.linear import row


def state_before(
    cache: dict | None, name: str, layer: dict, position: Array | int, initial: Array
) -> Array:
    """The state (B, ...) of a layer before the token at `position`; `initial` at position 0.

    Without a cache the text begins here, and the state is `initial`, too.
    """
    if cache is None:
        return initial
    kept = lax.dynamic_index_in_dim(cache[name], layer["state"], 0, keepdims=False)
    return jnp.where(jnp.equal(position, 0), initial, kept.astype(initial.dtype))


def with_state(cache: dict | None, name: str, layer: dict, state: Array) -> dict | None:
    """The cache with the state (B, ...) of a layer, which is written in place."""
    if cache is None:
        return None
    states = cache[name]
    kept = lax.dynamic_update_index_in_dim(states, state.astype(states.dtype), layer["state"], 0)
    return cache | {name: kept}


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
        x = jnp.concatenate([before, x], axis=1)
        cache = with_state(cache, self.state, layer, x[:, steps:])
        terms = (x[:, i : i + steps].astype(jnp.float32) * row(taps[i], x) for i in range(k))
        y = sum(terms)
        if self.bias:
            y = y + row(self.param("bias", nn.initializers.zeros, (n,)), y)
        return y.astype(x.dtype), cache
