"""out(c * conv(b * x)): a gated convolution over a few tokens (Liquid AI, 2025, LFM2)."""

import flax.linen as nn
from jax import Array

from ..configs.decoder_config import Config
from ..layers.linear import Linear
from .recurrent_state import Convolution


class ShortConvolution(nn.Module):
    """A convolution of each channel between two gates, which are linear in the layer's input."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c, r = self.config, self.config.recurrence
        before, after, x = (
            Linear(r.channels, r.in_bias, name=name)(x) for name in ("b", "c", "in")
        )
        convolution = Convolution(r.taps, r.conv_bias, name="conv")
        y, cache = convolution(before * x, cache, layer, position)
        return Linear(c.width, r.out_bias, name="out")(after * y), cache
