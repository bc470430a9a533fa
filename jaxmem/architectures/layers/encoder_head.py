"""Head: the logits of an encoder's task, from its hidden states."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from ..configs.encoder_config import Config
from .feed_forward import activation
from .linear import Embed, Linear, row
from .norms import LayerNorm


class Head(nn.Module):
    """Maps hidden (B, T, d) to the logits of `config.head` in f32.

    A masked language model's last linear is the embedding `embed`, with a bias of its own; a norm
    comes before it. The head of a text reads its first token, or the mean of its tokens; that of an
    image may read the first token and the mean of the others, side by side.
    """

    config: Config

    @nn.compact
    def __call__(self, x: Array, mask: Array, embed: Embed | None) -> Array:
        c, masked = self.config, self.config.head == "masked_lm"
        if c.head == "sequence":
            x = _of_sequence(x, mask, c)
        if c.head_activation:
            width = c.embed_width if masked and c.embed_width else c.width
            x = activation(Linear(width, c.head_bias, name="dense")(x), c.head_activation)
        if masked or c.head_norm:
            x = LayerNorm(c.eps, c.norm_bias, name="norm")(x)
        if not masked:
            labels = 2 if c.head == "span" else c.labels
            return Linear(labels, bias=True, name="out")(x, jnp.float32)
        logits = embed.logits(x)
        return logits + row(self.param("bias", nn.initializers.zeros, (c.vocab,)), logits)


def _of_sequence(x: Array, mask: Array, c: Config) -> Array:
    """The vector (B, d or 2 d) that the head of a whole input reads."""
    if c.head_both:
        rest = mean_of_tokens(x[:, 1:], mask[:, 1:]).astype(x.dtype)
        return jnp.concatenate([x[:, 0], rest], axis=-1)
    return mean_of_tokens(x, mask).astype(x.dtype) if c.head_mean else x[:, 0]


def mean_of_tokens(hidden: Array, mask: Array) -> Array:
    """The mean (B, d) f32 of the hidden vectors (B, T, d) where `mask` (B, T) is true."""
    real = mask.astype(jnp.float32)[..., None]  # (B, T, 1), 1.0 at real tokens
    return (hidden.astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1.0)
