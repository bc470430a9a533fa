"""PatchEmbedding: an image as tokens, a linear map of each square of pixels, with positions."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..configs.patches import Patches
from .linear import product, row


class PatchEmbedding(nn.Module):
    """Maps pixels (B, channels, height, width) to tokens (B, T, width of the model).

    A convolution whose windows do not overlap is this product of the flat patches with one matrix,
    which every codec takes. `config` is an encoder's.
    """

    config: Any

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        c, p = self.config, self.config.patches
        _check(pixels, p)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p.inputs, c.width))
        x = product(_flat_patches(pixels, p).astype(kernel.dtype), kernel)
        if p.bias:
            x += row(self.param("bias", nn.initializers.zeros, (c.width,)), x)
        x = x.astype(kernel.dtype)
        if p.class_token:
            first = self.param("class_token", nn.initializers.zeros, (c.width,))
            first = jnp.broadcast_to(first, (len(x), 1, c.width)).astype(x.dtype)
            x = jnp.concatenate([first, x], axis=1)
        table = self.param("positions", nn.initializers.normal(0.02), (p.tokens, c.width))
        grid = tuple(n // p.size for n in pixels.shape[2:])
        table = table if grid == p.grid else _resized(table, p, grid)
        return x + table[None].astype(x.dtype)


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """The weights (new, old) f32 of `old` samples in `new` ones, by cubic convolution (Keys, 1981).

    Samples are at the middles of equal parts; outside, the first and the last one go on. The
    cubic has the parameter -0.75.

    Example:
        >>> bicubic_weights(4, 4).round(2).tolist()[1]
        [0.0, 1.0, 0.0, 0.0]
    """
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    taps = np.floor(at)[:, None] + np.arange(-1, 3)
    away, a = np.abs(at[:, None] - taps), -0.75
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((away - 5) * away + 8) * away * a - 4 * a
    weights = np.zeros((new, old), np.float32)
    taps = np.clip(taps, 0, old - 1).astype(int)
    np.add.at(weights, (np.arange(new)[:, None], taps), np.where(away <= 1, near, far))
    return weights


def _check(pixels: Array, p: Patches) -> None:
    """Refuses pixels that are no batch of images of this size."""
    expected = f"(batch, {p.channels}, {p.height}, {p.width})"
    if pixels.ndim != 4 or pixels.shape[1] != p.channels:
        raise ValueError(f"the pixels have shape {pixels.shape}, expected {expected}")
    size = pixels.shape[2:]
    if size != (p.height, p.width) and (not p.resized or min(size) < p.size):
        least = f", or at least {p.size} x {p.size} pixels" if p.resized else ""
        raise ValueError(f"the pixels have shape {pixels.shape}, expected {expected}{least}")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise ValueError(
            f"the pixels are {pixels.dtype}, expected floats, such as an image processor makes"
        )


def _flat_patches(pixels: Array, p: Patches) -> Array:
    """The patches of (B, C, H, W), row by row: (B, patches, C * size * size)."""
    rows, columns = (n // p.size for n in pixels.shape[2:])
    x = pixels[:, :, : rows * p.size, : columns * p.size]
    x = x.reshape(len(x), p.channels, rows, p.size, columns, p.size)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(len(x), rows * columns, p.inputs)


def _resized(table: Array, p: Patches, grid: tuple[int, int]) -> Array:
    """The positions (T, d) of a grid of another size, interpolated from those of `p.grid`."""
    first, patches = table[: p.class_token], table[p.class_token :].astype(jnp.float32)
    of_rows, of_columns = (bicubic_weights(*sizes) for sizes in zip(p.grid, grid))
    patches = patches.reshape(*p.grid, -1)
    patches = jnp.einsum("rh,cw,hwd->rcd", of_rows, of_columns, patches)
    return jnp.concatenate([first, patches.reshape(-1, table.shape[1]).astype(table.dtype)])
