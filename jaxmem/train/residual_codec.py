"""kept: a value that waits for the backward pass as round(x / s + u − ½) · s, or in host memory."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs.float16_scales import divisor
from ..core.linear_parts import is_float
from ..core.random_bits import hashed_bits

HELD = ("int8", "int4", "host")
Held = Literal["int8", "int4", "host"]

GROUP = {"int8": 128, "int4": 64}  # most numbers that share a scale
LEAST_GROUP = 16  # fewer numbers and their scale would take about as many bytes as they do
_LARGEST = {"int8": 127, "int4": 7}  # codes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptCodes:
    """Codes of signed integers along the last axis, and an f32 scale for each group of them."""

    codes: Array  # (..., k) int8, or (..., k / 2) uint8 that holds two codes of 4 bits
    scale: Array  # (groups, ...) f32: the axis of groups is first, as TPUs pad a short last axis
    dtype: Any = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptBits:
    """Booleans, eight in a byte."""

    bits: Array  # (..., ceil(k / 8)) uint8
    size: int = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptOnHost:
    """An array in host memory."""

    array: Array


def keep(x: Array, held: Held, seed: int, exact: bool) -> Any:
    """What stands for `x` until the backward pass; `restored` makes an array of it.

    "int8" and "int4" round floats stochastically, so that E[restored(keep(x))] = x: a value by
    less than one step, which is 1 / 127 or 1 / 7 of the largest of up to 128 or 64 numbers of its
    row. The random bits are a hash of each number's bits, its position and `seed`: there is no key,
    and equal values are kept equally. `exact` values, integers, and floats of rows shorter than
    16 stay as they are; booleans take a bit. "host" keeps all of `x`.

    Example:
        >>> x = jnp.linspace(-1, 1, 256)
        >>> leaf = keep(x, "int8", 0, exact=False)
        >>> leaf.codes.dtype.name, leaf.scale.shape, bool(abs(restored(leaf) - x).max() < 1 / 127)
        ('int8', (2,), True)
    """
    if held == "host":
        return KeptOnHost(jax.device_put(x, jax.memory.Space.Host)) if x.size > 1 else x
    if x.dtype == bool and x.ndim:
        return KeptBits(jnp.packbits(x, axis=-1), x.shape[-1])
    group = _group(x, held)
    return x if exact or group is None else _encoded(x, held, seed, group)


def restored(kept: Any) -> Array:
    """The array that `keep` was given, rounded to its codes.

    Example:
        >>> restored(keep(jnp.array([True, False]), "int8", 0, exact=False)).tolist()
        [True, False]
    """
    if isinstance(kept, KeptOnHost):
        return jax.device_put(kept.array, jax.memory.Space.Device)
    if isinstance(kept, KeptBits):
        return jnp.unpackbits(kept.bits, axis=-1, count=kept.size).astype(bool)
    if not isinstance(kept, KeptCodes):
        return kept
    codes, scale = kept.codes, jnp.moveaxis(kept.scale, 0, -1)
    if codes.dtype == jnp.uint8:
        low, high = ((codes << 4).view(jnp.int8) >> 4), (codes.view(jnp.int8) >> 4)
        codes = jnp.concatenate([low, high], -1)
    grouped = codes.reshape(*scale.shape, -1).astype(jnp.float32)
    return (grouped * scale[..., None]).reshape(codes.shape).astype(kept.dtype)


def _group(x, held):
    """The numbers of a group: the largest divisor of the last axis that is no more than `GROUP`."""
    if not is_float(x) or x.ndim == 0 or x.shape[-1] < LEAST_GROUP or x.size == 0:
        return None
    width = x.shape[-1]
    if held == "int4" and width % 2:
        return None
    group = max(n for n in range(1, GROUP[held] + 1) if width % n == 0)
    return group if group >= LEAST_GROUP else width


def _encoded(x, held, seed, group):
    most, wide = _LARGEST[held], x.astype(jnp.float32)
    grouped = wide.reshape(*x.shape[:-1], -1, group)
    scale = divisor(jnp.abs(grouped).max(-1) / most)  # (..., groups)
    own_bits = jax.lax.bitcast_convert_type(wide, jnp.uint32)
    noise = (hashed_bits(x.shape, own_bits + jnp.uint32(seed)) >> 8).astype(jnp.float32) * 2.0**-24
    codes = jnp.floor((grouped / scale[..., None]).reshape(x.shape) + noise)
    codes = jnp.clip(codes, -most, most).astype(jnp.int8)
    if held == "int4":  # the second half of a row is in the high bits of the first half's bytes
        low, high = jnp.split(codes.view(jnp.uint8), 2, -1)
        codes = (low & 15) | (high << 4)
    return KeptCodes(codes, jnp.moveaxis(scale, -1, 0), jnp.dtype(x.dtype))
