"""residuals: bytes of the forward pass that are kept for the backward pass."""

from collections.abc import Callable
from typing import Any

import jax

from ..core.byte_counts import nbytes


def residuals(fn: Callable, *args: Any) -> int:
    """Bytes that are kept for the backward pass of `fn(*args)`, besides the arguments.

    The gradient is with respect to the first argument. The count is of the traced program; a
    compiler may keep fewer bytes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> residuals(lambda x: jnp.sin(x).sum(), jax.ShapeDtypeStruct((1000,), jnp.float32))
        4000
    """

    def kept_arrays(*args):
        backward = jax.vjp(lambda first: fn(first, *args[1:]), args[0])[1]
        arguments = {id(x) for x in jax.tree.leaves(args)}
        return [x for x in jax.tree.leaves(backward) if id(x) not in arguments]

    return nbytes(jax.eval_shape(kept_arrays, *args))
