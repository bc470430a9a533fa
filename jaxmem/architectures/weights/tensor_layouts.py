"""How a tensor of a checkpoint lies in a parameter, where it is more than a transposed matrix.

Each layout is a function of the tensor that moves numbers and computes none. A tensor of an
unexpected shape stays as it is, so that a loader names its shape.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """Reads a tensor of one shape as an array of another, such as (1, 1, d) as (d,).

    Example:
        >>> Reshaped((1, 1, 8), (8,))(np.ones((1, 1, 8))).shape
        (8,)
    """

    tensor: tuple[int, ...]
    array: tuple[int, ...]

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return w.reshape(self.array) if w.shape == self.tensor else w

    def tensor_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor that makes an array of `shape`."""
        return self.tensor


@dataclasses.dataclass(frozen=True)
class PatchKernel:
    """Reads a kernel (out, *window) of windows that do not overlap as a matrix (inputs, out).

    Example:
        >>> PatchKernel((3, 4, 4))(np.ones((8, 3, 4, 4))).shape
        (48, 8)
    """

    window: tuple[int, ...]  # channels, then the sides of a patch

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return w.reshape(len(w), -1).T if w.shape[1:] == self.window else w

    def tensor_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor that makes an array of `shape`."""
        return (size // math.prod(self.window), *self.window)


@dataclasses.dataclass(frozen=True)
class ConvolutionKernel:
    """Reads a kernel (out, in, *window) as (*window, in, out).

    Example:
        >>> ConvolutionKernel()(np.ones((8, 3, 5, 7))).shape
        (5, 7, 3, 8)
    """

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return w.transpose(*range(2, w.ndim), 1, 0) if w.ndim > 2 else w

    def tensor_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor that makes an array of `shape`."""
        return (*shape[:-3:-1], *shape[:-2])
