"""WaveEmbedding: a sound as tokens, by convolutions over its samples (Baevski et al., 2020)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ..configs.waves import Waves
from .convolution import Convolution
from .feed_forward import activation
from .linear import Linear
from .norms import LayerNorm

_EPS = 1e-5  # of the norms between the convolutions


class WaveEmbedding(nn.Module):
    """Maps samples (B, S), and a mask of the real ones, to tokens (B, T, d) and their mask.

    `config` is an encoder's.
    """

    config: Any

    @nn.compact
    def __call__(self, samples: Array, mask: Array | None) -> tuple[Array, Array]:
        c, w = self.config, self.config.waves
        _check(samples, mask, w)
        mask = None if mask is None else mask.astype(bool)
        x = samples[..., None]
        for i, (channels, window, stride) in enumerate(zip(w.channels, w.windows, w.strides)):
            x = Convolution(channels, (window,), stride, bias=w.bias, name=f"conv_{i}")(x)
            if w.norm == "layer":
                x = LayerNorm(_EPS, name=f"norm_{i}")(x)
            elif i == 0:
                x = LayerNorm(_EPS, axis=1, name="norm_0")(x)
            x = activation(x, w.activation)
        x = Linear(c.width, bias=True, name="proj")(LayerNorm(c.eps, name="norm")(x))
        lengths = jnp.full(len(x), x.shape[1]) if mask is None else w.tokens(mask.sum(1))
        real = jnp.arange(x.shape[1])[None] < lengths[:, None]
        x = jnp.where(real[..., None], x, 0).astype(x.dtype)
        half = w.position_window // 2
        near = Convolution(
            c.width,
            (w.position_window,),
            padding=((half, half - (w.position_window % 2 == 0)),),
            groups=w.position_groups,
            bias=True,
            name="positions",
        )(x)
        return x + activation(near, w.activation), real


def _check(samples: Array, mask: Array | None, w: Waves) -> None:
    """Refuses what is no batch of sounds, and sounds that are too short."""
    is_float = jnp.issubdtype(samples.dtype, jnp.floating)
    if samples.ndim != 2 or not is_float or samples.shape[1] < w.fewest_samples:
        raise ValueError(
            f"the sounds are {samples.dtype} {samples.shape}, expected floats (batch, samples) "
            f"with at least {w.fewest_samples} samples"
        )
    if mask is not None and mask.shape != samples.shape:
        raise ValueError(f"the mask has shape {mask.shape}, expected {samples.shape}")
