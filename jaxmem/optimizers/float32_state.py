"""in_float32: an optimizer that computes in float32, whatever the dtype of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.arguments import takes


@takes()
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
    update = lambda grads, state, params=None: update_in_float32(optimizer, grads, state, params)
    return optax.GradientTransformation(lambda params: optimizer.init(to_float32(params)), update)


def update_in_float32(
    optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any
) -> tuple[Any, Any]:
    """(updates, state) of the optimizer, given gradients and params cast to f32."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        return optimizer.update(to_float32(grads), state, to_float32(params))


def to_float32(tree: Any) -> Any:
    """The tree with its floats in f32; integers stay."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_float(x) else x, tree)
