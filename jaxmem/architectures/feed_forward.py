"""MLP: down(act(gate(x)) * up(x)), or without a gate down(act(up(x)))."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from .decoder_config import Config
from .layers import Linear


class MLP(nn.Module):
    """The feed-forward part of a layer (Shazeer, 2020), of `config.ffn` neurons if `ffn` is 0."""

    config: Config
    ffn: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, ffn = self.config, self.ffn or self.config.ffn
        gate = Linear(ffn, c.mlp_bias, name="gate")(x) if c.gated else None
        up = Linear(ffn, c.mlp_bias, name="up")(x)
        y = activate(up, c) if gate is None else activate(gate, c) * up
        return Linear(c.width, c.mlp_bias, name="down")(y)


def activate(x: Array, config: Config) -> Array:
    """The non-linearity of a configuration; without `activation`, SiLU or GELU by tanh."""
    match config.activation or ("gelu_tanh" if config.gelu else "silu"):
        case "silu":
            return jax.nn.silu(x)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "relu":
            return jax.nn.relu(x)
        case "relu2":
            return jnp.square(jax.nn.relu(x))
    raise ValueError(f"activation is {config.activation!r}, which is not computed here")
