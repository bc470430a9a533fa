"""dot: a product with an encoded operand, by the leaf's own way; decoded: any other operation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .leaf import decode, is_encoded


def decoded(op: Callable, *operands: Any) -> Any:
    """`op` on the decoded operands, recomputed so that `grad` keeps the encoded weights."""
    return jax.checkpoint(lambda *operands: op(*decode(tied(operands))))(*operands)


def tied(operands: tuple) -> tuple:
    """The operands behind a barrier, without which XLA may decode every layer before the first."""
    return lax.optimization_barrier(operands) if len(operands) > 1 else operands


def dot(x: Any, w: Any, dims: Any, **kwargs) -> Array | None:
    """`lax.dot_general(x, w, dims)` by the `dot` of the encoded operand.

    None where both or neither are encoded, or where the leaf's `dot` cannot do it.
    """
    if is_encoded(x) == is_encoded(w):
        return None

    # 1. Put the weight on the right.
    weight_first = is_encoded(x)
    if weight_first:
        x, w, dims = w, x, tuple(pair[::-1] for pair in dims)

    # 2. The product. Its gradient keeps the weight that came in, so that a scan copies no stack.
    # Weights that are read as stored are not tied: a TPU then reads a layer's numbers in the stack.
    def product(x, w):
        y = w.dot(x, dims, **kwargs)
        return None if y is NotImplemented else y

    tie = (lambda operands: operands) if w.read_as_stored else tied
    recomputed = jax.checkpoint(lambda x, w: product(*tie((x, w))))
    y = (recomputed if w.recomputed else product)(x, w)
    if y is None or not weight_first:
        return y

    # 3. Move the free axes of x behind those of the weight.
    n_batch = len(dims[1][0])
    n_free = x.ndim - len(dims[0][0]) - n_batch
    w_free = range(n_batch + n_free, y.ndim)
    return jnp.moveaxis(y, w_free, range(n_batch, n_batch + len(w_free)))
