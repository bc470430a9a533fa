"""(x - mean) / sqrt(var + eps) * (offset + gain) + bias, or without some of these, in f32."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from ..configs.decoder_config import Config
from .linear import row


class Norm(nn.Module):
    """A norm over the last axis, of the kind that `config.norm` says (Zhang & Sennrich, 2019).

    With `heads`, x is (B, heads, T, h) and each head has a gain of its own.
    """

    config: Config
    bias: bool = False
    heads: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        shape = (self.heads, x.shape[-1]) if self.heads else (x.shape[-1],)
        aligned = lambda w: w.astype(jnp.float32).reshape(*_leading(x, self.heads), x.shape[-1])
        y = x.astype(jnp.float32)
        if c.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = unit_mean_square(y, c.eps)
        if c.norm_gain:
            one = nn.initializers.constant(1.0 - c.norm_offset)
            y = y * (aligned(self.param("scale", one, shape)) + c.norm_offset)
        if self.bias:
            y = y + aligned(self.param("bias", nn.initializers.zeros, shape))
        return y.astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale (+ bias), over one axis of x (..., d) (Ba et al., 2016).

    Each channel of the last axis has a scale.
    """

    eps: float
    bias: bool = True
    axis: int = -1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = unit_mean_square(y - y.mean(self.axis, keepdims=True), self.eps, self.axis)
        y = y * row(scale, y)
        if self.bias:
            y += row(self.param("bias", nn.initializers.zeros, (x.shape[-1],)), y)
        return y.astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float, offset: float = 0.0) -> Array:
    """x / sqrt(mean(x²) + eps) * (offset + scale), over the last axis (Zhang & Sennrich, 2019)."""
    y = unit_mean_square(x.astype(jnp.float32), eps)
    return (y * (row(scale, y) + offset)).astype(x.dtype)


def unit_mean_square(x: Array, eps: float, axis: int = -1) -> Array:
    """x / sqrt(mean(x²) + eps) along an axis, computed in f32, in the dtype of x.

    Example:
        >>> unit_mean_square(jnp.array([3.0, 4.0, 0.0, 0.0]), 0.0).tolist()
        [1.2..., 1.6..., 0.0, 0.0]
    """
    y = x.astype(jnp.float32)
    return (y * lax.rsqrt((y * y).mean(axis, keepdims=True) + eps)).astype(x.dtype)


def _leading(x: Array, heads: int) -> tuple[int, ...]:
    """The axes before the last of a gain that multiplies x."""
    return (1, heads, 1) if heads else (1,) * (x.ndim - 1)
