"""stochastic_round: f32 to bfloat16 with E[round(x)] = x (Gupta et al., 2015)."""

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import INTEGER, Kind, takes
from ..core.random_bits import hashed_bits

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
