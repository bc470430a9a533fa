"""Attention of an encoder-decoder: among the tokens of one text, and to those of the source."""

from typing import Any

import flax.linen as nn
from jax import Array

from ...kv_cache.attention_scores import ScoreTerms, attend
from ...kv_cache.dense import keep_layout, write
from ..layers.linear import Linear, merge_heads, split_heads


class _Projections(nn.Module):
    """The linears to queries, keys and values, and the one of the heads' outputs."""

    config: Any

    def setup(self):
        c = self.config
        linear = lambda bias: Linear(c.heads * c.head_dim, c.qkv_bias and bias)
        self.q, self.k, self.v = linear(True), linear(c.key_bias), linear(True)
        self.out = Linear(c.width, c.out_bias)


class SelfAttention(_Projections):
    """Multi-head attention where `allowed` (Vaswani et al., 2017).

    It maps x (B, T, d) to (y (B, T, d), cache). With a cache, the keys and values of layer `index`
    from `position` on are written, and all of them are read. `bias` is added to the scores.
    """

    def __call__(
        self,
        x: Array,
        cache: dict | None,
        index: Array,
        position: Array | int,
        allowed: Array,
        bias: Array | None,
    ) -> tuple[Array, dict | None]:
        c = self.config
        q, k, v = self.q(x), self.k(x), self.v(x)
        k, v = (k, v) if cache is None else keep_layout(k, v)
        q, k, v = (split_heads(y, c.heads) for y in (q, k, v))
        if cache is not None:
            cache, k, v = write(cache, index, position, k, v)
        y = attend(q, k, v, allowed, _scale(c), ScoreTerms(bias=bias))
        return self.out(merge_heads(y)), cache


class CrossAttention(_Projections):
    """Attention of x (B, T, d) to the source's keys and values (B, H, S, h), where `allowed`."""

    def keys(self, hidden: Array) -> dict[str, Array]:
        """The keys and values {"k", "v"} of the source's hidden vectors (B, S, d)."""
        heads = self.config.heads
        return {"k": split_heads(self.k(hidden), heads), "v": split_heads(self.v(hidden), heads)}

    def __call__(self, x: Array, k: Array, v: Array, allowed: Array) -> Array:
        q = split_heads(self.q(x), self.config.heads)
        return self.out(merge_heads(attend(q, k, v, allowed, _scale(self.config))))


def _scale(c: Any) -> float:
    """The factor of the scores."""
    return c.head_dim**-0.5 if c.query_scale is None else c.query_scale
