"""The windows that a convolution multiplies by its kernel, as rows: im2col (Chellapilla, 2006)."""

import dataclasses
import math
from typing import Any

from jax import Array, lax


@dataclasses.dataclass(frozen=True)
class ConvolutionWindows:
    """A hashable function of the input of a convolution, which gives its windows as rows.

    Attributes:
        kernel: the shape of the kernel.
        dimension_numbers: those of the convolution.
        order: positions in (inputs of a group, *window) in the order of the kernel's axes.
        options: strides, padding and dilations, as (name, value) pairs.
    """

    kernel: tuple[int, ...]
    dimension_numbers: lax.ConvDimensionNumbers
    order: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, x: Array) -> Array:
        """The windows (rows, k) of an input; those of a group's channels are rows of their own."""
        numbers = self.dimension_numbers
        inputs, *window = (self.kernel[a] for a in numbers.rhs_spec[1:])
        highest = lax.Precision.HIGHEST
        patches = lax.conv_general_dilated_patches(
            x, window, dimension_numbers=numbers, precision=highest, **dict(self.options)
        )
        batch, channel, *places = numbers.out_spec
        patches = patches.transpose(batch, *places, channel)  # (..., channels * window)
        patches = patches.reshape(-1, inputs, *window)  # a row for each place and group
        rows = patches.transpose(0, *(1 + a for a in self.order))
        return rows.reshape(-1, inputs * math.prod(window))
