"""An encoder-decoder as one Flax module: two stacks of layers under `nn.scan`, and a head.

The encoder reads a source, and each layer of the decoder attends to it through keys and values
that are computed once. Models differ in the values of `Config`. The rooms `layers` and `attention`
have a file for each mechanism.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from ..kv_cache.attention_masks import NO_LIMIT, causal, token_distances
from ..parallel.sharding_constraints import constrain
from .attention.cross_attention import CrossAttention, SelfAttention
from .attention.encoder_positions import distance_buckets
from .attention.seq2seq_positions import position_rows, sinusoids
from .configs.seq2seq_config import Config as Config
from .layers.feed_forward import MLP
from .layers.linear import Embed, Linear, row
from .layers.norms import Norm
from .layers.sound_embedding import SoundEmbedding
from .weights.seq2seq_weights import weights as weights


def module(config: Config) -> "Seq2Seq":
    """The Flax module of `config`.

    Run it as `module(config).apply({"params": params}, source, ids, mask)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures import seq2seq
        >>> config = seq2seq.Config(vocab=64, width=32, ffn=48, layers=2, heads=4)
        >>> net, source, ids = seq2seq.module(config), jnp.ones((1, 5), int), jnp.ones((1, 3), int)
        >>> jax.eval_shape(net.init_with_output, jax.random.key(0), source, ids)[0].shape
        (1, 3, 64)
    """
    return Seq2Seq(config)


class Seq2Seq(nn.Module):
    """Maps a source (B, S) and ids (B, T) of the decoder to logits (B, T, vocab) in f32.

    `mask` (B, S) is true at the real tokens of the source. Without ids the decoder reads the
    source, too. With `config.mels` the source is spectrograms (B, mels, frames). `encode` and
    `decode` are the two halves, for generation (Sutskever et al., 2014; Vaswani et al., 2017).
    """

    config: Config

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab, c.width)
        if c.mels:
            self.sound = SoundEmbedding(c)
        self.encoder, self.decoder = Stack(c.of_encoder()), Stack(c, is_decoder=True)
        if not c.tied:
            self.head = Linear(c.vocab)
        if c.logit_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (c.vocab,))

    def __call__(self, source: Array, ids: Array | None = None, mask: Array | None = None) -> Array:
        if ids is None and self.config.mels:
            raise ValueError("the source is no text: give the ids that the decoder reads, too")
        return self.decode(source if ids is None else ids, self.encode(source, mask), mask)

    def encode(self, source: Array, mask: Array | None = None) -> dict[str, Array]:
        """The keys and values {"k", "v"} of the source, (layers, B, H, S, h) each."""
        x = self.sound(source) if self.config.mels else self.embed(source)
        ids = jnp.zeros(x.shape[:2], jnp.int32) if self.config.mels else source
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"the mask has shape {mask.shape}, expected {ids.shape}")
        x, _ = self.encoder(ids, x, _allowed(mask, x.shape[1]))
        return self.decoder.source_keys(x)

    def decode(
        self,
        ids: Array,
        source: dict[str, Array],
        mask: Array | None = None,
        cache: dict | None = None,
        position: Array | int = 0,
    ) -> Any:
        """The logits (B, T, vocab) f32 of ids after a source; with a cache, (logits, cache).

        Args:
            ids: (B, T) int32.
            source: the keys and values of the source, of `encode`.
            mask: the real tokens of the source, (B, S) bool; None for all.
            cache: of `config.cache`, with the tokens before `ids`; None for none.
            position: of the first id in the text.
        """
        c = self.config
        allowed = _allowed(mask, source["k"].shape[3])
        x, cache = self.decoder(ids, self.embed(ids), allowed, source, cache, position)
        x = x if c.head_scale == 1 else x * jnp.asarray(c.head_scale, x.dtype)
        logits = self.embed.logits(x) if c.tied else self.head(x, jnp.float32)
        logits = logits + row(self.logit_bias, logits) if c.logit_bias else logits
        return logits if cache is None else (logits, cache)


class Stack(nn.Module):
    """The positions and layers of the encoder or the decoder.

    It maps ids (B, T) and their vectors x (B, T, d) to (hidden (B, T, d), cache). `allowed`
    (B or 1, 1, 1, 1, S) is where the source has real tokens; a decoder attends to `source`, the
    keys and values of its layers.
    """

    config: Config
    is_decoder: bool = False

    def setup(self):
        c = self.config
        scan = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=c.layers)
        methods = {"__call__": scan | {"in_axes": (0, nn.broadcast)}}
        methods["source_keys"] = scan | {"in_axes": nn.broadcast}
        self.layers = nn.scan(Block, methods=methods)(c, self.is_decoder)
        if c.positions == "learned":
            self.positions = Embed(c.context + c.position_offset, c.width)
        if c.positions == "relative":
            self.distances = Embed(c.buckets, c.heads)
        if c.embed_norm:
            self.embed_norm = Norm(c, c.norm_bias)
        if c.final_norm:
            self.final_norm = Norm(c, c.norm_bias)

    def source_keys(self, hidden: Array) -> dict[str, Array]:
        """The keys and values {"k", "v"} of the source for all layers, (layers, B, H, S, h)."""
        return self.layers.source_keys(None, hidden)[1]

    def __call__(
        self,
        ids: Array,
        x: Array,
        allowed: Array,
        source: dict | None = None,
        cache: dict | None = None,
        position: Array | int = 0,
    ):
        c, steps = self.config, ids.shape[1]
        x = self._with_positions(ids, x * jnp.asarray(c.embed_scale, x.dtype), position)
        x = self.embed_norm(x) if c.embed_norm else x
        length = steps if cache is None else cache["k"].shape[3]
        view = {"position": position, "bias": self._bias(steps, length, position)}
        view["source"] = allowed
        view["own"] = causal(steps, length, position, NO_LIMIT) if self.is_decoder else allowed
        layer = {"index": np.arange(c.layers, dtype=np.int32), "source": source}
        (x, cache), _ = self.layers((constrain(x), cache), layer, view)
        return (self.final_norm(x) if c.final_norm else x), cache

    def _with_positions(self, ids: Array, x: Array, position: Array | int) -> Array:
        """The vectors x of the tokens, with those of their positions."""
        c = self.config
        if c.positions == "relative":
            return x
        rows = position_rows(ids, c, position)
        if c.positions == "learned":
            return x + self.positions(rows)
        return x + sinusoids(rows, c).astype(x.dtype)

    def _bias(self, queries: int, keys: int, position: Array | int) -> Array | None:
        """What is added to all layers' scores by distance: (1, H, queries, keys).

        In an encoder keys after a query have rows of their own (Raffel et al., 2020).
        """
        c = self.config
        if c.positions != "relative":
            return None
        distances = token_distances(queries, keys, position)
        both_ways = not self.is_decoder
        rows = distance_buckets(distances, c.buckets, c.farthest, both_ways=both_ways)
        return self.distances(rows).transpose(2, 0, 1)[None]


class Block(nn.Module):
    """One layer: attention, in a decoder attention to the source, then the MLP.

    Each part is added to x, with a norm before the part or after the sum.
    """

    config: Config
    is_decoder: bool = False

    def setup(self):
        if self.is_decoder:
            self.cross = CrossAttention(self.config)

    def source_keys(self, carry: None, hidden: Array) -> tuple[None, dict[str, Array]]:
        """The keys and values (B, H, S, h) of the source that this layer attends to."""
        return carry, self.cross.keys(hidden)

    @nn.compact
    def __call__(self, carry: tuple, layer: dict, view: dict):
        c, (x, cache) = self.config, carry
        norm = lambda name, y, here: Norm(c, c.norm_bias, name=name)(y) if here else y
        read = norm("attn_norm", x, c.pre_norms)
        own = (layer["index"], view["position"], view["own"], view["bias"])
        y, cache = SelfAttention(c, name="attn")(read, cache, *own)
        x = norm("attn_norm", x + checkpoint_name(y, "attn_out"), not c.pre_norms)
        if self.is_decoder:
            read = norm("cross_norm", x, c.pre_norms)
            y = self.cross(read, **layer["source"], allowed=view["source"])
            x = norm("cross_norm", x + checkpoint_name(y, "attn_out"), not c.pre_norms)
        y = MLP(c, name="mlp")(norm("mlp_norm", x, c.pre_norms))
        x = norm("mlp_norm", x + checkpoint_name(y, "mlp_out"), not c.pre_norms)
        return (constrain(x), cache), None


def _allowed(mask: Array | None, length: int) -> Array:
    """Where the source has real tokens, (B or 1, 1, 1, 1, S); everywhere without a mask."""
    mask = jnp.ones((1, length), bool) if mask is None else mask.astype(bool)
    return mask[:, None, None, None]
