"""Scales that are stored in fewer bits: never zero, and never smaller than what they stand for."""

import jax.numpy as jnp
from jax import Array


def divisor(scale: Array) -> Array:
    """The scale in f32, 1 where it is 0."""
    scale = scale.astype(jnp.float32)
    return jnp.where(scale == 0, 1.0, scale)


def half_above(x: Array, top: float = 1.0) -> Array:
    """The least f16 whose product with `top` (of at most 13 bits) is no less than x, f32."""
    near = (x / top).astype(jnp.float16)
    short = near.astype(jnp.float32) * top < x
    return jnp.where(short, jnp.nextafter(near, jnp.float16(jnp.inf)), near)
