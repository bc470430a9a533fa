"""in_int8: optimizer state in a byte a number, in blocks with a scale each (Dettmers et al., 2021).

A code c stands for scale · sign(c) · |c/127|³: half of the codes lie in the first decade below the
largest number of a block, half of the rest in the next, as in the paper's dynamic data type.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .float32_state import updated, wide
from .stochastic_rounding import hashed

BLOCK = 256  # numbers to a scale, along the last axis
LEAST = 4096  # a smaller array is a vector of biases or scales, and stays in f32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eighths:
    """Codes of an array's shape, and the largest magnitude of each block."""

    codes: Array | None  # int8
    scale: Array | None  # f32 (..., last axis / BLOCK)

    def decode(self) -> Array | None:
        """The numbers in f32; nothing of nothing, as where an update is of some arrays only."""
        if self.codes is None:
            return None
        shape = self.codes.shape
        share = self.codes.astype(jnp.float32) / 127
        blocks = (share**3).reshape(*shape[:-1], -1, BLOCK)
        return (blocks * self.scale[..., None]).reshape(shape)


def encoded(x: Array, seed: Array | int) -> Eighths:
    """`x` in codes, rounded so that on average it stays what it is; what is not zero stays so.

    A second moment of zero would make Adam divide by its epsilon alone.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.linspace(-1, 1, 8192).reshape(16, 512)
        >>> error = encoded(x, 1).decode() - x
        >>> float(jnp.abs(error).max()) < 3 / 127, abs(float(error.mean())) < 1e-4
        (True, True)
    """
    blocks = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, BLOCK)
    scale = jnp.abs(blocks).max(-1)
    share = jnp.abs(blocks) / jnp.where(scale > 0, scale, 1)[..., None]
    low = jnp.clip(jnp.floor(127 * jnp.cbrt(share)), 0, 126)
    below, above = (low / 127) ** 3, ((low + 1) / 127) ** 3
    chance = (hashed(share.shape, seed) >> 8).astype(jnp.float32) * 2.0**-24
    up = chance < (share - below) / (above - below)
    code = jnp.where(share > 0, jnp.maximum(low + up.astype(jnp.float32), 1), 0) * jnp.sign(blocks)
    return Eighths(code.astype(jnp.int8).reshape(x.shape), scale)


def in_int8(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with the floats of its state in a byte each; it computes in f32.

    Vectors, small arrays, and those whose last axis is no multiple of 256 stay in f32.
    Gradients and params are cast to f32 before they reach `optimizer`, and the updates come back
    in f32 (see `apply_rounded`).

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 256), jnp.bfloat16)}
        >>> jm.nbytes(in_int8(optax.adam(1e-3)).init(params)["state"])  # codes, scales and a count
        33284
    """

    def init(params):
        state = optimizer.init(wide(params))
        state = jax.tree.map(lambda x: encoded(x, 0) if _takes(x) else x, state)
        return {"state": state, "step": jnp.zeros((), jnp.int32)}

    def update(grads, held, params=None):
        old, tree = jax.tree.flatten(held["state"], is_leaf=_is_encoded)
        state = tree.unflatten([x.decode() if _is_encoded(x) else x for x in old])
        updates, state = updated(optimizer, grads, state, params)
        step = held["step"] + 1
        again = lambda i, x, was: encoded(x, step * 7919 + i) if _is_encoded(was) else x
        new = [
            was if x is None else again(i, x, was)
            for i, (x, was) in enumerate(zip(tree.flatten_up_to(state), old))
        ]
        return updates, {"state": tree.unflatten(new), "step": step}

    return optax.GradientTransformation(init, update)


def _takes(x: Array) -> bool:
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    return floats and x.size >= LEAST and x.ndim > 1 and x.shape[-1] % BLOCK == 0


def _is_encoded(x: Any) -> bool:
    return isinstance(x, Eighths)
