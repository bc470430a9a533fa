"""h_t = a_t * h_(t-1) + sqrt(1 - a_t²) * i_t * x_t, with a_t = exp(-8 r_t softplus(λ)).

The gates i and r are sigmoids of x, made by a block of weights for each head (De et al., 2024,
Griffin). The result is multiplied by a GELU of the layer's input.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ..configs.decoder_config import Config
from ..layers.linear import Linear, row
from .recurrent_state import Convolution, state_before, with_state

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
        steps = position + jnp.arange(x.shape[1], dtype=jnp.int32)
        is_first = (steps == 0)[None, :, None]  # whose input is taken whole
        share = jnp.where(is_first, 1.0, jnp.sqrt(-jnp.expm1(2 * log_keep)))
        taken = x.astype(jnp.float32) * jax.nn.sigmoid(take) * share
        zeros = jnp.zeros((x.shape[0], 1, r.channels), jnp.float32)
        before = state_before(cache, "state", layer, position, zeros)

        def read(state: Array, token: tuple[Array, Array]):
            state = token[0] * state + token[1]
            return state, state

        tokens = (jnp.exp(log_keep).swapaxes(0, 1), taken.swapaxes(0, 1))
        state, y = lax.scan(read, before[:, 0], tokens)
        cache = with_state(cache, "state", layer, state[:, None])
        gate = jax.nn.gelu(gate.astype(jnp.float32), approximate=True)
        y = (y.swapaxes(0, 1) * gate).astype(x.dtype)
        return Linear(c.width, r.out_bias, name="out")(y), cache


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
