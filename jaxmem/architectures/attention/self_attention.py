"""Attention of a decoder's layer: heads, biases, norms of queries and keys, positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ...kv_cache.attention_masks import window_in_chunk
from ...kv_cache.attention_scores import ScoreTerms
from ...kv_cache.cached_attention import attend_through
from ...kv_cache.dense import keep_layout
from ..configs.decoder_config import Config
from ..layers.linear import Linear, merge_heads, scaled, split_heads
from ..layers.norms import Norm, unit_mean_square
from .positions import alibi_slopes, grow_queries, rotate_positions


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with the options of `config`."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c = self.config
        heads = {"q": c.heads, "k": c.kv_heads, "v": c.kv_heads}
        q, k, v = (Linear(n * c.head_dim, c.qkv_bias, name=name)(x) for name, n in heads.items())
        if c.clip_qkv:
            q, k, v = (jnp.clip(y, -c.clip_qkv, c.clip_qkv) for y in (q, k, v))
        q_norm, k_norm = (
            Norm(c, c.qk_norm_bias, n if c.qk_norm_over == "heads" else 0, name=f"{name}_norm")
            if c.qk_norm and c.qk_norm_over != "rotated"
            else None
            for name, n in (("q", c.heads), ("k", c.kv_heads))
        )
        if c.qk_norm and c.qk_norm_over == "all":
            q, k = q_norm(q), k_norm(k)
        # With as many heads of keys as of queries, XLA for TPU gives rotated keys the layout of its
        # product for one query, and copies the whole cache to it: then keys are kept once rotated
        # (16 heads, batch 8, length 4096: 537 MB of temporaries against none; v5e, jax 0.10.2).
        kept_rotated = c.positions == "rotary" and c.heads == c.kv_heads
        if cache is not None and not kept_rotated:
            k, v = keep_layout(k, v)
        q, k, v = (split_heads(y, n) for y, n in zip((q, k, v), heads.values()))
        if c.qk_norm and c.qk_norm_over in ("head", "heads"):
            q, k = q_norm(q), k_norm(k)
        if c.positions == "rotary":
            q, k = (rotate_positions(y, c, layer, position) for y in (q, k))
        if c.qk_norm and c.qk_norm_over == "rotated":
            q, k = (jnp.where(layer["rotated"], unit_mean_square(y, c.eps), y) for y in (q, k))
        if cache is not None and kept_rotated:
            k, v = keep_layout(merge_heads(k), merge_heads(v))
            k, v = (split_heads(y, c.kv_heads) for y in (k, v))
        if c.query_growth:
            q = grow_queries(q, c, layer, position)
        scale = c.query_scale or c.head_dim**-0.5
        slopes = alibi_slopes(c.heads, c.alibi_max) if c.positions == "alibi" else None
        slopes = slopes * scale if c.alibi_scaled else slopes
        sinks = self.param("sinks", nn.initializers.zeros, (c.heads,)) if c.sinks else None
        terms = ScoreTerms(softcap=c.attention_softcap, slopes=slopes, sinks=sinks)
        index, window = layer["index"], layer["window"]
        window = window_in_chunk(window, position, q.shape[2]) if c.chunked else window
        cache, y = attend_through(cache, index, position, q, k, v, window, scale, terms)
        y = merge_heads(y)
        if c.output_gate:
            gate = Linear(c.heads * c.head_dim, c.qkv_bias, name="gate")(x)
            y = y * jax.nn.sigmoid(gate)
        return scaled(Linear(c.width, c.out_bias, name="out")(y), c.attention_scale), cache
