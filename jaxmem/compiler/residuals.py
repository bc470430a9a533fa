"""residuals: what a backward pass keeps of the forward pass."""

from collections.abc import Callable
from typing import Any

import jax

from ..core.leaf import nbytes


def residuals(fn: Callable, *args: Any) -> int:
    """Bytes that the backward pass of `fn` keeps besides its arguments, before any compiler.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> residuals(lambda x: jnp.sin(x).sum(), jax.ShapeDtypeStruct((1000,), jnp.float32))
        4000
    """

    def kept(*args):
        backward = jax.vjp(lambda first: fn(first, *args[1:]), args[0])[1]
        given = {id(x) for x in jax.tree.leaves(args)}
        return [x for x in jax.tree.leaves(backward) if id(x) not in given]

    return nbytes(jax.eval_shape(kept, *args))
