"""updated_int8: an `Int(8)` weight plus an update, rounded stochastically to int8 again.

Training with weights in a byte each, as Q-GaLore (Zhang et al., 2024) and torchao do it.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from ..codecs.float16_scales import divisor, float16_above
from ..codecs.integer import IntArray
from ..core.fold import Fold
from ..core.random_bits import hashed_bits
from .encoded_state import in_groups, ungrouped

LARGEST_CODE = 127
NEW_LARGEST_CODE = 112  # what the largest weight of a group has under a new scale: room to grow
LEAST_LARGEST_CODE = 56  # a group whose largest weight has less gets a new scale


def updated_int8(leaf: IntArray, update: Array, seed: Array | int) -> IntArray:
    """The leaf of `leaf.decode() + update`, right on average; a weight whose update is 0 stays.

    A group keeps its scale, and so the exact values of its weights, as long as its largest weight
    is between 56 and 127 of its steps.

    Raises:
        NotImplementedError: the leaf has other than 8 bits, or zero points.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Int(8).encode(jnp.full((64, 64), 0.5).at[0].set(1.0))
        >>> moved = updated_int8(leaf, jnp.full((64, 64), 1e-4), 1)
        >>> abs(float((moved.decode() - leaf.decode()).mean()) - 1e-4) < 2e-5
        True
    """
    if leaf.bits != 8 or leaf.zero is not None:
        zeros = "" if leaf.zero is None else " with zero points"
        raise NotImplementedError(
            f"a weight of Int({leaf.bits}){zeros} is not trained, expected Int(8) or Split"
        )
    k, group = leaf.fold.k, leaf.group
    matrix = leaf.rows() + _matrix(update.astype(jnp.float32), leaf.fold)  # (*stack, n, k)
    groups = in_groups(matrix, group)
    top, old = jnp.abs(groups).max(-1), leaf.scale.mT.astype(jnp.float32)  # (*stack, n, groups)
    fits = (top <= LARGEST_CODE * old) & (top >= LEAST_LARGEST_CODE * old)
    scale = jnp.where(fits, leaf.scale.mT, float16_above(top, NEW_LARGEST_CODE))
    chance = (hashed_bits(groups.shape, seed) >> 8).astype(jnp.float32) * 2.0**-24
    steps = groups / divisor(scale)[..., None]
    nearest = jnp.round(steps)  # a weight on the grid stays, whatever its quotient is rounded to
    is_code = jnp.abs(steps - nearest) < 2.0**-15
    codes = jnp.where(is_code, nearest, jnp.floor(steps + chance))
    codes = jnp.clip(codes, -LARGEST_CODE, LARGEST_CODE)
    codes = ungrouped(codes.astype(jnp.int8), k)
    return dataclasses.replace(leaf, codes=(codes,), scale=scale.mT)


def _matrix(w: Array, fold: Fold) -> Array:
    """The matrix (*stack, n, k) of a weight that `fold` unfolds it to."""
    rank = len(fold.order)
    lead = w.ndim - rank
    places = [lead + fold.order.index(place - rank) for place in range(rank)]
    moved = w.transpose((*range(lead), *places))
    return moved.reshape(*w.shape[:lead], fold.n, fold.k)
