"""Lazy: an array in a file, read when it is used and a layer at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Stands for an array that has not been read yet.

    `read(i)` returns slice `i` of a stacked array (`stacked=True`), or with `None` all of an
    unstacked one. A loader makes these, so that `encode` and `budget` hold one layer at a time
    and never the whole model.

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
        """The array's pieces in order: one a layer when stacked, else the whole."""
        for i in range(self.shape[0]) if self.stacked else (None,):
            yield np.asarray(self.read(i), self.dtype)

    def map(self, fn: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "Lazy":
        """The same array with `fn` applied to each piece as it is read; `shape` is the result's."""
        return dataclasses.replace(self, shape=shape, read=lambda i: fn(self.read(i)))

    def load(self) -> np.ndarray:
        """All of it, in memory."""
        if not self.stacked:
            return next(self.parts())
        out = np.empty(self.shape, self.dtype)
        for i, part in enumerate(self.parts()):
            out[i] = part
        return out


def combined(
    fn: Callable, *leaves: Any, stacked: bool = False, shape: tuple[int, ...] | None = None
) -> Any:
    """`fn` of the pieces of `leaves` in float32, read when it is used.

    Leaves are lazy or arrays; with `stacked` their first axes count layers. The result has the
    first's dtype and, unless given, shape; it is abstract if that one is.

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
    """Layer `i` of a lazy leaf or an array, all of it with None; in float32."""
    read = leaf.read(i) if is_lazy(leaf) else leaf if i is None else leaf[i]
    return np.asarray(read, np.float32)


def is_lazy(x: Any) -> bool:
    """Whether `x` is still to be read; made to be passed as `is_leaf`."""
    return isinstance(x, Lazy)


def load(tree: Any) -> Any:
    """The tree with every lazy leaf read; other leaves stay."""
    return jax.tree.map(lambda x: x.load() if is_lazy(x) else x, tree, is_leaf=is_lazy)
