"""Pool: one vector for a whole text or image, from an encoder's hidden states."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ...kv_cache.attention_scores import attend
from .encoder_head import mean_of_tokens
from .feed_forward import MLP
from .linear import Linear, merge_heads, split_heads
from .norms import LayerNorm

# By the names in `VECTOR_ACTIVATIONS` of configs/encoder_config.py.
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}


class Pool(nn.Module):
    """Maps hidden (B, T, d) of the tokens `ids` to vectors (B, d), in the way of `config.pool`.

    The vector is that of the first or the last token, of the first token `config.end`, of the
    token with the highest id, what a learned query attends to (Zhai et al., 2023), or that of
    `pooled`. With `config.vector_width` a linear and an activation change it to so many numbers;
    with `config.unit_vector` it has length 1.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array, ids: Array) -> Array:
        c = self.config
        y = self._pooled(x, mask, ids)
        if c.vector_width:
            y = Linear(c.vector_width, c.vector_bias, name="dense")(y, jnp.float32)
            y = _FUNCTIONS[c.vector_activation](y)
        return unit(y) if c.unit_vector else y

    def _pooled(self, x: Array, mask: Array, ids: Array) -> Array:
        """The vectors (B, d) before the linear."""
        c = self.config
        if c.pool == "attention":
            return self._attention(x, mask)
        if c.pool == "last":
            return x[:, -1]
        if c.pool not in ("end", "highest"):
            return pooled(x, mask, c.pool).astype(x.dtype)
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


def pooled(hidden: Array, mask: Array, mode: str) -> Array:
    """One vector (B, d) f32 for each text of hidden (B, T, d); `mask` (B, T) has the real tokens.

    `mode` is "mean", "first", "max" (of each number over the tokens) or "mean_sqrt_len", the sum
    over the square root of the number of tokens (Reimers and Gurevych, 2019).
    """
    hidden, real = hidden.astype(jnp.float32), mask[..., None]
    match mode:
        case "first":
            return hidden[:, 0]
        case "max":
            return jnp.where(real, hidden, -jnp.inf).max(1)
        case "mean_sqrt_len":
            count = jnp.maximum(mask.sum(1, dtype=jnp.float32), 1)[:, None]
            return mean_of_tokens(hidden, mask) * jnp.sqrt(count)
        case _:
            return mean_of_tokens(hidden, mask)


def unit(vectors: Array) -> Array:
    """The vectors (B, d) with length 1; a vector of zeros stays."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
