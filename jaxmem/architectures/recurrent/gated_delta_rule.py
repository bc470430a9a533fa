"""S_t = g_t S_(t-1) + w_t k_t (v_t - (g_t S_(t-1))ᵀ k_t)ᵀ, y_t = S_tᵀ q_t (Yang et al., 2024).

The state maps keys to values: it forgets by g, and what it has for a key is replaced by the value
as far as w says. Queries and keys have length 1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ..configs.decoder_config import Config
from ..layers.linear import Linear, row
from .recurrent_state import Convolution, if_real, state_before, with_state
from .selective_scan import GatedNorm

_EPS = 1e-6  # below the length of queries and keys


class GatedDelta(nn.Module):
    """Heads of values whose groups share queries and keys."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c, r = self.config, self.config.recurrence
        parts = {name: Linear(size[1], name=name) for name, size in r.linears(c.width).items()}
        write, step = (parts[name](x, jnp.float32) for name in ("write", "step"))
        gate, *convolved = (parts[name](x) for name in ("gate", "q", "k", "v"))
        convolution = Convolution(r.taps, r.conv_bias, name="conv")
        y, cache = convolution(jnp.concatenate(convolved, -1), cache, layer, position)
        ends = (r.groups * r.state, 2 * r.groups * r.state)
        q, k, v = jnp.split(jax.nn.silu(y).astype(jnp.float32), ends, axis=-1)
        of_heads = (*x.shape[:2], r.groups, r.heads // r.groups)
        q, k = (_unit(y.reshape(*x.shape[:2], r.groups, r.state)) for y in (q, k))
        log_decay = self.param("log_decay", nn.initializers.zeros, (r.heads,))
        bias = self.param("step_bias", nn.initializers.zeros, (r.heads,))
        decay = jnp.exp(log_decay.astype(jnp.float32))
        keep = jnp.exp(-row(decay, step) * jax.nn.softplus(step + row(bias, step)))
        zeros = jnp.zeros((x.shape[0], r.state, r.channels), jnp.float32)
        before = state_before(cache, "state", layer, position, zeros)
        y, state = delta_rule(
            q * r.state**-0.5,
            k,
            v.reshape(*of_heads, -1),
            if_real(position, keep, 1.0).reshape(of_heads),
            if_real(position, jax.nn.sigmoid(write), 0.0).reshape(of_heads),
            before.reshape(x.shape[0], r.state, *of_heads[2:], -1),
        )
        cache = with_state(cache, "state", layer, position, state.reshape(zeros.shape))
        y = y.reshape(*x.shape[:2], r.channels)
        y = GatedNorm(c.eps, "gate_last", r.heads, shared=True, name="norm")(y, gate)
        return parts["out"](y.astype(x.dtype)), cache


def delta_rule(
    q: Array, k: Array, v: Array, keep: Array, write: Array, state: Array
) -> tuple[Array, Array]:
    """(the outputs (B, T, G, H, P), the state after them), token by token, all in f32.

    Args:
        q: queries (B, T, G, N): groups, channels of a key.
        k: keys (B, T, G, N).
        v: values (B, T, G, H, P): heads of a group, channels of a value.
        keep: what is kept of the state, (B, T, G, H), from 0 to 1.
        write: how far a value replaces what is there, (B, T, G, H), from 0 to 1.
        state: before the first token, (B, N, G, H, P).
    """

    def read(state: Array, token: tuple):
        q, k, v, keep, write = token
        q, k = (y.swapaxes(1, 2)[..., None, None] for y in (q, k))  # (B, N, G, 1, 1)
        state = state * keep[:, None, ..., None]
        change = (v - (state * k).sum(1)) * write[..., None]
        state = state + k * change[:, None]
        return state, (state * q).sum(1)

    tokens = tuple(y.swapaxes(0, 1) for y in (q, k, v, keep, write))
    state, y = lax.scan(read, state, tokens)
    return y.swapaxes(0, 1), state


def _unit(x: Array) -> Array:
    """x with vectors of length 1 along the last axis."""
    return x * lax.rsqrt((x * x).sum(-1, keepdims=True) + _EPS)
