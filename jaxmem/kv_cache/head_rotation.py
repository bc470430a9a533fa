"""x H: heads turned by an orthogonal matrix, which spreads a large channel over all of them."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def rotated_heads(x: Array, rotation: np.ndarray | None) -> Array:
    """x (B, K, T, h) times a matrix (h, h), summed in f32; x itself for None.

    Example:
        >>> rotated_heads(jnp.ones((1, 1, 1, 2)), np.eye(2, dtype="f4")[::-1]).tolist()
        [[[[1.0, 1.0]]]]
    """
    if rotation is None:
        return x
    dims = (((3,), (0,)), ((), ()))
    y = lax.dot_general(x, rotation.astype(x.dtype), dims, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)
