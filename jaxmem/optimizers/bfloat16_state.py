"""in_bfloat16: optimizer state in 2 bytes a number, E[round(x)] = x (Gupta et al., 2015)."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import takes
from .float32_state import to_float32, update_in_float32
from .stochastic_rounding import SEEDS_PER_STEP, stochastic_round


@takes()
def in_bfloat16(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with the floats of its state in bfloat16; it computes in f32.

    The state takes half the bytes of f32, and is rounded stochastically. Gradients and params are
    cast to f32 before they reach `optimizer`, and the updates come back in f32 (see
    `apply_rounded`).

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
        >>> jm.nbytes(in_bfloat16(optax.adam(1e-3)).init(params)["state"])  # and a count
        16388
    """

    def init(params):
        state = optimizer.init(to_float32(params))
        return {"state": jax.tree.map(_to_bfloat16, state), "step": jnp.zeros((), jnp.int32)}

    def update(grads, wrapped, params=None):
        state = to_float32(wrapped["state"])
        updates, state = update_in_float32(optimizer, grads, state, params)
        step = wrapped["step"] + 1
        old, tree = jax.tree.flatten(wrapped["state"])
        new = [
            stochastic_round(x, step * SEEDS_PER_STEP + i) if was.dtype == jnp.bfloat16 else x
            for i, (x, was) in enumerate(zip(tree.flatten_up_to(state), old))
        ]
        return updates, {"state": tree.unflatten(new), "step": step}

    return optax.GradientTransformation(init, update)


def _to_bfloat16(x: Array) -> Array:
    """Floats in bfloat16, rounded to nearest; integers stay."""
    return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
