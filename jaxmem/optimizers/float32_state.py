"""in_float32: an optimizer that computes in float32, whatever the dtype of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..codecs.integer import IntArray
from ..core.arguments import takes
from .split_leaf import Split


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
    """The tree with its floats in f32, and `Split` and `Int` weights decoded; integers stay."""

    def one(x):
        if isinstance(x, Split):
            return x.joined()
        if is_trained_whole(x):
            return x.decode().astype(jnp.float32)
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree, is_leaf=is_trained_whole)


def is_trained_whole(x: Any) -> bool:
    """Whether `x` is an encoded weight whose gradient and update are those of one array."""
    return isinstance(x, Split | IntArray)
