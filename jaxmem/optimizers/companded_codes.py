"""Companded: state in a byte a number, s · c / (2 − |c|), or s · c² if no number is negative.

These are the softsign and square root codes of FlashOptim (Gonzalez Ortiz et al., 2026), rounded
stochastically, in groups of 64 with a scale in bfloat16 whose sign says which of the two it is.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from ..core.random_bits import hashed_bits
from .encoded_state import (
    StateCodes,
    in_groups,
    rounded_up,
    scale_with_sign,
    share_of,
    ungrouped,
)

GROUP_SIZE = 64  # numbers that share a scale, along the last axis


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Companded(StateCodes):
    """An array of optimizer state in int8, with the scale of each group.

    The sign of a scale is minus where a number of the group is negative: then the codes are -127 to
    127, and otherwise the bits of 0 to 255.
    """

    codes: Array | None  # int8, in the array's shape
    scale: Array | None  # bfloat16 (..., groups)
    group: int = dataclasses.field(default=GROUP_SIZE, metadata=dict(static=True))

    def decode(self):
        if self.codes is None:
            return None
        code = in_groups(self.codes, self.group).astype(jnp.float32)
        scale = self.scale.astype(jnp.float32)[..., None]
        signed = jnp.sign(code) * _softsign_inverse(jnp.abs(code) / 127)
        positive = _square(jnp.where(code < 0, code + 256, code) / 255)
        values = jnp.where(jnp.signbit(scale), signed, positive) * jnp.abs(scale)
        return ungrouped(values, self.codes.shape[-1])

    def encode_like(self, x, seed):
        return encode_companded(x, seed, group=self.group)


def encode_companded(x: Array, seed: Array | int, *, group: int = GROUP_SIZE) -> Companded:
    """`x` in int8, rounded stochastically: right on average, and zero only where `x` is zero.

    If a second moment were rounded to zero, Adam would divide by its epsilon alone.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.linspace(-1, 1, 8200).reshape(8, 1025)  # any width
        >>> error = encode_companded(x, 1).decode() - x
        >>> float(jnp.abs(error).max()) < 2 / 127, abs(float(error.mean())) < 1e-4
        (True, True)
    """
    groups = in_groups(x.astype(jnp.float32), group)
    negative = jnp.any(groups < 0, -1)
    scale = scale_with_sign(jnp.abs(groups).max(-1), negative)
    share = share_of(groups, scale)
    most = jnp.where(negative, 127.0, 255.0)[..., None]
    negative = negative[..., None]
    companded = jnp.where(negative, 2 * share / (1 + share), jnp.sqrt(share))
    low = jnp.clip(jnp.floor(most * companded), 0, most - 1)
    value = lambda c: jnp.where(negative, _softsign_inverse(c / most), _square(c / most))
    up = rounded_up(share, value(low), value(low + 1), hashed_bits(share.shape, seed))
    code = jnp.where(share > 0, jnp.maximum(low + up.astype(jnp.float32), 1), 0)
    code = jnp.where(negative, code * jnp.sign(groups), code)
    code = jnp.where(code > 127, code - 256, code)  # the bits of 0 to 255 in int8
    return Companded(ungrouped(code.astype(jnp.int8), x.shape[-1]), scale, group)


def _softsign_inverse(c: Array) -> Array:
    """The share of the scale that a companded share c = 2 x / (1 + x) stands for."""
    return c / (2 - c)


def _square(c: Array) -> Array:
    return c * c
