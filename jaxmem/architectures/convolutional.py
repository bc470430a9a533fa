"""A network of convolutions as one Flax module: a stem, stages of blocks, and a head."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from .configs.convolutional_config import WINDOW, Stage
from .configs.convolutional_config import Config as Config
from .layers.convolution import Convolution
from .layers.feed_forward import activation
from .layers.linear import Linear, row
from .layers.norms import LayerNorm
from .weights.convolutional_weights import weights as weights

_EPS = 1e-5  # of the norms of residual blocks
_DEPTHWISE_EPS = 1e-6


def module(config: Config) -> "Network":
    """The Flax module of `config`; run it as `module(config).apply({"params": params}, pixels)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures import convolutional
        >>> config = convolutional.Config((8, 16), (1, 2), stem=8, block="basic", labels=5)
        >>> net, pixels = convolutional.module(config), jnp.zeros((1, 3, 32, 32))
        >>> jax.eval_shape(net.init_with_output, jax.random.key(0), pixels)[0].shape
        (1, 5)
    """
    return Network(config)


class Network(nn.Module):
    """Maps pixels (B, channels, H, W) to logits (B, labels) f32, or features (B, width, h, w)."""

    config: Config

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        c = self.config
        _check(pixels, c)
        x = pixels.transpose(0, 2, 3, 1)
        x = Stem(c, name="stem")(x)
        for i, stage in enumerate(c.stages):
            x = self._stage(x, stage, i)
        if not c.labels:
            return x.transpose(0, 3, 1, 2)
        x = x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)
        x = LayerNorm(c.eps, name="head_norm")(x) if c.block == "depthwise" else x
        return Linear(c.labels, bias=True, name="head")(x, jnp.float32)

    def _stage(self, x: Array, stage: Stage, i: int) -> Array:
        """x after the blocks of stage i: a scan, and before it what changes width and stride."""
        c, name = self.config, f"stage_{i}"
        if c.block == "depthwise":
            if i:
                x = LayerNorm(_DEPTHWISE_EPS, name=f"{name}_norm")(x)
                x = Convolution(stage.width, (2, 2), 2, bias=True, name=f"{name}_down")(x)
            return _blocks(DepthwiseBlock, stage.depth, name)(c)(x)[0]
        x, _ = ResidualBlock(c, stage.width, stage.stride, name=f"{name}_first")(x)
        if stage.depth == 1:
            return x
        return _blocks(ResidualBlock, stage.depth - 1, name)(c, stage.width)(x)[0]


class Stem(nn.Module):
    """The first convolution on x (B, H, W, channels): windows that overlap, or patches."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        if c.block == "depthwise":
            x = Convolution(c.stem, (c.patch,) * 2, c.patch, bias=True, name="conv")(x)
            return LayerNorm(_DEPTHWISE_EPS, name="norm")(x)
        x = Convolution(c.stem, (WINDOW,) * 2, 2, _around(WINDOW), name="conv")(x)
        x = activation(FixedBatchNorm(name="norm")(x), c.activation)
        return nn.max_pool(x, (3, 3), (2, 2), _around(3))


class ResidualBlock(nn.Module):
    """Two or three convolutions with a way around them (He et al., 2015)."""

    config: Config
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        c, y = self.config, x
        convolutions = c.convolutions(self.width, self.stride)
        for i, (features, side, stride) in enumerate(convolutions):
            y = activation(y, "relu") if i else y
            y = Convolution(features, (side,) * 2, stride, _around(side), name=f"conv_{i}")(y)
            y = FixedBatchNorm(name=f"norm_{i}")(y)
        if x.shape[-1] != self.width or self.stride != 1:
            x = Convolution(self.width, (1, 1), self.stride, name="around")(x)
            x = FixedBatchNorm(name="around_norm")(x)
        return activation(x + y, c.activation), None


class DepthwiseBlock(nn.Module):
    """A convolution of each channel, a norm, and an MLP over the channels (Liu et al., 2022)."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        c, width, window = self.config, x.shape[-1], (WINDOW,) * 2
        y = Convolution(width, window, 1, _around(WINDOW), width, True, name="depthwise")(x)
        y = LayerNorm(_DEPTHWISE_EPS, name="norm")(y)
        y = activation(Linear(4 * width, bias=True, name="up")(y), c.activation)
        y = Linear(width, bias=True, name="down")(y)
        if c.layer_scale:
            scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))
            y = (y.astype(jnp.float32) * row(scale, y)).astype(y.dtype)
        return x + y, None


class FixedBatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, with the mean and variance of the checkpoint.

    They are parameters without a gradient (Ioffe & Szegedy, 2015): a batch does not change them.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        zeros, ones, shape = nn.initializers.zeros, nn.initializers.ones, x.shape[-1:]
        mean, var = (
            lax.stop_gradient(self.param(name, init, shape))
            for name, init in (("mean", zeros), ("var", ones))
        )
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        y = (x.astype(jnp.float32) - row(mean, x)) * lax.rsqrt(row(var, x) + _EPS)
        return (y * row(scale, y) + row(bias, y)).astype(x.dtype)


def _blocks(block: type[nn.Module], count: int, name: str):
    """A function of a block's fields: `count` blocks that are one scan, with stacked parameters."""
    stacked = dict(variable_axes={"params": 0}, split_rngs={"params": True})
    scanned = nn.scan(block, **stacked, length=count)
    return lambda *fields: scanned(*fields, name=name)


def _around(side: int) -> tuple[tuple[int, int], ...]:
    """The padding before and after both axes that keeps the middle of a window in the image."""
    return ((side // 2, side // 2),) * 2


def _check(pixels: Array, c: Config) -> None:
    """Refuses what is no batch of images."""
    least = c.patch * 2 ** (len(c.widths) - 1) if c.block == "depthwise" else 1
    is_float = jnp.issubdtype(pixels.dtype, jnp.floating)
    is_batch = pixels.ndim == 4 and pixels.shape[1] == c.channels
    if not is_float or not is_batch or min(pixels.shape[2:]) < least:
        raise ValueError(
            f"the pixels are {pixels.dtype} {pixels.shape}, expected floats "
            f"(batch, {c.channels}, height, width) with sides of at least {least}"
        )
