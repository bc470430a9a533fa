"""An encoder as one Flax module: embedding, layers under `nn.scan`, and a head if there is one.

Every token attends to every token. Models differ in the values of `Config`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from ..kv_cache.attention import attend
from ..parallel.constraints import constrain
from .encoder_config import Config as Config
from .encoder_head import Head
from .encoder_weights import weights as weights
from .feed_forward import MLP
from .layers import Embed, LayerNorm, Linear, check_positions, merge_heads, split_heads


def module(config: Config) -> "Encoder":
    """The Flax module of `config`; run it as `module(config).apply({"params": params}, ids, mask)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures import encoder
        >>> config = encoder.Config(vocab=64, width=32, ffn=48, layers=2, heads=4, head="tokens")
        >>> net, ids = encoder.module(config), jnp.zeros((1, 5), jnp.int32)
        >>> jax.eval_shape(net.init_with_output, jax.random.key(0), ids)[0].shape
        (1, 5, 2)
    """
    return Encoder(config)


class Encoder(nn.Module):
    """Maps ids (B, T) and a mask of the real tokens to hidden (B, T, d) (Devlin et al., 2018).

    `types` (B, T) are the segments that tokens are of, the first one if it is None. With a head
    the result is its logits in f32: (B, labels) for "sequence", else (B, T, labels or vocab).
    """

    config: Config

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None, types: Array | None = None) -> Array:
        c = self.config
        check_positions(ids, 0, c.context)
        width = c.embed_width or c.width
        embed = Embed(c.vocab, width, name="embed")
        x = embed(ids) + Embed(c.position_rows, width, name="positions")(_positions(ids, c))
        if c.types:
            types = jnp.zeros((1, 1), jnp.int32) if types is None else types
            x = x + Embed(c.types, width, name="types")(types)
        elif types is not None:
            raise ValueError("types are given to an encoder without segment types; leave them out")
        x = LayerNorm(c.eps, name="embed_norm")(x)
        x = constrain(Linear(c.width, bias=True, name="embed_proj")(x) if c.embed_width else x)
        allowed = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
        )
        x, _ = layers(c, name="layers")(x, allowed[:, None, None, None])
        return Head(c, name="head")(x, embed) if c.head else x


class Block(nn.Module):
    """One layer: attention, then the MLP, with a layer norm after each sum."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, allowed: Array):
        c = self.config
        y = Attention(c, name="attn")(x, allowed)
        x = LayerNorm(c.eps, name="attn_norm")(x + checkpoint_name(y, "attn_out"))
        y = MLP(c, name="mlp")(x)
        y = LayerNorm(c.eps, name="mlp_norm")(x + checkpoint_name(y, "mlp_out"))
        return constrain(y), None


class Attention(nn.Module):
    """Multi-head attention over the real tokens, in both directions."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, allowed: Array) -> Array:
        c = self.config
        projection = lambda name: Linear(c.heads * c.head_dim, c.qkv_bias, name=name)(x)
        q, k, v = (split_heads(projection(name), c.heads) for name in "qkv")
        y = attend(q, k, v, allowed, c.head_dim**-0.5)
        return Linear(c.width, bias=True, name="out")(merge_heads(y))


def _positions(ids: Array, config: Config) -> Array:
    """The row of each token in the table of positions: (1, T), or (B, T) with `pad`."""
    if config.pad is None:
        return jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    real = (ids != config.pad).astype(jnp.int32)
    return jnp.cumsum(real, axis=1, dtype=jnp.int32) * real + config.pad
