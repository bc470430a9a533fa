"""Convolution: windows of the input times one kernel; the axis of channels is the last one."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from .linear import row

_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


class Convolution(nn.Module):
    """Convolves x (B, *sizes, channels) with a kernel (*window, channels / groups, features).

    `jm.uses` says that a kernel is summed over all axes but the last, so an encoding takes it as
    one matrix of a row for each feature.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures.layers.convolution import Convolution
        >>> layer = Convolution(8, (3, 3), stride=2, padding=((1, 1), (1, 1)))
        >>> y, params = layer.init_with_output(jax.random.key(0), jnp.ones((1, 6, 6, 4)))
        >>> y.shape, params["params"]["kernel"].shape
        ((1, 3, 3, 8), (3, 3, 4, 8))
    """

    features: int
    window: tuple[int, ...]
    stride: int = 1
    padding: tuple[tuple[int, int], ...] = ()  # before and after each axis; () for none
    groups: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = len(self.window)
        shape = (*self.window, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = lax.conv_general_dilated(
            x.astype(kernel.dtype),
            kernel,
            (self.stride,) * axes,
            self.padding or ((0, 0),) * axes,
            dimension_numbers=_LAYOUTS[axes],
            feature_group_count=self.groups,
            preferred_element_type=jnp.float32,
        )
        if self.bias:
            y += row(self.param("bias", nn.initializers.zeros, (self.features,)), y)
        return y.astype(kernel.dtype)
