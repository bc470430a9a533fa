"""y_t = Σ_i exp(k_i - (t - 1 - i) w) v_i / Σ_i exp(k_i - (t - 1 - i) w), with k_t + u for i = t.

The sums are a state, kept with the largest exponent taken out. Both parts of a layer read each
token mixed with the one before it (Peng et al., 2023, RWKV-4).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ..configs.decoder_config import Config
from ..layers.linear import Linear, row
from .recurrent_state import state_before, with_state

_NOTHING = -1e38  # the exponent before the first token


class TimeMixing(nn.Module):
    """The average of values with weights that decay, gated by a sigmoid."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c, r = self.config, self.config.recurrence
        mixed, cache = _mixed_with_last(
            self, ("k", "v", "receptance"), "conv", x, cache, layer, position
        )
        linears = {name: Linear(r.channels, name=name) for name in mixed}
        k, v, gate = (linears[name](y, jnp.float32) for name, y in mixed.items())
        vector = lambda name: self.param(name, nn.initializers.zeros, (r.channels,))
        decay, first = vector("log_decay").astype(jnp.float32), vector("first").astype(jnp.float32)
        decay, first = -jnp.exp(decay)[None], first[None]
        sums = jnp.zeros((x.shape[0], 2, r.channels), jnp.float32)
        initial = jnp.concatenate([sums, jnp.full_like(sums[:, :1], _NOTHING)], axis=1)
        before = state_before(cache, "state", layer, position, initial)

        def read(state: tuple, token: tuple[Array, Array]):
            above, below, largest = state
            k, v = token
            y_above, y_below, _ = _add(above, below, largest, k + first, v)
            return _add(above, below, largest + decay, k, v), y_above / y_below

        state = tuple(before[:, i] for i in range(3))
        state, y = lax.scan(read, state, (k.swapaxes(0, 1), v.swapaxes(0, 1)))
        cache = with_state(cache, "state", layer, jnp.stack(state, axis=1))
        y = (jax.nn.sigmoid(gate) * y.swapaxes(0, 1)).astype(x.dtype)
        return Linear(c.width, name="out")(y), cache


class ChannelMixing(nn.Module):
    """sigmoid(receptance(x)) * down(relu(up(x))²)."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c = self.config
        mixed, cache = _mixed_with_last(
            self, ("up", "receptance"), "mlp_conv", x, cache, layer, position
        )
        hidden = jnp.square(jax.nn.relu(Linear(c.ffn, name="up")(mixed["up"])))
        gate = jax.nn.sigmoid(Linear(c.width, name="receptance")(mixed["receptance"]))
        return gate * Linear(c.width, name="down")(hidden), cache


def _add(above: Array, below: Array, largest: Array, exponent: Array, value: Array) -> tuple:
    """The two sums with exp(exponent) * value and exp(exponent) added, and the new exponent."""
    new = jnp.maximum(largest, exponent)
    old_share, share = jnp.exp(largest - new), jnp.exp(exponent - new)
    return old_share * above + share * value, old_share * below + share, new


def _mixed_with_last(
    module: nn.Module,
    names: tuple[str, ...],
    state: str,
    x: Array,
    cache: dict | None,
    layer: dict,
    position: Array | int,
) -> tuple[dict[str, Array], dict | None]:
    """({name: m * x_t + (1 - m) * x_(t-1)}, the cache), with a learned m for each name."""
    zeros = jnp.zeros_like(x[:, :1])
    before = state_before(cache, state, layer, position, zeros)
    last = jnp.concatenate([before, x[:, :-1]], axis=1).astype(jnp.float32)
    cache = with_state(cache, state, layer, x[:, -1:])
    half = nn.initializers.constant(0.5)
    shares = {name: module.param(f"{name}_mix", half, (x.shape[-1],)) for name in names}
    mix = lambda m: m * x.astype(jnp.float32) + (1 - m) * last
    return {name: mix(row(m, x)).astype(x.dtype) for name, m in shares.items()}, cache
