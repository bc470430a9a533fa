"""MLP: down(act(gate(x)) * up(x)), or without a gate down(act(up(x)))."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ..configs.decoder_config import Config
from .linear import Linear, scaled

# By the names in `ACTIVATIONS` of configs/decoder_config.py; families/hf_fields.py has the names of
# config.json for them.
_FUNCTIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "tanh": jnp.tanh,
}


class MLP(nn.Module):
    """The feed-forward part of a layer (Shazeer, 2020), of `config.ffn` neurons if `ffn` is 0."""

    config: Any
    ffn: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, ffn = self.config, self.ffn or self.config.ffn
        scales = getattr(c, "mlp_scales", ()) or (1.0, 1.0)
        gate = Linear(ffn, c.mlp_bias, name="gate")(x) if c.gated else None
        up = Linear(ffn, c.mlp_bias, name="up")(x)
        y = activate(up, c) if gate is None else activate(scaled(gate, scales[0]), c) * up
        return scaled(Linear(c.width, c.mlp_bias, name="down")(y), scales[1])


def activate(x: Array, config: Config) -> Array:
    """The non-linearity of a configuration; without `activation`, SiLU or GELU by tanh."""
    return activation(x, config.activation or ("gelu_tanh" if config.gelu else "silu"))


def activation(x: Array, name: str) -> Array:
    """The non-linearity of one of the names in `ACTIVATIONS`."""
    return _FUNCTIONS[name](x)
