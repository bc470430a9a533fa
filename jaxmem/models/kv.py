"""KVCache: x ≈ low + code · step in 8, 4 or 2 bits, keys per channel, values per token.

A key channel has large values that stay large from token to token, a value does not (Liu et al.,
2024, KIVI): so keys share a range over `STEP` tokens of one channel, values over one token's head.
The keys of the step under way are kept as they are, and rounded again with each new token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxmem.models.hadamards import hadamard
from jaxmem.models.layers import attend, causal, write

STEP = 64  # tokens that share the range of a key's channel


@dataclasses.dataclass(frozen=True)
class KVCache:
    """How `generate` holds keys and values: `bits` (8, 4 or 2) each, and f16 ranges.

    A token takes, for each layer and key/value head of width h, h · bits/4 bytes of codes, and
    h/16 + 4 bytes of ranges (32 bits for 64 keys of a channel, 32 for a value). `rotate` turns
    queries, keys and values by a Hadamard matrix, which spreads large channels (Ashkboos et al.,
    2024, QuaRot); the head width is then one that `hadamard` knows: a power of two, 12, 80, 96.

    Error: |x − held| ≤ range/(2^bits − 1)/2 + 2^-10 · (|low| + range), the second for f16.

    Raises:
        ValueError: bits other than 8, 4 and 2.

    Example:
        >>> import jaxmem as jm
        >>> config = jm.models.load("llama-8b").config
        >>> how = (1, 8192, jnp.bfloat16)
        >>> cache = jax.eval_shape(lambda: jm.models.KVCache(4).empty(config, *how))
        >>> dense = jax.eval_shape(lambda: config.cache(*how))
        >>> round(jm.nbytes(cache) / jm.nbytes(dense), 3)
        0.277
    """

    bits: int
    _: dataclasses.KW_ONLY
    rotate: bool = False

    def __post_init__(self):
        if self.bits not in (2, 4, 8):
            raise ValueError(f"KVCache takes 2, 4 or 8 bits, got {self.bits}")

    def empty(self, config: Any, batch: int, length: int, dtype: DTypeLike) -> "Quantized":
        """An empty cache of at least `length` tokens, for a model's configuration.

        Raises:
            ValueError: a head width that does not pack, or has no Hadamard matrix with `rotate`.
        """
        length += -length % STEP
        dense = jax.eval_shape(lambda: config.cache(batch, length, dtype))["k"].shape
        lead, width = dense[:-2], dense[-1]
        if width % (8 // self.bits):
            raise ValueError(f"{self} cannot pack heads of width {width}")
        try:
            _ = self.rotate and hadamard(width)
        except ValueError as error:
            raise ValueError(f"{self} cannot turn heads of width {width}: {error}") from None
        codes = lambda: jnp.zeros((*lead, length, width * self.bits // 8), jnp.uint8)
        half = lambda *shape: jnp.zeros((*lead, *shape), jnp.float16)
        keys = _Rounded(codes(), half(length // STEP, width), half(length // STEP, width))
        values = _Rounded(codes(), half(length, 1), half(length, 1))
        return Quantized(keys, values, jnp.zeros((*lead, STEP, width), dtype), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rounded:
    """Codes, the step between two and the least number: (layers, B, K, ...)."""

    codes: Array  # (..., tokens, h · bits / 8) uint8
    step: Array  # keys: (..., tokens / STEP, h) f16; values: (..., tokens, 1)
    low: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A cache in few bits; it travels in the carry of the scan over layers, as a dense one does."""

    keys: _Rounded
    values: _Rounded
    recent: Array  # (layers, B, K, STEP, h): the keys of the step under way
    how: KVCache = dataclasses.field(metadata=dict(static=True))


def attend_through(
    cache: Any, layer: Array, position: Array | int, q: Array, k: Array, v: Array, window, scale
):
    """(cache with k and v at `position`, attention of q over it); a dense or a `Quantized` cache.

    Shapes: q (B, H, T, h); k, v (B, K, T, h); the result (B, H, T, h). With None for a cache,
    attention among the given.

    Raises:
        ValueError: a `Quantized` cache and a T that is neither 1 nor a multiple of `STEP`, or more
            than the cache is long.
    """
    if not isinstance(cache, Quantized):
        if cache is not None:
            cache, k, v = write(cache, layer, position, k, v)
        start = 0 if cache is None else position
        return cache, attend(q, k, v, causal(q.shape[2], k.shape[2], start, window), scale)
    turn = hadamard(k.shape[-1]) if cache.how.rotate else None
    back = None if turn is None else turn.T
    q, k, v = (_turned(x, turn) for x in (q, k, v))
    cache = _written(cache, layer, position, k, v)
    keys, values = _layer(cache, layer, position, k)
    allowed = causal(q.shape[2], keys.shape[2], position, window)
    return cache, _turned(attend(q, keys, values, allowed, scale), back)


def _turned(x, turn):
    if turn is None:
        return x
    dims = (((3,), (0,)), ((), ()))
    y = lax.dot_general(x, turn.astype(x.dtype), dims, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def _written(cache: Quantized, layer, position, k, v) -> Quantized:
    bits, length = cache.how.bits, cache.values.step.shape[3]
    tokens = k.shape[2]
    if tokens > length or (tokens > 1 and tokens % STEP):
        raise ValueError(
            f"{tokens} steps for a quantized cache of {length}: expected 1 or a multiple of {STEP}"
        )
    values = _put(cache.values, _rounded(v, -1, bits), layer, (position, position))
    if tokens == 1:
        inside = position % STEP
        recent = lax.dynamic_index_in_dim(cache.recent, layer, 0, keepdims=False)
        recent = lax.dynamic_update_slice(recent, k.astype(recent.dtype), (0, 0, inside, 0))
        known = jnp.arange(STEP, dtype=jnp.int32)[None, None, :, None] <= inside
        spare = jnp.broadcast_to(recent[:, :, :1], recent.shape)  # a token that is there
        k = jnp.where(known, recent, spare)
    else:
        recent = k[:, :, -STEP:]
    groups = k.reshape(*k.shape[:2], -1, STEP, k.shape[-1])
    new = _rounded(groups, -2, bits)
    new = _Rounded(new.codes.reshape(*k.shape[:3], -1), new.step[..., 0, :], new.low[..., 0, :])
    first = position // STEP
    keys = _put(cache.keys, new, layer, (first * STEP, first))
    recent = lax.dynamic_update_slice(
        cache.recent, recent[None].astype(cache.recent.dtype), (layer, 0, 0, 0, 0)
    )
    return dataclasses.replace(cache, keys=keys, values=values, recent=recent)


def _layer(cache: Quantized, layer, position, like):
    """The layer's keys and values, (B, K, tokens, h) in the dtype of `like`."""
    get = lambda a: lax.dynamic_index_in_dim(a, layer, 0, keepdims=False)
    keys, values, recent = jax.tree.map(get, (cache.keys, cache.values, cache.recent))
    bits, dtype = cache.how.bits, like.dtype
    held = _codes(values.codes, bits) * values.step.astype(jnp.float32)
    values = (held + values.low.astype(jnp.float32)).astype(dtype)
    wide = lambda a: a.astype(jnp.float32)[..., None, :]
    codes = _codes(keys.codes, bits)
    codes = codes.reshape(*codes.shape[:2], -1, STEP, codes.shape[-1])
    keys = (codes * wide(keys.step) + wide(keys.low)).astype(dtype)
    keys = keys.reshape(values.shape)
    if like.shape[2] == 1:
        at = (0, 0, position // STEP * STEP, 0)
        keys = lax.dynamic_update_slice(keys, recent.astype(dtype), at)
    return keys, values


def _rounded(x, axis, bits) -> _Rounded:
    """x in codes packed along its last axis, with one range over `axis`."""
    x = x.astype(jnp.float32)
    low = x.min(axis, keepdims=True).astype(jnp.float16)
    span = x.max(axis, keepdims=True) - low.astype(jnp.float32)
    step = (span / (2**bits - 1)).astype(jnp.float16)
    each = step.astype(jnp.float32)
    codes = jnp.round((x - low.astype(jnp.float32)) / jnp.where(each == 0, 1.0, each))
    codes = jnp.clip(codes, 0, 2**bits - 1).astype(jnp.uint8)
    parts = jnp.split(codes, 8 // bits, -1)  # halves or quarters of the head share a byte
    packed = sum((part << i * bits for i, part in enumerate(parts[1:], 1)), parts[0])
    return _Rounded(packed, step, low)


def _codes(packed, bits):
    """The codes in f32."""
    mask = (1 << bits) - 1
    parts = [packed >> i * bits & mask for i in range(8 // bits)]
    return jnp.concatenate(parts, -1).astype(jnp.float32)


def _put(held: _Rounded, new: _Rounded, layer, at) -> _Rounded:
    token, group = at
    put = lambda old, x, i: lax.dynamic_update_slice(old, x[None], (layer, 0, 0, i, 0))
    return _Rounded(
        put(held.codes, new.codes, token),
        put(held.step, new.step, group),
        put(held.low, new.low, group),
    )
