"""in_int8: optimizer state in a byte a number, x = s · c / (2 − |c|) or scale · sign(c) · |c/127|³.

The first code is that of `Companded`. In the second each block of 256 numbers has a scale. Half of
the codes c are for numbers within a factor of ten of the largest in the block, half of the rest for
the next factor of ten, as in the dynamic data type of Dettmers et al., 2021.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import shown, takes
from ..core.random_bits import hashed_bits
from .companded_codes import encode_companded
from .encoded_state import StateCodes, encoded_state, in_groups, rounded_up, ungrouped

BLOCK_SIZE = 256  # numbers that share a scale of `Eighths`, along the last axis


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eighths(StateCodes):
    """An array of optimizer state in int8, with the largest magnitude of each block."""

    codes: Array | None  # int8, in the array's shape
    scale: Array | None  # f32 (..., ⌈last axis / BLOCK_SIZE⌉)

    def decode(self):
        if self.codes is None:
            return None
        share = in_groups(self.codes, BLOCK_SIZE).astype(jnp.float32) / 127
        return ungrouped(share**3 * self.scale[..., None], self.codes.shape[-1])

    def encode_like(self, x, seed):
        return encode_int8(x, seed)


def encode_int8(x: Array, seed: Array | int) -> Eighths:
    """`x` in int8, rounded stochastically: right on average, and zero only where `x` is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.linspace(-1, 1, 8192).reshape(16, 512)
        >>> error = encode_int8(x, 1).decode() - x
        >>> float(jnp.abs(error).max()) < 3 / 127, abs(float(error.mean())) < 1e-4
        (True, True)
    """
    blocks = in_groups(x.astype(jnp.float32), BLOCK_SIZE)
    scale = jnp.abs(blocks).max(-1)
    share = jnp.abs(blocks) / jnp.where(scale > 0, scale, 1)[..., None]  # |c/127|³
    # The two codes around each number, and one of them at random.
    low = jnp.clip(jnp.floor(127 * jnp.cbrt(share)), 0, 126)
    below, above = (low / 127) ** 3, ((low + 1) / 127) ** 3
    up = rounded_up(share, below, above, hashed_bits(share.shape, seed)).astype(jnp.float32)
    code = jnp.where(share > 0, jnp.maximum(low + up, 1), 0) * jnp.sign(blocks)
    return Eighths(ungrouped(code.astype(jnp.int8), x.shape[-1]), scale)


CODES = {"companded": encode_companded, "cubic": encode_int8}


@takes()
def in_int8(
    optimizer: optax.GradientTransformation, *, code: Literal["companded", "cubic"] = "companded"
) -> optax.GradientTransformation:
    """The optimizer with the floats of its state in a byte each; it computes in f32.

    The code is FlashOptim's "companded" one (1.031 bytes a number), or "cubic" (1.016 bytes), that
    of jaxmem 0.1. Vectors and arrays of fewer than 4096 numbers stay in f32. Gradients and params
    are cast to f32 before they reach `optimizer`, and the updates come back in f32 (see
    `apply_rounded`). A slice of the state of a stack of layers is the state of the slice.

    Raises:
        ValueError: there is no such code.

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 256), jnp.bfloat16)}
        >>> jm.nbytes(in_int8(optax.adam(1e-3)).init(params)["state"])  # codes, scales and a count
        33796
    """
    if code not in CODES:
        raise ValueError(f"in_int8: code is {shown(code)}, expected one of {list(CODES)}")
    return encoded_state(optimizer, lambda x: CODES[code](x, 0))
