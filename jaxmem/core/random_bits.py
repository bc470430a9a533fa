"""hashed_bits: random bits without a key, which XLA computes where they are used."""

import jax.numpy as jnp
from jax import Array


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
