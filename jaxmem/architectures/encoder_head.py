"""Head: the logits of an encoder's task, from its hidden states."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from .encoder_config import Config
from .feed_forward import activation
from .layers import Embed, LayerNorm, Linear, row


class Head(nn.Module):
    """Maps hidden (B, T, d) to the logits of `config.head` in f32.

    A masked language model's last linear is the embedding `embed`, with a bias of its own; a norm
    comes before it. The head of a text reads its first token.
    """

    config: Config

    @nn.compact
    def __call__(self, x: Array, embed: Embed) -> Array:
        c, masked = self.config, self.config.head == "masked_lm"
        x = x[:, 0] if c.head == "sequence" else x
        if c.head_activation:
            width = c.embed_width if masked and c.embed_width else c.width
            x = activation(Linear(width, bias=True, name="dense")(x), c.head_activation)
        if not masked:
            labels = 2 if c.head == "span" else c.labels
            return Linear(labels, bias=True, name="out")(x, jnp.float32)
        logits = embed.logits(LayerNorm(c.eps, name="norm")(x))
        return logits + row(self.param("bias", nn.initializers.zeros, (c.vocab,)), logits)
