"""in_bfloat16: an optimizer whose state is held in bfloat16."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .float32_state import updated, wide
from .stochastic_rounding import stochastic_round


def in_bfloat16(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with the floats of its state held in bfloat16; it computes in f32.

    The state takes half the bytes of f32. Gradients and params are cast to f32 before they reach
    `optimizer`, and the updates come back in f32 (see `apply_rounded`).

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
        >>> jm.nbytes(in_bfloat16(optax.adam(1e-3)).init(params)["state"])  # and a count
        16388
    """

    def init(params):
        state = optimizer.init(wide(params))
        return {"state": jax.tree.map(_narrow, state), "step": jnp.zeros((), jnp.int32)}

    def update(grads, held, params=None):
        updates, state = updated(optimizer, grads, wide(held["state"]), params)
        step = held["step"] + 1
        old, tree = jax.tree.flatten(held["state"])
        new = [
            stochastic_round(x, step * 7919 + i) if was.dtype == jnp.bfloat16 else x
            for i, (x, was) in enumerate(zip(tree.flatten_up_to(state), old))
        ]
        return updates, {"state": tree.unflatten(new), "step": step}

    return optax.GradientTransformation(init, update)


def _narrow(x: Array) -> Array:
    return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
