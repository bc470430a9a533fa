"""stochastic_round: f32 to bfloat16 with E[round(x)] = x (Gupta et al., 2015)."""

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import INTEGER, Kind, takes

SEEDS_PER_STEP = 7919  # seeds between two training steps: one for each array of an optimizer state
PARAM_SEEDS_PER_STEP = 104_729  # likewise, for each array of the params

_ARRAY = Kind("an array", lambda x: hasattr(x, "shape") and hasattr(x, "dtype"))
SEED = Kind(
    "an int, or an array of one",
    lambda x: (
        INTEGER.accepts(x)
        or (getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.integer))
    ),
)


@takes(x=_ARRAY, seed=SEED)
def stochastic_round(x: Array, seed: Array | int) -> Array:
    """`x` in bfloat16, rounded up with a probability equal to its distance from the value below.

    The distance counts in steps between neighbours of bfloat16. Round-to-nearest loses every change
    below 2^-9 of a number, such as those of Adam's second moment with decay .999. The random bits
    are a hash of each number's position and `seed` (Steele et al., 2014, the finalizer of SplitMix
    in 32 bits), which XLA computes in place.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.full(10_000, 1.001)
        >>> abs(float(stochastic_round(x, 1).astype(jnp.float32).mean()) - 1.001) < 1e-4
        True
    """
    noise = hashed_bits(x.shape, seed) & jnp.uint32(0xFFFF)  # for the 16 bits that are cut off
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) + noise
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def hashed_bits(shape: tuple[int, ...], seed: Array | int) -> Array:
    """Random bits, uint32 of this shape: a hash of each number's position and `seed`."""
    # the position of each number, its axes mixed by multiplication
    position = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        broadcast = [1] * len(shape)
        broadcast[axis] = size
        index = jnp.arange(size, dtype=jnp.uint32).reshape(broadcast)
        position = position * jnp.uint32(0x9E3779B1) + index
    # shifts and odd factors spread each bit over all others
    h = position ^ (jnp.asarray(seed).astype(jnp.uint32) * jnp.uint32(0x85EBCA6B))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # Wellons, 2018
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)
