"""Split: w = high + e/127 · half a unit in the last place of high, bfloat16 and int8.

The weights of FlashOptim (Gonzalez Ortiz et al., 2026): 3 bytes a weight, about 24 bits of f32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import TREE, takes
from ..core.leaf import Encoded, divided_shape, is_dense_float, is_encoded
from ..core.random_bits import hashed_bits

_LEAST_EXPONENT = 16  # a float below 2^-111 keeps no rest: half a step of it may be subnormal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split(Encoded):
    """A weight in bfloat16, which models read, and the rest of its f32 value, in int8.

    `decode` gives the bfloat16 half; `joined_weights` the whole.
    """

    high: Array  # bfloat16
    codes: Array  # int8, in steps of 1/127 of half a unit in the last place of `high`
    dtype: Any = dataclasses.field(default=jnp.dtype("bfloat16"), metadata=dict(static=True))

    shape = property(lambda self: self.high.shape)
    stack = property(lambda self: self.high.shape[:-2])

    def decode(self):
        return self.high.astype(self.dtype)

    def joined(self) -> Array:
        """The weight in f32."""
        half = _half_step(self.high)
        return self.high.astype(jnp.float32) + self.codes.astype(jnp.float32) / 127 * half

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def shard_shape(self, axis, parts):
        divided = (divided_shape(a, axis, parts) for a in (self.high, self.codes))
        return Split(*divided, self.dtype)

    def transpose(self, axes):
        return Split(self.high.transpose(axes), self.codes.transpose(axes), self.dtype)

    def reshape(self, shape):
        return Split(self.high.reshape(shape), self.codes.reshape(shape), self.dtype)

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        w = self.high.astype(x.dtype)
        y = jax.lax.dot_general(x, w, dims, precision, preferred_element_type=jnp.float32)
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))

    def take(self, rows):
        return self.high[rows].astype(self.dtype)


def split_weight(w: Array, seed: Array | int | None = None) -> Split:
    """The halves of a weight; the rest is rounded to nearest, or stochastically by `seed`."""
    w = w.astype(jnp.float32)
    high = w.astype(jnp.bfloat16)
    half = _half_step(high)
    rest = (w - high.astype(jnp.float32)) / jnp.where(half > 0, half, 1) * 127
    if seed is None:
        codes = jnp.round(rest)
    else:
        nearest = jnp.round(rest)  # a whole number of steps stays, but for the rounding of f32
        chance = (hashed_bits(w.shape, seed) >> 8).astype(jnp.float32) * 2.0**-24
        is_code = jnp.abs(rest - nearest) < 2.0**-7
        codes = jnp.where(is_code, nearest, jnp.floor(rest + chance))
    codes = jnp.where(jnp.isfinite(rest), jnp.clip(codes, -127, 127), 0)
    return Split(high, codes.astype(jnp.int8))


def _half_step(high: Array) -> Array:
    """Half a unit in the last place of a bfloat16 number, in f32; 0 for tiny numbers, inf, NaN."""
    bits = jax.lax.bitcast_convert_type(high.astype(jnp.float32), jnp.uint32)
    exponent = bits >> 23 & 255
    kept = (exponent >= _LEAST_EXPONENT) & (exponent < 255)
    power = jnp.where(kept, exponent - 8, 0) << 23
    return jax.lax.bitcast_convert_type(power, jnp.float32)


@takes(params=TREE)
def split_weights(params: Any) -> Any:
    """The params with each array of floats as a `Split`: 3 bytes a weight in place of 4.

    `apply_rounded` updates them with the accuracy of about 24 bits, and models read bfloat16. A
    bfloat16 param starts with a rest of zero. Gradients are those of `jm.decode(params)`, the
    bfloat16 halves.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmem as jm
        >>> params = split_weights({"w": jnp.full((64, 64), 1.001)})
        >>> jm.nbytes(params), jm.decode(params)["w"].dtype
        (12288, dtype(bfloat16))
        >>> abs(float(joined_weights(params)["w"][0, 0]) - 1.001) < 2**-16
        True
        >>> optimizer = jm.optimizers.in_int8(optax.adam(1e-3))
        >>> loss = lambda p: (p["w"].astype(jnp.float32) ** 2).sum()
        >>> slope = jax.grad(loss)(jm.decode(params))
        >>> updates, state = optimizer.update(slope, optimizer.init(params), params)
        >>> params = jm.optimizers.apply_rounded(params, updates, step=1)
        >>> abs(float(joined_weights(params)["w"][0, 0]) - 1.000) < 2**-15
        True
    """
    return jax.tree.map(
        lambda w: split_weight(w) if is_dense_float(w) else w, params, is_leaf=is_encoded
    )


@takes(params=TREE)
def joined_weights(params: Any) -> Any:
    """The params with each `Split` as the f32 array that it holds; for a checkpoint or a test.

    Example:
        >>> import jax.numpy as jnp
        >>> joined_weights(split_weights({"w": jnp.ones((4, 4))}))["w"].dtype
        dtype('float32')
    """
    is_split = lambda x: isinstance(x, Split)
    return jax.tree.map(lambda x: x.joined() if is_split(x) else x, params, is_leaf=is_encoded)
