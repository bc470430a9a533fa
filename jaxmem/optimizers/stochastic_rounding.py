"""in_bfloat16: optimizer state in 2 bytes a number, E[round(x)] = x (Gupta et al., 2015)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def stochastic_round(x: Array, seed: Array | int) -> Array:
    """f32 to bfloat16, up with the probability of how far it is from the lower neighbour.

    Round-to-nearest loses every change below 2^-9 of a number, such as Adam's second moment
    with decay .999. The random bits are a hash of each number's place and `seed` (Steele et al.,
    2014, the finalizer of SplitMix in 32 bits), which XLA computes in place.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.full(10_000, 1.001)
        >>> abs(float(stochastic_round(x, 1).astype(jnp.float32).mean()) - 1.001) < 1e-4
        True
    """
    low = hashed(x.shape, seed) & jnp.uint32(0xFFFF)
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) + low
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def hashed(shape: tuple[int, ...], seed: Array | int) -> Array:
    """Random bits, uint32: a hash of each number's place and `seed`."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        along = [1] * len(shape)
        along[axis] = size
        place = place * jnp.uint32(0x9E3779B1) + jnp.arange(size, dtype=jnp.uint32).reshape(along)
    h = place ^ (jnp.asarray(seed).astype(jnp.uint32) * jnp.uint32(0x85EBCA6B))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # Wellons, 2018
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)


def apply_rounded(params: Any, updates: Any, step: Array | int) -> Any:
    """`params + updates`, each in the dtype of the param; bfloat16 sums are rounded stochastically.

    So an update far below half a step of bfloat16 still counts on average. `step`, the number of
    the training step, seeds the random bits.

    Example:
        >>> import jax.numpy as jnp
        >>> params, updates = {"w": jnp.ones(10_000, jnp.bfloat16)}, {"w": jnp.full(10_000, 1e-3)}
        >>> mean = lambda tree: float(tree["w"].astype(jnp.float32).mean())
        >>> mean({"w": params["w"] + updates["w"].astype(jnp.bfloat16)})  # rounded to nearest
        1.0
        >>> abs(mean(apply_rounded(params, updates, step=1)) - 1.001) < 1e-4
        True
    """
    leaves, tree = jax.tree.flatten(params)
    new = []
    for i, (p, u) in enumerate(zip(leaves, tree.flatten_up_to(updates))):
        x = p.astype(jnp.float32) + u.astype(jnp.float32)
        exact = p.dtype != jnp.bfloat16
        new.append(x.astype(p.dtype) if exact else stochastic_round(x, step * 104_729 + i))
    return tree.unflatten(new)
