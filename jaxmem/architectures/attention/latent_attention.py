"""Multi-latent attention: scores = (W_kᵀ q)ᵀ c + q_ropeᵀ k_rope, y = W_v Σ shares * c.

c is the latent of a token. The queries are multiplied by the heads' key matrices, and the mean of
latents by their value matrices, so that no key and no value of a head is ever written: all heads
attend to one cached vector. With the keys of each head a prompt would take fewer flops, and more
memory.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from ...kv_cache.attention_masks import causal, causal_in_texts
from ...kv_cache.attention_scores import attend_by
from ...kv_cache.dense import keep_layout, write
from ...kv_cache.packed_texts import Packed
from ...kv_cache.paged_attention import attend_to_latents
from ...kv_cache.paged_rows import PagedRows
from ...kv_cache.quantized import QuantizedCache
from ..configs.decoder_config import Config
from ..layers.linear import Linear, merge_heads, split_heads
from ..layers.norms import Norm
from .positions import rotate_positions


class LatentAttention(nn.Module):
    """Attention to the latents of all tokens (DeepSeek-V2, 2024), as `config.latent` says."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: Any, layer: dict, position: Array | int):
        c, sizes = self.config, self.config.latent
        if isinstance(cache, QuantizedCache):
            raise NotImplementedError("latents are cached in floats only; use config.cache")

        # 1. Queries of each head, and the latent and the rotary key of each token.
        q = x
        if sizes.q_rank:
            q = Norm(c, name="q_norm")(Linear(sizes.q_rank, c.qkv_bias, name="q_down")(x))
        q = Linear(c.heads * c.head_dim, name="q_up" if sizes.q_rank else "q")(q)
        q_nope, q_rope = jnp.split(split_heads(q, c.heads), [sizes.nope_dim], axis=-1)
        both = Linear(sizes.kv_rank + sizes.rope_dim, c.qkv_bias, name="kv_down")(x)
        latent, k_rope = jnp.split(both, [sizes.kv_rank], axis=-1)
        latent = Norm(c, name="kv_norm")(latent)
        if cache is not None:
            k_rope, latent = keep_layout(k_rope, latent)
        latent, k_rope = latent[:, None], k_rope[:, None]  # (B, 1, T, size)
        q_rope, k_rope = (rotate_positions(y, c, layer, position) for y in (q_rope, k_rope))
        in_pages = isinstance(position, PagedRows)
        if cache is not None and not in_pages:
            cache, k_rope, latent = write(cache, layer["index"], position, k_rope, latent)

        # 2. Queries of the latent, attention, and values of each head.
        init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        k_up = self.param("k_up", init, (c.heads, sizes.nope_dim, sizes.kv_rank))
        v_up = self.param("v_up", init, (c.heads, sizes.kv_rank, sizes.value_dim))
        q_latent, scale = _of_heads(q_nope, k_up), c.query_scale or c.head_dim**-0.5
        index, window = layer["index"], layer["window"]
        if in_pages:
            rows = jnp.concatenate([q_rope, q_latent], axis=-1)
            cache, y = attend_to_latents(
                cache, index, position, rows, k_rope, latent, window, scale
            )
        else:
            rows = jnp.concatenate([q_latent, q_rope], axis=-1)
            start = 0 if cache is None else position
            if isinstance(position, Packed):
                allowed = causal_in_texts(position, window)
            else:
                allowed = causal(x.shape[1], latent.shape[2], start, window)
            y = _attend(rows, latent, k_rope, allowed, scale)
        y = merge_heads(_of_heads(y, v_up))
        return Linear(c.width, c.out_bias, name="out")(y), cache


def _of_heads(x: Array, w: Array) -> Array:
    """Each head of x (B, H, T, k) times its matrix of w (H, k, n): (B, H, T, n)."""
    dims = (((3,), (1,)), ((1,), (0,)))
    y = lax.dot_general(x, w, dims, preferred_element_type=jnp.float32)
    return y.swapaxes(0, 1).astype(x.dtype)


def _attend(rows: Array, latent: Array, k_rope: Array, allowed: Array, scale: float) -> Array:
    """The means of latents (B, H, T, kv_rank) for queries `rows` (B, H, T, kv_rank + rope_dim)."""
    both, rank = ((0, 1), (0, 1)), latent.shape[-1]

    def times(a, b, axis):
        return lax.dot_general(a, b, (((3,), (axis,)), both), preferred_element_type=jnp.float32)

    scores = lambda q: times(q[..., :rank], latent, 3) + times(q[..., rank:], k_rope, 3)
    mix = lambda shares: times(shares.astype(latent.dtype), latent, 2)
    return attend_by(scores, mix, rows, 1, allowed, scale)
