"""WaveEmbedding: a sound as tokens, by convolutions over its samples (Baevski et al., 2020)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from .config_sizes import check_types
from .convolution import Convolution
from .feed_forward import activation
from .layers import LayerNorm, Linear, row

_EPS = 1e-5  # of the norms between the convolutions


@dataclasses.dataclass(frozen=True)
class Waves:
    """The convolutions that make tokens of a sound, and the one that says where a token is.

    Example:
        >>> waves = Waves(channels=(512, 512), windows=(10, 3), strides=(5, 2))
        >>> waves.tokens(400), waves.fewest_samples
        (39, 20)

    Raises:
        ValueError: a size is below 1, the lists have different lengths, or the norm is unknown.
    """

    channels: tuple[int, ...]
    windows: tuple[int, ...]  # samples or frames that a convolution reads at a time
    strides: tuple[int, ...]
    bias: bool = False
    norm: str = "group"  # over time, after the first convolution; "layer": over channels, after all
    activation: str = "gelu"
    position_window: int = 128  # frames
    position_groups: int = 16

    def __post_init__(self):
        check_types(self)
        for name in ("channels", "windows", "strides"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)
            if len(sizes) != len(self.channels) or not sizes or min(sizes) < 1:
                raise ValueError(
                    f"{name} is {sizes}, expected {len(self.channels)} sizes of at least 1"
                )
        for name in ("position_window", "position_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.norm not in ("group", "layer"):
            raise ValueError(f"norm is {self.norm!r}, expected 'group' or 'layer'")

    def tokens(self, samples: Any) -> Any:
        """The number of tokens of so many samples, an int or an array."""
        for window, stride in zip(self.windows, self.strides):
            samples = (samples - window) // stride + 1
        return samples

    @property
    def fewest_samples(self) -> int:
        """The samples that make one token."""
        samples = 1
        for window, stride in zip(self.windows[::-1], self.strides[::-1]):
            samples = (samples - 1) * stride + window
        return samples


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
                x = TimeNorm(_EPS, name="norm_0")(x)
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


class TimeNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, over the time of each channel of (B, T, C)."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - y.mean(1, keepdims=True)
        y = y * lax.rsqrt((y * y).mean(1, keepdims=True) + self.eps)
        y = y * row(scale, y) + row(self.param("bias", nn.initializers.zeros, (x.shape[-1],)), y)
        return y.astype(x.dtype)


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
