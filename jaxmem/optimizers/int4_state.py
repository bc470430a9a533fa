"""in_int4: optimizer state in half a byte a number (Li et al., 2023), rounded stochastically.

A group of numbers, none of which is zero or negative, has the codes 1/16, 2/16, ... 1 times its
largest: a second moment is never rounded to zero. Any other group has the 15 values of a dynamic
code (Dettmers et al., 2021), with zero for zero only. The sign of a scale says which it is.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..codecs.scaled import select_level
from ..core.arguments import takes
from ..core.random_bits import hashed_bits
from .encoded_state import (
    StateCodes,
    encoded_state,
    in_groups,
    rounded_up,
    scale_with_sign,
    share_of,
    ungrouped,
)

LARGEST_GROUP = 128  # numbers that share a scale, along the last axis
# The magnitudes of a dynamic code with three powers of ten, the last of them 1.
DYNAMIC = (0.0, 0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nibbles(StateCodes):
    """An array of optimizer state in 4 bits, with the scale of each group.

    Byte j of a group holds number j in its low half and number j + group / 2 in its high half.
    """

    codes: Array | None  # uint8 (..., groups · group / 2)
    scale: Array | None  # bfloat16 (..., groups), negative where the code is the dynamic one
    width: int = dataclasses.field(metadata=dict(static=True))  # of the array's last axis
    group: int = dataclasses.field(metadata=dict(static=True))

    def decode(self):
        if self.codes is None:
            return None
        packed = in_groups(self.codes, self.group // 2)
        code = jnp.concatenate([packed & 15, packed >> 4], -1).astype(jnp.int32)
        scale = self.scale.astype(jnp.float32)[..., None]
        magnitude = select_level(code & 7, DYNAMIC)
        dynamic = jnp.where(code > 7, -magnitude, magnitude)
        positive = (code + 1).astype(jnp.float32) / 16
        values = jnp.where(jnp.signbit(scale), dynamic, positive) * jnp.abs(scale)
        return ungrouped(values, self.width)

    def encode_like(self, x, seed):
        return encode_int4(x, seed)


def encode_int4(x: Array, seed: Array | int) -> Nibbles:
    """`x` in 4 bits, rounded stochastically, and zero only where `x` is zero.

    It is right on average, except below the least code of a group (1/16 of its largest number, or
    .0055 of it), to which numbers are raised.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.linspace(-1, 1, 8200).reshape(8, 1025)
        >>> error = encode_int4(x, 1).decode() - x
        >>> float(jnp.abs(error).max()) < 0.35, abs(float(error.mean())) < 5e-3
        (True, True)
    """
    group = group_size(x.shape[-1])
    groups = in_groups(x.astype(jnp.float32), group, mode="edge")
    dynamic = ~jnp.all(groups > 0, -1)
    scale = scale_with_sign(jnp.abs(groups).max(-1), dynamic)
    share, bits = share_of(groups, scale), hashed_bits(groups.shape, seed)
    # The dynamic code: sign, and the index of a magnitude.
    low = sum((share >= step).astype(jnp.int32) for step in DYNAMIC[1:-1])
    below, above = select_level(low, DYNAMIC), select_level(low, DYNAMIC[1:])
    up = rounded_up(share, below, above, bits)
    index = jnp.where(share > 0, jnp.maximum(low + up.astype(jnp.int32), 1), 0)
    signed = jnp.where(groups < 0, index + 8, index)
    # The linear code of positive numbers: 16 · share, less 1.
    floor = jnp.clip(jnp.floor(16 * share), 1, 15)
    up = rounded_up(16 * share, floor, floor + 1, bits)
    positive = (floor + up.astype(jnp.float32)).astype(jnp.int32) - 1
    code = jnp.where(dynamic[..., None], signed, positive).astype(jnp.uint8)
    packed = code[..., : group // 2] | code[..., group // 2 :] << 4
    packed = packed.reshape(*packed.shape[:-2], -1)
    return Nibbles(packed, scale, x.shape[-1], group)


def group_size(n: int) -> int:
    """The largest even size of at most 128 that divides n, or, if all such sizes are below 32, 128.

    A row of fewer numbers is one group, made even.

    Example:
        >>> [group_size(n) for n in (4096, 576, 1025, 97, 8)]
        [128, 96, 128, 98, 8]
    """
    sizes = [size for size in range(LARGEST_GROUP, 31, -2) if n % size == 0]
    return sizes[0] if sizes else min(LARGEST_GROUP, n + n % 2)


@takes()
def in_int4(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with the floats of its state in half a byte each; it computes in f32.

    The state of Adam takes 1.03 bytes a parameter. Vectors and arrays of fewer than 4096 numbers
    stay in f32; so do gradients and params as they reach `optimizer`, and the updates (see
    `apply_rounded`). A slice of the state of a stack of layers is the state of the slice.

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.ones((64, 256), jnp.bfloat16)}
        >>> jm.nbytes(in_int4(optax.adam(1e-3)).init(params)["state"])  # codes, scales and a count
        16900
    """
    return encoded_state(optimizer, lambda x: encode_int4(x, 0))
