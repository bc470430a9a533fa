"""in_bfloat16: optimizer state in 2 bytes a number, E[round(x)] = x (Gupta et al., 2015)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
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


def in_bfloat16(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with the floats of its state held in bfloat16; it computes in f32.

    The state takes half the bytes of f32. Gradients and params are cast to f32 before they reach
    `optimizer`, and the updates come back in f32 (see `apply_rounded`).

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
        >>> jm.nbytes(in_bfloat16(optax.adam(1e-3)).init(params)["state"])  # and a count
        16388
    """

    def init(params):
        state = optimizer.init(wide(params))
        return {"state": jax.tree.map(_narrow, state), "step": jnp.zeros((), jnp.int32)}

    def update(grads, held, params=None):
        updates, state = updated(optimizer, grads, wide(held["state"]), params)
        step = held["step"] + 1
        old, tree = jax.tree.flatten(held["state"])
        new = [
            stochastic_round(x, step * 7919 + i) if was.dtype == jnp.bfloat16 else x
            for i, (x, was) in enumerate(zip(tree.flatten_up_to(state), old))
        ]
        return updates, {"state": tree.unflatten(new), "step": step}

    return optax.GradientTransformation(init, update)


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with its state in f32, whatever the dtype of the params."""
    update = lambda grads, state, params=None: updated(optimizer, grads, state, params)
    return optax.GradientTransformation(lambda params: optimizer.init(wide(params)), update)


def apply_rounded(params: Any, updates: Any, step: Array | int) -> Any:
    """`params + updates`, those in bfloat16 rounded stochastically: small updates still count."""
    leaves, tree = jax.tree.flatten(params)
    new = []
    for i, (p, u) in enumerate(zip(leaves, tree.flatten_up_to(updates))):
        x = p.astype(jnp.float32) + u.astype(jnp.float32)
        exact = p.dtype != jnp.bfloat16
        new.append(x.astype(p.dtype) if exact else stochastic_round(x, step * 104_729 + i))
    return tree.unflatten(new)


def updated(optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any) -> Any:
    """(updates, state) of an optimizer that is given f32."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        return optimizer.update(wide(grads), state, wide(params))


def wide(tree: Any) -> Any:
    """The floats of a tree in f32."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_float(x) else x, tree)


def _narrow(x: Array) -> Array:
    return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
