"""h_t = exp(step_t * decay) * h_(t-1) + step_t * x_t b_t, y_t = c_t · h_t (Gu & Dao, 2023).

Steps and the directions b and c are made of the input, so that a state keeps or forgets what it
chooses. In "mamba" each channel has a state; in "mamba2" (Dao & Gu, 2024) the channels of a head
share their decay and steps, and the heads of a group their directions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ..configs.decoder_config import Config
from ..configs.recurrence import Recurrence
from ..layers.linear import Linear, row, scaled
from ..layers.norms import Norm, unit_mean_square
from .chunked_scan import chunked_scan
from .recurrent_state import Convolution, if_real, state_before, with_state

_LEAST_STEP = -4.6  # softplus of this bias is a step of 0.01


class Mamba(nn.Module):
    """A selective scan whose steps and directions are made of the convolved input."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c, r = self.config, self.config.recurrence
        gate, x = (Linear(r.channels, r.in_bias, name=name)(x) for name in ("gate", "in"))
        convolution = Convolution(r.taps, r.conv_bias, name="conv")
        x, cache = convolution(x, cache, layer, position)
        x = jax.nn.silu(x)
        ends = (r.step_rank, r.step_rank + r.state)
        selected = Linear(r.step_rank + 2 * r.state, name="select")(x)
        parts = dict(zip(("step_norm", "b_norm", "c_norm"), jnp.split(selected, ends, axis=-1)))
        if r.inner_norms:
            parts = {name: Norm(c, name=name)(y) for name, y in parts.items()}
        step, *directions = parts.values()
        step = jax.nn.softplus(Linear(r.channels, bias=True, name="step")(step, jnp.float32))
        log_decay = self.param("log_decay", _log_of_counts, (r.channels, r.state))
        y, cache = _through_cache(r, x, step, log_decay, directions, cache, layer, position)
        skip = self.param("skip", nn.initializers.ones, (r.channels,))
        y = y + row(skip, y) * x.astype(jnp.float32)
        y = (y * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)
        return Linear(c.width, r.out_bias, name="out")(y), cache


class Mamba2(nn.Module):
    """A selective scan of heads, whose steps and directions are made of the layer's input."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c, r = self.config, self.config.recurrence
        sizes, x = r.linears(c.width), scaled(x, r.in_scale)
        names = ("gate", "in", "b", "c", "step")
        linears = (Linear(sizes[name][1], r.in_bias, name=name)(x) for name in names)
        factors = r.scales or (1.0,) * len(names)
        gate, *convolved, step = (scaled(y, f) for y, f in zip(linears, factors))
        convolution = Convolution(r.taps, r.conv_bias, name="conv")
        y, cache = convolution(jnp.concatenate(convolved, -1), cache, layer, position)
        ends = (r.channels, r.channels + r.groups * r.state)
        x, *directions = jnp.split(jax.nn.silu(y), ends, axis=-1)
        bias = self.param("step_bias", nn.initializers.constant(_LEAST_STEP), (r.heads,))
        step = jax.nn.softplus(step.astype(jnp.float32) + row(bias, step))
        step = jnp.clip(step, *r.step_range) if r.step_range else step
        log_decay = self.param("log_decay", nn.initializers.zeros, (r.heads,))
        y, cache = _through_cache(r, x, step, log_decay, directions, cache, layer, position)
        skip = self.param("skip", nn.initializers.ones, (r.heads,))
        skip = jnp.repeat(skip, r.channels // r.heads)
        y = y + row(skip, y) * x.astype(jnp.float32)
        y = GatedNorm(c.eps, r.norm, r.groups, name="norm")(y, gate).astype(x.dtype)
        return scaled(Linear(c.width, r.out_bias, name="out")(y), r.out_scale), cache


class GatedNorm(nn.Module):
    """y * silu(gate), with a norm of each group of channels before or after the gate, or none.

    Maps y (B, T, n) in f32 and a gate of this shape to the same shape in f32. With `shared` all
    groups have the same gains.
    """

    eps: float
    norm: str
    groups: int
    shared: bool = False

    @nn.compact
    def __call__(self, y: Array, gate: Array) -> Array:
        gate = jax.nn.silu(gate.astype(jnp.float32))
        if self.norm == "none":
            return y * gate
        n = y.shape[-1] // self.groups if self.shared else y.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (n,))
        scale = jnp.tile(scale, self.groups) if self.shared else scale
        y = y * gate if self.norm == "gate_first" else y
        groups = y.reshape(*y.shape[:-1], self.groups, -1)
        groups = unit_mean_square(groups, self.eps)
        y = groups.reshape(y.shape) * row(scale, y)
        return y if self.norm == "gate_first" else y * gate


def selective_scan(
    x: Array, step: Array, decay: Array, b: Array, c: Array, state: Array
) -> tuple[Array, Array]:
    """(the outputs (B, T, G, H, P) in f32, the state after them), token by token.

    Args:
        x: inputs (B, T, G, H, P): groups, heads of a group, channels of a head.
        step: (B, T, G, H) in f32, above 0.
        decay: (1, N or 1, G, H, 1) in f32, below 0.
        b: what writes the state, (B, T, N, G).
        c: what reads it, (B, T, N, G).
        state: before the first token, (B, N, G, H, P) in f32.
    """

    def read(state: Array, token: tuple):
        x, step, b, c = (y.astype(jnp.float32) for y in token)
        step, b, c = step[:, None, :, :, None], b[..., None, None], c[..., None, None]
        state = state * jnp.exp(step * decay) + step * x[:, None] * b
        return state, (state * c).sum(1)

    tokens = tuple(y.swapaxes(0, 1) for y in (x, step, b, c))
    state, y = lax.scan(read, state, tokens)
    return y.swapaxes(0, 1), state


def _through_cache(
    r: Recurrence,
    x: Array,
    step: Array,
    log_decay: Array,
    directions: list[Array],
    cache: dict | None,
    layer: dict,
    position: Array | int,
) -> tuple[Array, dict | None]:
    """(the outputs (B, T, channels) of a scan from the layer's state on, the cache after it)."""
    heads = (r.groups, r.heads // r.groups)
    zeros = jnp.zeros((x.shape[0], r.state, r.channels), jnp.float32)
    before = state_before(cache, "state", layer, position, zeros)
    in_chunks = r.kind == "mamba2" and x.shape[1] > 1
    y, state = (chunked_scan if in_chunks else selective_scan)(
        x.reshape(*x.shape[:2], *heads, -1),
        if_real(position, step, 0.0).reshape(*x.shape[:2], *heads),
        -jnp.exp(log_decay.astype(jnp.float32)).reshape(r.heads, -1).T.reshape(1, -1, *heads, 1),
        *(y.reshape(*x.shape[:2], r.groups, r.state).swapaxes(2, 3) for y in directions),
        before.reshape(x.shape[0], r.state, *heads, -1),
    )
    cache = with_state(cache, "state", layer, position, state.reshape(zeros.shape))
    return y.reshape(x.shape), cache


def _log_of_counts(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
    """The decays that a "mamba" begins with: the logarithms of 1, 2, ... in each channel."""
    counts = 1 + jnp.arange(shape[1], dtype=jnp.float32)
    return jnp.broadcast_to(jnp.log(counts)[None], shape).astype(dtype)
