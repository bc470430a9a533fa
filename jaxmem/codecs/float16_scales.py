"""Float16 scales: rounded up, down or to the nearest, so that no weight is clipped or lost.

`span` is what a scale must cover, f32 and not negative; `top` is the largest code, so the exact
scale is span / top. A `top` of at most 13 bits makes scale · top exact in f32.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

SMALLEST_NORMAL = 2.0**-14  # float16 numbers below this one are coarse


def divisor(scale: Array) -> Array:
    """The scale in f32, with 1 in place of 0, to divide by.

    Example:
        >>> divisor(jnp.array([0.0, 0.5])).tolist()
        [1.0, 0.5]
    """
    scale = scale.astype(jnp.float32)
    return jnp.where(scale == 0, 1.0, scale)


def float16_above(span: Array, top: float = 1.0) -> Array:
    """The smallest float16 scale with scale · top ≥ span; infinity where float16 ends.

    Example:
        >>> float(float16_above(jnp.float32(0.1)))  # the nearest float16 is 0.0999755859375
        0.10003662109375
    """
    nearest = (span / top).astype(jnp.float16)
    too_small = nearest.astype(jnp.float32) * top < span
    return jnp.where(too_small, jnp.nextafter(nearest, jnp.float16(jnp.inf)), nearest)


def float16_below(span: Array, top: float) -> Array:
    """The largest float16 scale with scale · top ≤ span, but `float16_above` if it is subnormal.

    Infinity where float16 ends, so that `encode` refuses the weight.

    Example:
        >>> float16_below(jnp.array([0.1, 1e-9]), 1.0).astype(jnp.float32).tolist()
        [0.0999755859375, 5.960464477539063e-08]
    """
    nearest = (span / top).astype(jnp.float16)
    excess = nearest.astype(jnp.float32) * top - span
    too_large = (excess > 0) & (excess < jnp.inf)
    below = jnp.where(too_large, jnp.nextafter(nearest, jnp.float16(0)), nearest)
    return jnp.where(span < top * SMALLEST_NORMAL, float16_above(span, top), below)


def float16_nearest(span: Array, top: float) -> Array:
    """The float16 scale nearest to span / top, but `float16_above` if it is subnormal.

    Example:
        >>> float(float16_nearest(jnp.float32(0.1), 1.0))
        0.0999755859375
    """
    nearest = (span / top).astype(jnp.float16)
    return jnp.where(span < top * SMALLEST_NORMAL, float16_above(span, top), nearest)


def finite_scale(scale: Array, dtype: DTypeLike = jnp.float16) -> Array:
    """The scale rounded to the nearest number of `dtype`, at most float16's largest.

    Example:
        >>> float(finite_scale(jnp.float32(1e6)))
        65504.0
    """
    return jnp.minimum(scale, float(jnp.finfo(jnp.float16).max)).astype(dtype)
