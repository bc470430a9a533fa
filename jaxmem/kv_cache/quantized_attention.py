"""Attention over a cache in few bits: some tokens are decoded at a time, never a whole layer."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .attention_masks import causal
from .attention_scores import PLAIN, ScoreTerms, attend_by, per_head_product
from .quantized import BLOCK_TOKENS, QuantizedCache, QuantizedStates

DECODED_BYTES = 2**24  # bytes of keys, or of values, that are decoded at a time


def attend_quantized(
    cache: QuantizedCache,
    layer: Array,
    position: Any,
    q: Array,
    window: Any,
    scale: float,
    terms: ScoreTerms = PLAIN,
) -> Array:
    """Attention of q (B, H, T, h) over a layer's keys and values: (B, H, T, h).

    Args:
        cache: holds the keys and values of the T tokens already.
        layer: which layer, an integer.
        position: position of the first of the T tokens.
        q: queries; turned, if the cache is.
        window: tokens that a query sees, itself included.
        scale: factor of the scores before `terms`.
        terms: what else changes a score.
    """
    batch, kv_heads = cache.keys.codes.shape[1:3]
    length = cache.keys.length

    # How many tokens to decode at a time: whole blocks that divide the cache.
    most = max(DECODED_BYTES // (4 * batch * kv_heads * q.shape[-1]), BLOCK_TOKENS)
    tokens = next(t for t in range(length, 0, -BLOCK_TOKENS) if length % t == 0 and t <= most)

    # A single query reads the last block unrounded.
    last_block, single = position // BLOCK_TOKENS * BLOCK_TOKENS, q.shape[2] == 1
    recent = lambda states: lax.dynamic_index_in_dim(states.recent, layer, 0, keepdims=False)

    def scores(rows):
        """rows (B, K, R, h) times the keys: (B, K, R, length) f32."""
        part = lambda start: _scores(rows, cache.keys, layer, start, tokens)

        def put(i, out):
            return lax.dynamic_update_slice_in_dim(out, part(i * tokens), i * tokens, 3)

        if tokens == length:
            out = part(0)
        else:
            zeros = jnp.zeros((*rows.shape[:3], length), "f4")
            out = lax.fori_loop(0, length // tokens, put, zeros)
        if not single:
            return out
        unrounded = per_head_product(rows, recent(cache.keys), 3)
        return lax.dynamic_update_slice(out, unrounded, (0, 0, 0, last_block))

    def mix(shares):
        """shares (B, K, R, length) times the values: (B, K, R, h) f32."""
        shares, out = shares.astype(q.dtype), jnp.zeros((), jnp.float32)
        if single:
            recent_shares = lax.dynamic_slice_in_dim(shares, last_block, BLOCK_TOKENS, 3)
            out = per_head_product(recent_shares, recent(cache.values), 2)
            nothing = jnp.zeros_like(recent_shares)
            shares = lax.dynamic_update_slice(shares, nothing, (0, 0, 0, last_block))

        def add(start, out):
            part = lax.dynamic_slice_in_dim(shares, start, tokens, 3)
            return out + _mixed(part, cache.values, layer, start, tokens)

        if tokens == length:
            return add(0, out)
        out = jnp.broadcast_to(out, (*shares.shape[:3], q.shape[-1]))
        return lax.fori_loop(0, length // tokens, lambda i, out: add(i * tokens, out), out)

    allowed = causal(q.shape[2], length, position, window)
    return attend_by(scores, mix, q, kv_heads, allowed, scale, terms, position)


def _over_decoded(product: Callable) -> Callable:
    """A function of (x, states, layer, start, tokens) from `product(x, parts, axis)`.

    `parts` are the decoded numbers of tokens [start, start + tokens). On a CPU there is a part for
    each place of a byte, which is fast there. Elsewhere there is one part, so that bytes are read
    once.
    """

    def run(x, states, layer, start, tokens):
        def on(joined):
            parts = lambda states, layer, start: _decoded(states, layer, start, tokens, joined)
            return lambda x, states, layer, start: product(
                x, parts(states, layer, start), states.axis
            )

        return lax.platform_dependent(x, states, layer, start, cpu=on(False), default=on(True))

    return run


@_over_decoded
def _scores(rows, parts, axis):
    """rows (B, K, R, h) times keys: (B, K, R, tokens)."""
    if axis == -1:  # each part has some of the channels
        pairs = zip(jnp.split(rows, len(parts), -1), parts)
        return sum(per_head_product(x, _tokens_first(k), 3) for x, k in pairs)
    products = [
        per_head_product(rows, _tokens_first(k), 3).reshape(*rows.shape[:3], *k.shape[2:4])
        for k in parts
    ]
    return jnp.stack(products, -2).reshape(*rows.shape[:3], -1)


@_over_decoded
def _mixed(shares, parts, axis):
    """shares (B, K, R, tokens) times values: (B, K, R, h)."""
    if axis == -1:  # each part has some of the channels
        return jnp.concatenate([per_head_product(shares, _tokens_first(v), 2) for v in parts], -1)
    blocks, rows = parts[0].shape[2:4]
    by_part = shares.reshape(*shares.shape[:3], blocks, len(parts), rows)
    part_shares = lambda i: by_part[..., i, :].reshape(*shares.shape[:3], -1)
    return sum(per_head_product(part_shares(i), _tokens_first(v), 2) for i, v in enumerate(parts))


def _tokens_first(part):
    """(B, K, blocks, tokens of a block, h) as (B, K, tokens, h)."""
    return part.reshape(*part.shape[:2], -1, part.shape[-1])


def _decoded(states: QuantizedStates, layer, start, tokens: int, joined: bool) -> list[Array]:
    """Keys or values [start, start + tokens) of a layer in f32, a part for each place of a byte.

    Each part is (B, K, blocks, tokens of a block, h), with some of the tokens or some of h. With
    `joined` there is one part, with all of them.
    """

    def read(a, tokens_per_entry):
        """(B, K, blocks, entries of a block, ...) of an array with an entry for so many tokens."""
        shape = (1, *a.shape[1:3], tokens // tokens_per_entry, a.shape[4])
        a = lax.dynamic_slice(a, (layer, 0, 0, start // tokens_per_entry, 0), shape)
        return a.reshape(*a.shape[1:3], -1, BLOCK_TOKENS // tokens_per_entry, a.shape[4])

    def by_part(a):
        """The steps or lows of each part."""
        a = read(a, states.range_tokens).astype(jnp.float32)
        if a.shape[states.axis] == 1:
            return [a] * len(codes)
        return jnp.split(a, len(codes), states.axis)

    packed = read(states.codes, BLOCK_TOKENS // states.block_rows)
    mask = (1 << states.bits) - 1
    codes = [packed >> i & mask for i in range(0, 8, states.bits)]
    codes = [jnp.concatenate(codes, states.axis)] if joined else codes
    parts = zip(codes, by_part(states.step), by_part(states.low))
    return [code.astype(jnp.float32) * step + low for code, step, low in parts]
