"""joined: the encoded leaf that the leaves of its layers, or of blocks of its rows, make up."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def joined(whole: Any, pieces: Iterable[Any]) -> Any:
    """The leaf with the shapes of `whole` that the `pieces` make up, joined along one axis.

    The axis is the one in which a piece is shorter than `whole`; arrays of equal shape are shared.

    Example:
        >>> whole = jax.ShapeDtypeStruct((4, 3), jnp.float32)
        >>> joined(whole, [jnp.ones((2, 3)), jnp.zeros((2, 3))]).sum(1).tolist()
        [3.0, 3.0, 0.0, 0.0]
    """
    shapes, tree = jax.tree.flatten(whole)
    arrays = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    filled = [0] * len(arrays)
    for piece in pieces:
        for j, part in enumerate(jax.tree.leaves(piece)):
            differ = [a for a, n in enumerate(part.shape) if n != arrays[j].shape[a]]
            if not differ:
                arrays[j] = part
                continue
            [at] = differ
            arrays[j] = _place(arrays[j], part, filled[j], at)
            filled[j] += part.shape[at]
    return jax.tree.unflatten(tree, arrays)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _place(whole, part, start, axis):
    """`whole` with `part` written at `start` of `axis`, in the memory of `whole`."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)
