"""SoundEmbedding: the frames of a spectrogram as tokens, by two convolutions over time."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ..configs.seq2seq_config import STRIDE
from .convolution import Convolution
from .feed_forward import activation

WINDOW = 3  # frames that a convolution reads at a time


class SoundEmbedding(nn.Module):
    """Maps spectrograms (B, mels, frames) to tokens (B, frames / 2, d) (Radford et al., 2022).

    `config` is an encoder-decoder's.
    """

    config: Any

    @nn.compact
    def __call__(self, spectrograms: Array) -> Array:
        c = self.config
        frames = STRIDE * c.of_encoder().context
        is_float = jnp.issubdtype(spectrograms.dtype, jnp.floating)
        if not is_float or spectrograms.shape[1:] != (c.mels, frames):
            raise ValueError(
                f"the spectrograms are {spectrograms.dtype} {spectrograms.shape}, expected floats "
                f"(batch, {c.mels}, {frames}), such as model.processor makes of sounds"
            )
        x = spectrograms.swapaxes(1, 2)
        for name, stride in (("conv_0", 1), ("conv_1", STRIDE)):
            layer = Convolution(c.width, (WINDOW,), stride, ((1, 1),), bias=True, name=name)
            x = activation(layer(x), "gelu")
        return x
