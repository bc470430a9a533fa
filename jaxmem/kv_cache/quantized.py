"""KVCache: x ≈ low + code · step in 8, 4 or 2 bits, keys per channel, values per token.

Some channels of the keys are large at every token, while large values move from token to token (Liu
et al., 2024, KIVI). So a channel of the keys shares a range over a block of `BLOCK_TOKENS` tokens,
and a token's values of one head share a range. The last block is also kept unrounded until it is
full, and is rounded again with each new token.

A byte holds channels that are half a head (or a quarter) apart. Where a head fills the lanes of a
TPU, a byte holds tokens that are half a block (or a quarter) apart instead: then the codes of a
token are as wide as its head, and no lane is left empty.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ..core.arguments import check_fields
from ..core.hadamard import hadamard

BLOCK_TOKENS = 64  # tokens of a block: the keys of one channel share a range there
LANES = 128  # columns of a TPU register


@dataclasses.dataclass(frozen=True)
class KVCache:
    """How `generate` holds keys and values: `bits` (8, 4 or 2) each, and f16 ranges.

    A token takes, for each layer and key/value head of width h, h · bits/4 bytes of codes, and
    h/16 + 4 bytes of ranges (32 bits for 64 keys of a channel, 32 for a value). 64 more tokens are
    kept unrounded. `rotate` turns queries, keys and values by a Hadamard matrix, which spreads
    large channels (Ashkboos et al., 2024, QuaRot); the head width is then one that `hadamard`
    knows: a power of two, 12, 80, 96.

    Error: |x − decoded x| ≤ range/(2^bits − 1)/2 + 2^-10 · (|low| + range), the second for f16.

    Raises:
        ValueError: bits other than 8, 4 and 2.

    Example:
        >>> import jaxmem as jm
        >>> config = jm.models.load("llama-8b").config
        >>> sizes = (1, 8192, jnp.bfloat16)
        >>> cache = jax.eval_shape(lambda: jm.models.KVCache(4).empty(config, *sizes))
        >>> dense = jax.eval_shape(lambda: config.cache(*sizes))
        >>> round(jm.nbytes(cache) / jm.nbytes(dense), 3)
        0.281
    """

    bits: int
    _: dataclasses.KW_ONLY
    rotate: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.bits not in (2, 4, 8):
            raise ValueError(f"KVCache takes 2, 4 or 8 bits, got {self.bits}")

    def empty(self, config: Any, batch: int, length: int, dtype: DTypeLike) -> "QuantizedCache":
        """An empty cache of at least `length` tokens, for a model's configuration.

        Raises:
            ValueError: a head width that has no Hadamard matrix, with `rotate`.
            NotImplementedError: the model has recurrent layers.
        """
        if getattr(config, "recurrence", None):
            raise NotImplementedError(
                f"{self} holds keys and values only, not the states of recurrent layers"
            )
        length += -length % BLOCK_TOKENS
        dense = jax.eval_shape(lambda: config.cache(batch, length, dtype))["k"].shape
        heads, width = dense[:-2], dense[-1]  # (layers, B, K)
        try:
            _ = self.rotate and hadamard(width)
        except ValueError as error:
            raise ValueError(f"{self} cannot turn heads of width {width}: {error}") from None
        per_byte = 8 // self.bits
        by_tokens = width >= LANES or width % per_byte
        shape = (length // per_byte, width) if by_tokens else (length, width // per_byte)
        codes = lambda: jnp.zeros((*heads, *shape), jnp.uint8)
        half = lambda *shape: jnp.zeros((*heads, *shape), jnp.float16)
        recent = lambda: jnp.zeros((*heads, BLOCK_TOKENS, width), dtype)
        per_channel = lambda: half(length // BLOCK_TOKENS, width)
        per_token = lambda: half(length, 1)
        static = dict(bits=self.bits, axis=-2 if by_tokens else -1)
        keys = QuantizedStates(codes(), per_channel(), per_channel(), recent(), **static)
        values = QuantizedStates(codes(), per_token(), per_token(), recent(), **static)
        return QuantizedCache(keys, values, self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedStates:
    """Keys or values of all layers as low + code · step; every array is (layers, B, K, ...).

    The codes of a byte belong to tokens (`axis` −2) or to channels (`axis` −1).
    """

    codes: Array  # (..., tokens, h) uint8, `axis` of it shorter by 8 / bits
    step: Array  # keys: (..., tokens / BLOCK_TOKENS, h) f16; values: (..., tokens, 1)
    low: Array  # the shape of `step`, f16
    recent: Array  # (..., BLOCK_TOKENS, h): the last block, unrounded
    bits: int = dataclasses.field(metadata=dict(static=True))
    axis: int = dataclasses.field(metadata=dict(static=True))

    @property
    def block_rows(self) -> int:
        """Rows of `codes` of a block."""
        return BLOCK_TOKENS * self.bits // 8 if self.axis == -2 else BLOCK_TOKENS

    @property
    def length(self) -> int:
        """Tokens that the cache has room for."""
        return self.codes.shape[3] // self.block_rows * BLOCK_TOKENS

    @property
    def range_tokens(self) -> int:
        """Tokens that share a range: 1 or `BLOCK_TOKENS`."""
        return self.length // self.step.shape[3]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedCache:
    """A cache in few bits; it travels in the carry of the scan over layers, as a dense one does."""

    keys: QuantizedStates
    values: QuantizedStates
    options: KVCache = dataclasses.field(metadata=dict(static=True))


def write_states(states: QuantizedStates, layer: Array, position: Any, x: Array) -> QuantizedStates:
    """`states` with the keys or values x (B, K, T, h) of a layer from `position` on.

    Raises:
        ValueError: a T that is neither 1 nor a multiple of `BLOCK_TOKENS`, or too large.
    """
    tokens, block = x.shape[2], position // BLOCK_TOKENS
    if tokens > states.length or (tokens > 1 and tokens % BLOCK_TOKENS):
        raise ValueError(
            f"{tokens} steps for a quantized cache of {states.length}: expected 1 or a multiple of "
            f"{BLOCK_TOKENS}"
        )
    # A single token joins the last block, which is rounded again.
    if tokens == 1:
        inside = position % BLOCK_TOKENS
        recent = lax.dynamic_index_in_dim(states.recent, layer, 0, keepdims=False)
        recent = lax.dynamic_update_slice(recent, x.astype(recent.dtype), (0, 0, inside, 0))
        written = jnp.arange(BLOCK_TOKENS, dtype=jnp.int32)[None, None, :, None] <= inside
        # tokens not yet written repeat a written one, so that they do not widen the range
        x = jnp.where(written, recent, recent[:, :, :1])
    # Round whole blocks, and put what they give in place.
    put = lambda old, new, i: lax.dynamic_update_slice(old, new[None], (layer, 0, 0, i, 0))
    recent = put(states.recent, x[:, :, -BLOCK_TOKENS:].astype(states.recent.dtype), 0)
    codes, *ranges = _rounded(x.reshape(*x.shape[:2], -1, BLOCK_TOKENS, x.shape[-1]), states)
    codes = codes.reshape(*x.shape[:2], -1, codes.shape[-1])
    codes = put(states.codes, codes, block * states.block_rows)
    ranges = [r.reshape(*x.shape[:2], -1, r.shape[-1]) for r in ranges]
    first_range = block * (BLOCK_TOKENS // states.range_tokens)
    step, low = (put(old, r, first_range) for old, r in zip((states.step, states.low), ranges))
    return dataclasses.replace(states, codes=codes, step=step, low=low, recent=recent)


def _rounded(x: Array, states: QuantizedStates) -> tuple[Array, Array, Array]:
    """(bytes of codes, step, low) of blocks x (..., BLOCK_TOKENS, h), in the form of `states`."""
    codes, step, low = rounded(x, states.bits, -1 if states.range_tokens == 1 else -2)
    return packed_codes(codes, states.bits, states.axis), step, low


def rounded(x: Array, bits: int, axis: int) -> tuple[Array, Array, Array]:
    """(codes u8, one a byte; step, low in f16) of x: what is along `axis` shares a range.

    Example:
        >>> codes, step, low = rounded(jnp.array([[0.0, 1.0, 3.0]]), 2, -1)
        >>> codes.tolist(), step.tolist(), low.tolist()
        ([[0, 1, 3]], [[1.0]], [[0.0]])
    """
    x = x.astype(jnp.float32)
    low = x.min(axis, keepdims=True).astype(jnp.float16)
    span = x.max(axis, keepdims=True) - low.astype(jnp.float32)
    step = (span / (2**bits - 1)).astype(jnp.float16)
    step32 = step.astype(jnp.float32)
    codes = jnp.round((x - low.astype(jnp.float32)) / jnp.where(step32 == 0, 1.0, step32))
    return jnp.clip(codes, 0, 2**bits - 1).astype(jnp.uint8), step, low


def packed_codes(codes: Array, bits: int, axis: int) -> Array:
    """Bytes of codes, one a byte before: a byte holds some that are far apart along `axis`.

    Example:
        >>> packed_codes(jnp.array([1, 2, 3, 4], jnp.uint8), 4, 0).tolist()  # 1 and 3, 2 and 4
        [49, 66]
    """
    parts = jnp.split(codes, 8 // bits, axis)
    return sum(part << i * bits for i, part in enumerate(parts))
