"""weight_fold and each_layer: the matrix of a weight that an adapter is beside, layer by layer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..core.fold import Fold
from ..core.matrix_leaf import MatrixLeaf


def weight_fold(leaf: Any) -> tuple[tuple[int, ...], Fold]:
    """(stack shape, fold) of a weight's matrix (*stack, n, k); a dense weight is (*stack, k, n).

    Example:
        >>> import jax.numpy as jnp
        >>> weight_fold(jnp.ones((12, 64, 32)))
        ((12,), Fold(kept=(32,), summed=(64,), order=(-1, -2)))
    """
    if isinstance(leaf, MatrixLeaf):
        return leaf.batch_shape, leaf.fold
    if hasattr(leaf, "parts"):  # a sum: its first part has its shape
        return weight_fold(leaf.parts[0])
    k, n = leaf.shape[-2:]
    return tuple(leaf.shape[:-2]), Fold((n,), (k,), (-1, -2))


def each_layer(fn: Callable[[Any], Any], depth: int, args: Any) -> Any:
    """`fn` of each slice along the `depth` leading axes of the arrays in `args`, one at a time.

    Example:
        >>> import jax.numpy as jnp
        >>> each_layer(lambda args: args[0].sum(), 1, (jnp.ones((2, 3)),)).tolist()
        [3.0, 3.0]
    """
    for _ in range(depth):
        fn = functools.partial(lax.map, fn)
    return jax.jit(fn)(args)
