"""encoded_state: an optimizer whose large arrays of state are held in codes between two steps."""

import abc
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .float32_state import to_float32, update_in_float32
from .stochastic_rounding import SEEDS_PER_STEP

LEAST_SIZE = 4096  # a smaller array (biases, norm scales) stays in f32


class StateCodes(abc.ABC):
    """An array of optimizer state in codes, in groups along its last axis.

    A subclass is a frozen dataclass registered as a pytree. All its arrays have the leading axes of
    the array, and no static field names them: a slice of the codes is the code of the slice.
    """

    @abc.abstractmethod
    def decode(self) -> Array | None:
        """The numbers in f32; None where there are no codes, as for arrays that are not updated."""

    @abc.abstractmethod
    def encode_like(self, x: Array, seed: Array | int) -> Self:
        """`x`, of the same shape, in codes of this form, rounded with random bits by `seed`."""


def encoded_state(
    optimizer: optax.GradientTransformation, encode: Callable[[Array], StateCodes]
) -> optax.GradientTransformation:
    """The optimizer with its large arrays of floats as `encode` makes them; it computes in f32.

    An update keeps the form of each array, so that an array that is a vector as a slice of a stack
    stays in codes.
    """

    def init(params):
        state = optimizer.init(to_float32(params))
        state = jax.tree.map(lambda x: encode(x) if _is_large(x) else x, state)
        return {"state": state, "step": jnp.zeros((), jnp.int32)}

    def update(grads, wrapped, params=None):
        old, tree = jax.tree.flatten(wrapped["state"], is_leaf=_in_codes)
        state = tree.unflatten([x.decode() if _in_codes(x) else x for x in old])
        updates, state = update_in_float32(optimizer, grads, state, params)
        step = wrapped["step"] + 1

        def encode_again(i, x, was):
            """Array i of the new state, in the form of the old one."""
            if x is None:
                return was
            return was.encode_like(x, step * SEEDS_PER_STEP + i) if _in_codes(was) else x

        pairs = zip(tree.flatten_up_to(state), old)
        new = [encode_again(i, x, was) for i, (x, was) in enumerate(pairs)]
        return updates, {"state": tree.unflatten(new), "step": step}

    return optax.GradientTransformation(init, update)


def _is_large(x: Array) -> bool:
    """Whether an array is a matrix of floats, or a stack, of at least `LEAST_SIZE` numbers."""
    return jnp.issubdtype(x.dtype, jnp.floating) and x.size >= LEAST_SIZE and x.ndim > 1


def _in_codes(x: Any) -> bool:
    return isinstance(x, StateCodes)


def in_groups(x: Array, size: int, *, mode: str = "constant") -> Array:
    """`x` (..., n) as (..., groups, size); a short last group is padded, as `jnp.pad` does by mode.

    Example:
        >>> in_groups(jnp.arange(5), 2).tolist()
        [[0, 1], [2, 3], [4, 0]]
    """
    missing = -x.shape[-1] % size
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], mode=mode)
    return x.reshape(*x.shape[:-1], -1, size)


def ungrouped(groups: Array, n: int) -> Array:
    """The array (..., n) of its groups (..., groups, size)."""
    flat = groups.reshape(*groups.shape[:-2], -1)
    return flat if flat.shape[-1] == n else flat[..., :n]


def scale_with_sign(top: Array, negative: Array) -> Array:
    """A scale of at least `top` >= 0 in bfloat16, with a minus sign where `negative`.

    Codes are counted in units of this very scale, so its rounding costs no accuracy. Infinities and
    NaN stay.

    Example:
        >>> scale_with_sign(jnp.array([1.0, 1.001]), jnp.array([False, True])).tolist()
        [1.0, -1.0078125]
    """
    bits = jax.lax.bitcast_convert_type(top, jnp.uint32) + jnp.uint32(0xFFFF)
    up = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    scale = jnp.where(jnp.isfinite(top), up, top.astype(jnp.bfloat16))
    return jnp.where(negative, -scale, scale)


def share_of(x: Array, scale: Array) -> Array:
    """|x| / scale, with 0 for a scale of 0; `x` (..., groups, size), `scale` (..., groups)."""
    scale = jnp.abs(scale.astype(jnp.float32))[..., None]
    return jnp.abs(x) / jnp.where(scale == 0, 1, scale)


def rounded_up(x: Array, below: Array, above: Array, bits: Array) -> Array:
    """Whether x goes to `above` and not to `below`, at random with its mean at `x`."""
    chance = (bits >> 8).astype(jnp.float32) * 2.0**-24
    return chance * (above - below) < x - below
