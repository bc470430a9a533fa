"""Pool: one vector for a whole text or image, from an encoder's hidden states."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ...kv_cache.attention_scores import attend
from .feed_forward import MLP
from .linear import Linear, merge_heads, split_heads
from .norms import LayerNorm


class Pool(nn.Module):
    """Maps hidden (B, T, d) of the tokens `ids` to vectors (B, d), in the way of `config.pool`.

    The vector is that of the first or the last token, of the first token `config.end`, of the
    token with the highest id, or what a learned query attends to (Zhai et al., 2023).
    """

    config: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array, ids: Array) -> Array:
        c = self.config
        if c.pool == "attention":
            return self._attention(x, mask)
        if c.pool in ("first", "last"):
            return x[:, 0 if c.pool == "first" else -1]
        at = jnp.argmax(ids == c.end if c.pool == "end" else ids, axis=1)
        return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]

    def _attention(self, x: Array, mask: Array) -> Array:
        """What a learned query gathers from x (B, T, d), with an MLP after it: (B, d)."""
        c = self.config
        probe = self.param("probe", nn.initializers.normal(c.width**-0.5), (c.width,))
        probe = jnp.broadcast_to(probe, (len(x), 1, c.width)).astype(x.dtype)
        read = {"q": probe, "k": x, "v": x}
        q, k, v = (
            split_heads(Linear(c.width, bias=True, name=name)(y), c.heads)
            for name, y in read.items()
        )
        y = attend(q, k, v, mask[:, None, None, None], c.head_dim**-0.5)
        y = Linear(c.width, bias=True, name="out")(merge_heads(y))
        return (y + MLP(c, name="mlp")(LayerNorm(c.eps, name="norm")(y)))[:, 0]
