"""h_t = a_t * h_(t-1) + sqrt(1 - a_t²) * i_t * x_t, with a_t = exp(-8 r_t softplus(λ)).

The gates i and r are sigmoids of x, made by a block of weights for each head (De et al., 2024,
Griffin). The result is multiplied by a GELU of the layer's input.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ...kv_cache.packed_texts import token_positions
from ..configs.decoder_config import Config
from ..layers.linear import Linear, row
from .recurrent_state import Convolution, if_real, state_before, with_state

_SHARPNESS = 8.0  # of the decay


class GatedRecurrence(nn.Module):
    """A convolution, then a linear recurrence whose decay depends on the input."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c, r = self.config, self.config.recurrence
        gate, x = (Linear(r.channels, r.in_bias, name=name)(x) for name in ("gate", "in"))
        convolution = Convolution(r.taps, r.conv_bias, name="conv")
        x, cache = convolution(x, cache, layer, position)
        keep = BlockLinear(r.heads, name="keep_gate")(x)
        take = BlockLinear(r.heads, name="input_gate")(x)
        decay = self.param("decay", nn.initializers.zeros, (r.channels,))
        log_keep = -_SHARPNESS * jax.nn.sigmoid(keep) * row(jax.nn.softplus(decay), keep)
        is_first = (token_positions(position, x.shape[1]) == 0)[..., None]  # is taken whole
        share = jnp.where(is_first, 1.0, jnp.sqrt(-jnp.expm1(2 * log_keep)))
        taken = x.astype(jnp.float32) * jax.nn.sigmoid(take) * share
        zeros = jnp.zeros((x.shape[0], 1, r.channels), jnp.float32)
        before = state_before(cache, "state", layer, position, zeros)

        keep, taken = if_real(position, jnp.exp(log_keep), 1.0), if_real(position, taken, 0.0)
        y = linear_recurrence(keep, taken, before[:, 0])
        cache = with_state(cache, "state", layer, position, y[:, -1:])
        gate = jax.nn.gelu(gate.astype(jnp.float32), approximate=True)
        y = (y * gate).astype(x.dtype)
        return Linear(c.width, r.out_bias, name="out")(y), cache


def linear_recurrence(keep: Array, taken: Array, state: Array) -> Array:
    """h_t = keep_t * h_(t-1) + taken_t, (B, T, n), in ⌈log2 T⌉ steps over all tokens.

    Two tokens in a row are one token that keeps the product, and takes what the second keeps of the
    first: the tokens are joined in pairs, and the pairs again (Blelloch, 1990).

    Args:
        keep: (B, T, n) in f32, from 0 to 1.
        taken: (B, T, n) in f32.
        state: before the first token, (B, n) in f32.
    """

    def joined(first: tuple[Array, Array], second: tuple[Array, Array]):
        return first[0] * second[0], second[0] * first[1] + second[1]

    kept, h = lax.associative_scan(joined, (keep, taken), axis=1)
    return h + kept * state[:, None]


class BlockLinear(nn.Module):
    """Each head of x times a matrix of its own, plus a bias: (B, T, n) to the same shape in f32."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n = x.shape[-1] // self.heads
        init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        kernel = self.param("kernel", init, (self.heads, n, n))
        bias = self.param("bias", nn.initializers.zeros, (self.heads, n))
        heads = x.reshape(-1, self.heads, n).swapaxes(0, 1)  # (heads, B * T, n)
        dims = (((2,), (1,)), ((0,), (0,)))
        y = lax.dot_general(heads, kernel, dims, preferred_element_type=jnp.float32)
        return (y + bias.astype(jnp.float32)[:, None]).swapaxes(0, 1).reshape(x.shape)
