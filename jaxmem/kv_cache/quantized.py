"""KVCache: x ≈ low + code · step in 8, 4 or 2 bits, keys per channel, values per token.

A key channel has large values that stay large from token to token, a value does not (Liu et al.,
2024, KIVI): so keys share a range over `STEP` tokens of one channel, values over one token's head.
The step under way is kept as it is, and rounded again with each new token. A byte holds channels
that lie half a head (or a quarter) apart, or, of a head that fills a TPU's lanes, tokens half a
step apart: then the codes of a token are as wide as its head, and no lane is left empty.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ..core.hadamard import hadamard
from .attention import attend_by, causal

STEP = 64  # tokens that share the range of a key's channel
LANES = 128  # of a TPU
DECODED = 2**24  # bytes of keys, or of values, that are decoded at a time


@dataclasses.dataclass(frozen=True)
class KVCache:
    """How `generate` holds keys and values: `bits` (8, 4 or 2) each, and f16 ranges.

    A token takes, for each layer and key/value head of width h, h · bits/4 bytes of codes, and
    h/16 + 4 bytes of ranges (32 bits for 64 keys of a channel, 32 for a value); 64 tokens are held
    whole beside them. `rotate` turns queries, keys and values by a Hadamard matrix, which spreads
    large channels (Ashkboos et al., 2024, QuaRot); the head width is then one that `hadamard`
    knows: a power of two, 12, 80, 96.

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
        0.281
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
            ValueError: a head width that has no Hadamard matrix, with `rotate`.
        """
        length += -length % STEP
        dense = jax.eval_shape(lambda: config.cache(batch, length, dtype))["k"].shape
        lead, width = dense[:-2], dense[-1]
        try:
            _ = self.rotate and hadamard(width)
        except ValueError as error:
            raise ValueError(f"{self} cannot turn heads of width {width}: {error}") from None
        apart = 8 // self.bits
        by_tokens = width >= LANES or width % apart
        shape = (length // apart, width) if by_tokens else (length, width // apart)
        codes = lambda: jnp.zeros((*lead, *shape), jnp.uint8)
        half = lambda *shape: jnp.zeros((*lead, *shape), jnp.float16)
        recent = lambda: jnp.zeros((*lead, STEP, width), dtype)
        steps = lambda: half(length // STEP, width)
        static = dict(bits=self.bits, axis=-2 if by_tokens else -1)
        keys = _Rounded(codes(), steps(), steps(), recent(), **static)
        values = _Rounded(codes(), half(length, 1), half(length, 1), recent(), **static)
        return Quantized(keys, values, self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rounded:
    """Keys or values: codes, the step between two and the least number, (layers, B, K, ...)."""

    codes: Array  # (..., tokens, h) uint8, `axis` of it shorter by 8 / bits
    step: Array  # keys: (..., tokens / STEP, h) f16; values: (..., tokens, 1)
    low: Array
    recent: Array  # (..., STEP, h): the step under way
    bits: int = dataclasses.field(metadata=dict(static=True))
    axis: int = dataclasses.field(metadata=dict(static=True))

    rows = property(lambda self: STEP * self.bits // 8 if self.axis == -2 else STEP)  # of a step
    length = property(lambda self: self.codes.shape[3] // self.rows * STEP)
    each = property(lambda self: self.length // self.step.shape[3])  # tokens that share a range


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A cache in few bits; it travels in the carry of the scan over layers, as a dense one does."""

    keys: _Rounded
    values: _Rounded
    how: KVCache = dataclasses.field(metadata=dict(static=True))


def _turned(x, turn):
    if turn is None:
        return x
    dims = (((3,), (0,)), ((), ()))
    y = lax.dot_general(x, turn.astype(x.dtype), dims, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


def _written(held: _Rounded, layer, position, x) -> _Rounded:
    """With the keys or values x (B, K, T, h) of a layer from `position` on."""
    tokens, step = x.shape[2], position // STEP
    if tokens > held.length or (tokens > 1 and tokens % STEP):
        raise ValueError(
            f"{tokens} steps for a quantized cache of {held.length}: expected 1 or a multiple of "
            f"{STEP}"
        )
    if tokens == 1:
        inside = position % STEP
        recent = lax.dynamic_index_in_dim(held.recent, layer, 0, keepdims=False)
        recent = lax.dynamic_update_slice(recent, x.astype(recent.dtype), (0, 0, inside, 0))
        known = jnp.arange(STEP, dtype=jnp.int32)[None, None, :, None] <= inside
        x = jnp.where(known, recent, recent[:, :, :1])  # of what is to come, a token that is there
    put = lambda old, new, i: lax.dynamic_update_slice(old, new[None], (layer, 0, 0, i, 0))
    recent = put(held.recent, x[:, :, -STEP:].astype(held.recent.dtype), 0)
    codes, *ranges = _rounded(x.reshape(*x.shape[:2], -1, STEP, x.shape[-1]), held)
    codes = put(held.codes, codes.reshape(*x.shape[:2], -1, codes.shape[-1]), step * held.rows)
    ranges = [r.reshape(*x.shape[:2], -1, r.shape[-1]) for r in ranges]
    first = step * (STEP // held.each)
    step, low = (put(old, r, first) for old, r in zip((held.step, held.low), ranges))
    return dataclasses.replace(held, codes=codes, step=step, low=low, recent=recent)


def _attended(cache: Quantized, layer, position, q, window, scale):
    """Attention of q over the layer's keys and values, some tokens decoded at a time."""
    batch, kv_heads = cache.keys.codes.shape[1:3]
    length = cache.keys.length
    each = DECODED // (4 * batch * kv_heads * q.shape[-1])  # tokens, of both
    tokens = next(t for t in range(length, 0, -STEP) if length % t == 0 and t <= max(each, STEP))
    first, lone = position // STEP * STEP, q.shape[2] == 1
    recent = lambda held: lax.dynamic_index_in_dim(held.recent, layer, 0, keepdims=False)

    def scores(rows):
        part = lambda start: _scores(rows, cache.keys, layer, start, tokens)

        def put(i, found):
            return lax.dynamic_update_slice_in_dim(found, part(i * tokens), i * tokens, 3)

        if tokens == length:
            found = part(0)
        else:
            found = lax.fori_loop(
                0, length // tokens, put, jnp.zeros((*rows.shape[:3], length), "f4")
            )
        if not lone:
            return found
        return lax.dynamic_update_slice(found, _dot(rows, recent(cache.keys), 3), (0, 0, 0, first))

    def mix(shares):
        shares, out = shares.astype(q.dtype), jnp.zeros((), jnp.float32)
        if lone:
            mine = lax.dynamic_slice_in_dim(shares, first, STEP, 3)
            out = _dot(mine, recent(cache.values), 2)
            shares = lax.dynamic_update_slice(shares, jnp.zeros_like(mine), (0, 0, 0, first))

        def add(start, out):
            mine = lax.dynamic_slice_in_dim(shares, start, tokens, 3)
            return out + _mixed(mine, cache.values, layer, start, tokens)

        if tokens == length:
            return add(0, out)
        out = jnp.broadcast_to(out, (*shares.shape[:3], q.shape[-1]))
        return lax.fori_loop(0, length // tokens, lambda i, out: add(i * tokens, out), out)

    allowed = causal(q.shape[2], length, position, window)
    return attend_by(scores, mix, q, kv_heads, allowed, scale)


def _by_place(fn):
    """`fn` on parts of the decoded numbers by their place in a byte where that is fast: on a CPU.

    Elsewhere on the whole, so that bytes are read once.
    """

    def run(x, held, layer, start, tokens):
        def on(joined):
            parts = lambda held, layer, start: _parts(held, layer, start, tokens, joined)
            return lambda x, held, layer, start: fn(x, parts(held, layer, start), held.axis)

        return lax.platform_dependent(x, held, layer, start, cpu=on(False), default=on(True))

    return run


@_by_place
def _scores(rows, parts, axis):
    """rows (B, K, R, h) . keys: (B, K, R, tokens)."""
    if axis == -1:
        each = zip(jnp.split(rows, len(parts), -1), parts)
        return sum(_dot(x, _flat(k), 3) for x, k in each)
    each = [_dot(rows, _flat(k), 3).reshape(*rows.shape[:3], *k.shape[2:4]) for k in parts]
    return jnp.stack(each, -2).reshape(*rows.shape[:3], -1)


@_by_place
def _mixed(shares, parts, axis):
    """shares (B, K, R, tokens) . values: (B, K, R, h)."""
    if axis == -1:
        return jnp.concatenate([_dot(shares, _flat(v), 2) for v in parts], -1)
    steps, rows = parts[0].shape[2:4]
    each = shares.reshape(*shares.shape[:3], steps, len(parts), rows)
    mine = lambda i: each[..., i, :].reshape(*shares.shape[:3], -1)
    return sum(_dot(mine(i), _flat(v), 2) for i, v in enumerate(parts))


def _flat(part):
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _dot(x, y, axis):
    dims = (((3,), (axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(x, y.astype(x.dtype), dims, preferred_element_type=jnp.float32)


def _parts(held: _Rounded, layer, start, tokens: int, joined: bool):
    """Keys or values [start, start + tokens) of a layer in f32, for each place of a byte apart.

    Each (B, K, steps, tokens of a step, h): with some of the tokens, or some of h. One if `joined`.
    """

    def cut(a, each):  # (B, K, steps, entries of a step, ...): one entry for each so many tokens
        shape = (1, *a.shape[1:3], tokens // each, a.shape[4])
        a = lax.dynamic_slice(a, (layer, 0, 0, start // each, 0), shape)
        return a.reshape(*a.shape[1:3], -1, STEP // each, a.shape[4])

    def apart(a):
        a = cut(a, held.each).astype(jnp.float32)
        return jnp.split(a, len(codes), held.axis) if a.shape[held.axis] > 1 else [a] * len(codes)

    packed, mask = cut(held.codes, STEP // held.rows), (1 << held.bits) - 1
    codes = [packed >> i & mask for i in range(0, 8, held.bits)]
    codes = [jnp.concatenate(codes, held.axis)] if joined else codes
    each = zip(codes, apart(held.step), apart(held.low))
    return [code.astype(jnp.float32) * step + low for code, step, low in each]


def _rounded(x, held: _Rounded):
    """(bytes of codes, step, least) of x (..., STEP, h), with ranges as `held` has them."""
    axis = -1 if held.each == 1 else -2
    x = x.astype(jnp.float32)
    low = x.min(axis, keepdims=True).astype(jnp.float16)
    span = x.max(axis, keepdims=True) - low.astype(jnp.float32)
    step = (span / (2**held.bits - 1)).astype(jnp.float16)
    wide = step.astype(jnp.float32)
    codes = jnp.round((x - low.astype(jnp.float32)) / jnp.where(wide == 0, 1.0, wide))
    codes = jnp.clip(codes, 0, 2**held.bits - 1).astype(jnp.uint8)
    parts = jnp.split(codes, 8 // held.bits, held.axis)
    return sum(part << i * held.bits for i, part in enumerate(parts)), step, low
