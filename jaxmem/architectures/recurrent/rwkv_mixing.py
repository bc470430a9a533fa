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
from .recurrent_state import if_real, last_inputs, state_before, with_state

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
        decay, first = -jnp.exp(decay), row(first, k)
        sums = jnp.zeros((x.shape[0], 2, r.channels), jnp.float32)
        initial = jnp.concatenate([sums, jnp.full_like(sums[:, :1], _NOTHING)], axis=1)
        before = state_before(cache, "state", layer, position, initial)

        decay = if_real(position, jnp.broadcast_to(decay, k.shape), 0.0)
        sums = running_sums(if_real(position, k, _NOTHING), v, decay, before)
        above, below, largest = (y[:, :-1] for y in sums)  # before each token
        above, below, _ = _add(above, below, largest, k + first, v)
        y = above / below
        last = jnp.stack([y[:, -1] for y in sums], axis=1)
        cache = with_state(cache, "state", layer, position, last)
        y = (jax.nn.sigmoid(gate) * y).astype(x.dtype)
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


def running_sums(k: Array, v: Array, decay: Array, before: Array) -> tuple[Array, Array, Array]:
    """The two sums and their exponents, (B, 1 + T, n) each: before the first token, and after each.

    They are computed in ⌈log2(1 + T)⌉ steps over all tokens: tokens in a row are summed in pairs,
    in which the second's decay shrinks the first, and the pairs again (Blelloch, 1990).

    Args:
        k: exponents (B, T, n) in f32.
        v: values (B, T, n) in f32.
        decay: what a token adds to the exponents before it, (n,) or (B, T, n) in f32, at most 0.
        before: the sums and the exponent before the first token, (B, 3, n) in f32.
    """

    def joined(first: tuple, second: tuple):
        largest = jnp.maximum(first[3] + second[0], second[3])
        shares = jnp.exp(first[3] + second[0] - largest), jnp.exp(second[3] - largest)
        above, below = (shares[0] * first[i] + shares[1] * second[i] for i in (1, 2))
        return first[0] + second[0], above, below, largest

    start = tuple(before[:, i, None] for i in range(3))
    tokens = (jnp.broadcast_to(decay, k.shape), v, jnp.ones_like(v), k)
    elements = zip((jnp.zeros_like(start[0]), *start), tokens)
    joint = tuple(jnp.concatenate(pair, axis=1) for pair in elements)
    return lax.associative_scan(joined, joint, axis=1)[1:]


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
    cache = with_state(cache, state, layer, position, last_inputs(position, before, x))
    half = nn.initializers.constant(0.5)
    shares = {name: module.param(f"{name}_mix", half, (x.shape[-1],)) for name in names}
    mix = lambda m: m * x.astype(jnp.float32) + (1 - m) * last
    return {name: mix(row(m, x)).astype(x.dtype) for name, m in shares.items()}, cache
