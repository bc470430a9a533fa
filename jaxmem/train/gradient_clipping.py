"""g · min(1, most / ‖g‖), with the norm of all arrays of a tree in f32 (Pascanu et al., 2013)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def sum_of_squares(gradient: Any) -> Array:
    """The sum of the squares of all numbers of a tree, a scalar in f32."""
    squares = [jnp.square(g.astype(jnp.float32)).sum() for g in jax.tree.leaves(gradient)]
    return sum(squares, jnp.zeros((), jnp.float32))


def global_norm(gradient: Any) -> Array:
    """The square root of the sum of squares of all numbers of a tree, a scalar in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> float(global_norm({"a": jnp.array([3.0]), "b": jnp.array([0.0, 4.0], jnp.bfloat16)}))
        5.0
    """
    return jnp.sqrt(sum_of_squares(gradient))


def clip_factor(norm: Array, most: float) -> Array:
    """What a gradient of this norm is multiplied by, so that its norm is at most `most`."""
    return jnp.where(norm > most, most / norm, 1.0)


def clipped(gradient: Any, norm: Array, most: float) -> Any:
    """The gradient with a global norm of at most `most`; `norm` is its norm now.

    Example:
        >>> import jax.numpy as jnp
        >>> g = {"a": jnp.array([3.0, 4.0])}
        >>> clipped(g, global_norm(g), 1.0)["a"].round(4).tolist()
        [0.5999999642372131, 0.7999999523162842]
    """
    factor = clip_factor(norm, most)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)
