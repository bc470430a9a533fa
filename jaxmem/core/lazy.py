"""Lazy: an array in a file, which is read when it is used, one layer at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..io.aligned_memory import aligned


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Stands for an array that has not been read yet.

    `read(i)` returns layer `i` of a stacked array (`stacked=True`); `read(None)` returns all of an
    unstacked one. Loaders make these, so that `encode` and `budget` have one layer in memory at a
    time and never the whole model.

    Example:
        >>> import numpy as np
        >>> from jaxmem.core.lazy import Lazy
        >>> layers = [np.zeros((2, 3)), np.ones((2, 3))]
        >>> w = Lazy((2, 2, 3), np.dtype("float32"), lambda i: layers[i], stacked=True)
        >>> w.map(lambda layer: layer.T, (2, 3, 2)).load().sum(axis=(1, 2))
        array([0., 6.], dtype=float32)
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[int | None], np.ndarray]
    stacked: bool = False

    ndim = property(lambda self: len(self.shape))

    def parts(self):
        """The array's layers in order; the whole array if it is not stacked."""
        for i in range(self.shape[0]) if self.stacked else (None,):
            yield np.asarray(self.read(i), self.dtype)

    def map(self, fn: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "Lazy":
        """The array with `fn` applied to each part as it is read; `shape` is that of the result."""
        return dataclasses.replace(self, shape=shape, read=lambda i: fn(self.read(i)))

    def load(self) -> np.ndarray:
        """The whole array, in memory."""
        if not self.stacked:
            return next(self.parts())
        out = aligned(self.shape, np.dtype(self.dtype))
        for i, part in enumerate(self.parts()):
            out[i] = part
        return out


def combined(
    fn: Callable, *leaves: Any, stacked: bool = False, shape: tuple[int, ...] | None = None
) -> Any:
    """The lazy array `fn(*leaves)`, computed in float32 when it is read.

    Leaves are lazy or arrays. With `stacked` their first axes are layers, and `fn` takes one layer
    of each at a time. The result has the dtype of the first leaf, and its shape unless `shape` is
    given. If the first leaf is abstract, so is the result.

    Example:
        >>> import numpy as np
        >>> from jaxmem.core.lazy import combined
        >>> w, gain = np.full((2, 3), 2.0), np.array([[1.0], [5.0]])
        >>> combined(np.multiply, w, gain, stacked=True).load()
        array([[ 2.,  2.,  2.],
               [10., 10., 10.]])
    """
    shape, dtype = shape or leaves[0].shape, leaves[0].dtype
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, dtype)
    return Lazy(shape, dtype, lambda i: fn(*(piece(leaf, i) for leaf in leaves)), stacked)


def piece(leaf: Any, i: int | None) -> np.ndarray:
    """Layer `i` of a lazy leaf or an array in float32; with None, all of it."""
    read = leaf.read(i) if is_lazy(leaf) else leaf if i is None else leaf[i]
    return np.asarray(read, np.float32)


def is_lazy(x: Any) -> bool:
    """Whether `x` has not been read yet; for the argument `is_leaf` of `jax.tree.map`."""
    return isinstance(x, Lazy)


def load(tree: Any) -> Any:
    """The tree with every lazy leaf read; other leaves are as they were."""
    return jax.tree.map(lambda x: x.load() if is_lazy(x) else x, tree, is_leaf=is_lazy)
