"""in_float32: an optimizer that computes in float32, whatever the parameters are."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with its state in f32, whatever the dtype of the params.

    Gradients and params are cast to f32 before they reach `optimizer`, and the updates come back
    in f32 (see `apply_rounded`).

    Example:
        >>> import jax.numpy as jnp, optax
        >>> params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
        >>> in_float32(optax.adam(1e-3)).init(params)[0].mu["w"].dtype
        dtype('float32')
    """
    update = lambda grads, state, params=None: updated(optimizer, grads, state, params)
    return optax.GradientTransformation(lambda params: optimizer.init(wide(params)), update)


def updated(optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any) -> Any:
    """(updates, state) of an optimizer that is given f32."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        return optimizer.update(wide(grads), state, wide(params))


def wide(tree: Any) -> Any:
    """The floats of a tree in f32."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_float(x) else x, tree)
