"""in_int8: optimizer state in a byte a number, scale · sign(c) · |c/127|³ (Dettmers et al., 2021).

Each block of 256 numbers has a scale. Half of the codes c are for numbers within a factor of ten of
the largest in the block, half of the rest for the next factor of ten, as in the paper's dynamic
data type.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import takes
from .float32_state import to_float32, update_in_float32
from .stochastic_rounding import SEEDS_PER_STEP, hashed_bits

BLOCK_SIZE = 256  # numbers that share a scale, along the last axis
LEAST_SIZE = 4096  # a smaller array (biases, norm scales) stays in f32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eighths:
    """An array of optimizer state in int8, with the largest magnitude of each block."""

    codes: Array | None  # int8, in the array's shape
    scale: Array | None  # f32 (..., last axis / BLOCK_SIZE)

    def decode(self) -> Array | None:
        """The numbers in f32; None where there are no codes, as for arrays that are not updated."""
        if self.codes is None:
            return None
        shape = self.codes.shape
        share = self.codes.astype(jnp.float32) / 127
        blocks = (share**3).reshape(*shape[:-1], -1, BLOCK_SIZE)
        return (blocks * self.scale[..., None]).reshape(shape)


def encode_int8(x: Array, seed: Array | int) -> Eighths:
    """`x` in int8, rounded stochastically: right on average, and zero only where `x` is zero.

    If a second moment were rounded to zero, Adam would divide by its epsilon alone.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.linspace(-1, 1, 8192).reshape(16, 512)
        >>> error = encode_int8(x, 1).decode() - x
        >>> float(jnp.abs(error).max()) < 3 / 127, abs(float(error.mean())) < 1e-4
        (True, True)
    """
    blocks = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, BLOCK_SIZE)
    scale = jnp.abs(blocks).max(-1)
    share = jnp.abs(blocks) / jnp.where(scale > 0, scale, 1)[..., None]  # |c/127|³
    # the two codes around each number, and their values
    low = jnp.clip(jnp.floor(127 * jnp.cbrt(share)), 0, 126)
    below, above = (low / 127) ** 3, ((low + 1) / 127) ** 3
    # one of the two at random, so that the mean is the number
    chance = (hashed_bits(share.shape, seed) >> 8).astype(jnp.float32) * 2.0**-24
    up = chance < (share - below) / (above - below)
    code = jnp.where(share > 0, jnp.maximum(low + up.astype(jnp.float32), 1), 0) * jnp.sign(blocks)
    return Eighths(code.astype(jnp.int8).reshape(x.shape), scale)


@takes()
def in_int8(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with the floats of its state in a byte each; it computes in f32.

    Vectors, arrays of fewer than 4096 numbers, and those whose last axis is no multiple of 256 stay
    in f32. Gradients and params are cast to f32 before they reach `optimizer`, and the updates come
    back in f32 (see `apply_rounded`).

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 256), jnp.bfloat16)}
        >>> jm.nbytes(in_int8(optax.adam(1e-3)).init(params)["state"])  # codes, scales and a count
        33284
    """

    def init(params):
        state = optimizer.init(to_float32(params))
        state = jax.tree.map(lambda x: encode_int8(x, 0) if _fits_int8(x) else x, state)
        return {"state": state, "step": jnp.zeros((), jnp.int32)}

    def update(grads, wrapped, params=None):
        old, tree = jax.tree.flatten(wrapped["state"], is_leaf=_is_encoded)
        state = tree.unflatten([x.decode() if _is_encoded(x) else x for x in old])
        updates, state = update_in_float32(optimizer, grads, state, params)
        step = wrapped["step"] + 1

        def encode(i, x, was):
            """Array i of the new state, in the form of the old one."""
            if x is None:
                return was
            return encode_int8(x, step * SEEDS_PER_STEP + i) if _is_encoded(was) else x

        pairs = zip(tree.flatten_up_to(state), old)
        new = [encode(i, x, was) for i, (x, was) in enumerate(pairs)]
        return updates, {"state": tree.unflatten(new), "step": step}

    return optax.GradientTransformation(init, update)


def _fits_int8(x: Array) -> bool:
    """Whether an array is a matrix of floats that is large enough and made of whole blocks."""
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    return floats and x.size >= LEAST_SIZE and x.ndim > 1 and x.shape[-1] % BLOCK_SIZE == 0


def _is_encoded(x: Any) -> bool:
    return isinstance(x, Eighths)
