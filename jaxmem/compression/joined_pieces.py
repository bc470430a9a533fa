"""joined: the encoded leaf that the leaves of its layers, or of blocks of its rows, make up."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 2**18  # bytes of an array that NumPy joins: a program takes longer to trace


def joined(whole: Any, pieces: Iterable[Any]) -> Any:
    """The leaf with the shapes of `whole` that the `pieces` make up, joined along one axis.

    The axis is the one in which a piece is shorter than `whole`; arrays of equal shape are shared.

    Example:
        >>> whole = jax.ShapeDtypeStruct((4, 3), jnp.float32)
        >>> joined(whole, [jnp.ones((2, 3)), jnp.zeros((2, 3))]).sum(1).tolist()
        [3.0, 3.0, 0.0, 0.0]
    """
    shapes, tree = jax.tree.flatten(whole)
    arrays = [(np if is_small(s) else jnp).zeros(s.shape, s.dtype) for s in shapes]
    filled = [0] * len(arrays)
    for piece in pieces:
        for j, part in enumerate(jax.tree.leaves(piece)):
            differ = [a for a, n in enumerate(part.shape) if n != arrays[j].shape[a]]
            if not differ:
                arrays[j] = part
                continue
            [at] = differ
            end = filled[j] + part.shape[at]
            if isinstance(arrays[j], np.ndarray):
                arrays[j][(slice(None),) * at + (slice(filled[j], end),)] = part
            else:
                arrays[j] = _place(arrays[j], part, filled[j], at)
            filled[j] = end
    put = lambda array: jax.device_put(array) if isinstance(array, np.ndarray) else array
    return jax.tree.unflatten(tree, map(put, arrays))


def is_small(shape: Any) -> bool:
    """Whether the bytes of an array are so few that NumPy handles it faster than a program.

    Example:
        >>> is_small(jnp.ones((8, 8))), is_small(jax.ShapeDtypeStruct((512, 512), jnp.float32))
        (True, False)
    """
    return shape.size * jnp.dtype(shape.dtype).itemsize <= SMALL


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _place(whole, part, start, axis):
    """`whole` with `part` written at `start` of `axis`, in the memory of `whole`."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)
