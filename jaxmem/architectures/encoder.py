"""An encoder as one Flax module: embedding, layers under `nn.scan`, and a head if there is one.

Every token attends to every token, to near ones, or to earlier ones. Models differ in the values
of `Config`. The rooms `layers` and `attention` have a file for each mechanism.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from ..kv_cache.attention_masks import causal, in_window, token_distances
from ..kv_cache.attention_scores import ScoreTerms, attend
from ..kv_cache.packed_texts import Packed, packed
from ..parallel.sharding_constraints import constrain
from .attention.disentangled_attention import disentangled_bias, distance_rows
from .attention.encoder_positions import (
    distance_buckets,
    per_layer,
    table_rows,
)
from .attention.positions import check_positions, rope
from .configs.encoder_config import Config as Config
from .layers.encoder_head import Head
from .layers.feed_forward import MLP
from .layers.linear import Embed, Linear, merge_heads, split_heads
from .layers.norms import LayerNorm
from .layers.patch_embedding import PatchEmbedding
from .layers.pooling import Pool
from .layers.wave_embedding import WaveEmbedding
from .weights.encoder_weights import runs
from .weights.encoder_weights import weights as weights


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

    With `config.patches` the input are pixels (B, channels, height, width), without a mask; with
    `config.waves` samples (B, S), which may be padded by a mask (B, S).
    `types` (B, T) are the segments that tokens are of, the first one if it is None. With a head
    the result is its logits in f32: (B, labels) for "sequence", else (B, T, labels or vocab); for
    "vector" it is (B, d).

    With `segments` and `positions` (B, T) a row is several texts, as in a `Decoder`; without a mask
    the tokens of segment 0 are padding.
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        ids: Array,
        mask: Array | None = None,
        types: Array | None = None,
        *,
        segments: Array | None = None,
        positions: Array | None = None,
    ) -> Array:
        c, texts = self.config, None
        if segments is not None:
            _check_texts(c)
            texts = packed(ids, segments, positions)
            mask = segments > 0 if mask is None else mask
        elif positions is not None:
            raise ValueError(
                "positions are given without segments, which say what texts they are of"
            )
        if c.reads != "text":
            embed, (x, mask) = None, self._signals(ids, mask, types)
        else:
            check_positions(ids, 0, c.context)
            for name, x in (("mask has", mask), ("types have", types)):
                if x is not None and x.shape != ids.shape:
                    raise ValueError(f"the {name} shape {x.shape}, expected {ids.shape}")
            mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
            embed = Embed(c.vocab, c.embed_width or c.width, name="embed")
            x = constrain(self._embedded(embed(ids), ids, mask, types, texts))
        bias = None
        if c.buckets:
            table = Embed(c.buckets, c.heads, name="distances")
            distances = token_distances(ids.shape[1], ids.shape[1])
            bias = table(distance_buckets(distances, c.buckets)).transpose(2, 0, 1)[None]
        if c.span:
            table = Embed(2 * c.span, c.width, name="distances")(jnp.arange(2 * c.span)[None])
            bias = LayerNorm(c.eps, c.norm_bias, name="distances_norm")(table)
        values = per_layer(c)
        allowed = mask[:, None, None, None]
        allowed = allowed if texts is None else allowed & texts.same_text()
        for run in runs(c):
            layers = nn.scan(
                Block,
                variable_axes={} if c.shared else {"params": 0},
                variable_broadcast="params" if c.shared else False,
                split_rngs={"params": not c.shared},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=run.length,
            )
            rows = slice(run.start, run.start + run.length)
            of_run = jax.tree.map(lambda a: a[rows], values)  # noqa: B023
            x, _ = layers(c, run.kind, name=run.name)(x, of_run, allowed, bias, texts)
        x = LayerNorm(c.eps, c.norm_bias, name="final_norm")(x) if c.pre_norms else x
        if c.head == "vector":
            return Pool(c, name="pool")(x, mask, ids)
        return Head(c, name="head")(x, mask, embed) if c.head else x

    def _signals(self, signals: Array, mask: Any, types: Any) -> tuple[Array, Array]:
        """The vectors of the patches of images or of the frames of sounds, and their mask."""
        c = self.config
        if types is not None or (c.patches and mask is not None):
            more = "pixels alone; leave out mask and types" if c.patches else "no types"
            raise ValueError(f"an encoder of {c.reads} takes {more}")
        if c.patches:
            x = PatchEmbedding(c, name="patches")(signals)
            mask = jnp.ones(x.shape[:2], bool)
        else:
            x, mask = WaveEmbedding(c, name="waves")(signals, mask)
        x = LayerNorm(c.eps, c.norm_bias, name="embed_norm")(x) if c.embed_norm else x
        return constrain(x), mask

    def _embedded(
        self, x: Array, ids: Array, mask: Array, types: Array | None, texts: Packed | None
    ) -> Array:
        """The vectors of tokens x with those of their positions and segment types."""
        c = self.config
        if c.mask_scale is not None:
            x = _without_masked(x, ids == c.mask_scale, mask)
        if c.positions == "learned":
            rows = table_rows(ids, c.pad, texts)
            x = x + Embed(c.position_rows, x.shape[-1], name="positions")(rows)
        if c.types:
            types = jnp.zeros((1, 1), jnp.int32) if types is None else types
            x = x + Embed(c.types, x.shape[-1], name="types")(types)
        elif types is not None:
            raise ValueError("types are given to an encoder without segment types; leave them out")
        x = LayerNorm(c.eps, c.norm_bias, name="embed_norm")(x) if c.embed_norm else x
        return Linear(c.width, bias=True, name="embed_proj")(x) if c.embed_width else x


class Block(nn.Module):
    """One layer: attention, then the MLP, with a norm before each part or after each sum.

    A layer of kind "bare" has no norm before attention.
    """

    config: Config
    kind: str = "layer"

    @nn.compact
    def __call__(
        self, x: Array, layer: dict, allowed: Array, bias: Array | None, texts: Packed | None
    ):
        c = self.config
        norm = lambda name, y: LayerNorm(c.eps, c.norm_bias, name=name)(y)
        read = norm("attn_norm", x) if c.pre_norms and self.kind != "bare" else x
        added = lambda name, y: y * self._scale(name, y) if c.layer_scale else y
        y = added("attn_scale", Attention(c, name="attn")(read, layer, allowed, bias, texts))
        x = x + checkpoint_name(y, "attn_out")
        x = x if c.pre_norms else norm("attn_norm", x)
        read = norm("mlp_norm", x) if c.pre_norms else x
        x = x + checkpoint_name(added("mlp_scale", MLP(c, name="mlp")(read)), "mlp_out")
        return constrain(x if c.pre_norms else norm("mlp_norm", x)), None

    def _scale(self, name: str, like: Array) -> Array:
        """The learned factors of the channels, one at first (Touvron et al., 2021)."""
        return self.param(name, nn.initializers.ones, like.shape[-1:]).astype(like.dtype)[
            None, None
        ]


class Attention(nn.Module):
    """Multi-head attention over the real tokens, in both directions.

    `bias` is added to the scores; in disentangled attention it is the table of distances.
    """

    config: Config

    @nn.compact
    def __call__(
        self, x: Array, layer: dict, allowed: Array, bias: Array | None, texts: Packed | None
    ) -> Array:
        c = self.config
        linears = {name: Linear(c.heads * c.head_dim, c.qkv_bias, name=name) for name in "qkv"}
        q, k, v = (split_heads(linear(x), c.heads) for linear in linears.values())
        scale = c.head_dim**-0.5
        if c.span:
            rows = distance_rows(x.shape[1], c.span, c.farthest)
            far_q, far_k = (split_heads(linears[name](bias), c.heads) for name in "qk")
            scale = (3 * c.head_dim) ** -0.5  # a score is a sum of three products
            bias = scale * disentangled_bias(q, k, far_q, far_k, rows)
        if c.positions == "rotary":
            q, k = (rope(y, layer["frequencies"], texts or 0) for y in (q, k))
        if c.local:
            allowed = allowed & in_window(x.shape[1], layer["window"])
        if c.causal:
            allowed = allowed & causal(x.shape[1], x.shape[1], 0, x.shape[1])
        y = attend(q, k, v, allowed, scale, ScoreTerms(bias=bias))
        return Linear(c.width, c.out_bias, name="out")(merge_heads(y))


def _check_texts(config: Config) -> None:
    """Refuses rows of several texts where an encoder would mix them.

    Raises:
        NotImplementedError: the input is no text, one result is of a row, or vectors are scaled by
            a row's share of masked tokens.
    """
    mixing = {
        f"reads {config.reads}": config.reads != "text",
        f"has one {config.head} a row": config.head in ("sequence", "vector"),
        "scales vectors by a row's share of masked tokens": config.mask_scale is not None,
    }
    for words, is_so in mixing.items():
        if is_so:
            raise NotImplementedError(f"segments are given, and this encoder {words}")


def _without_masked(x: Array, masked: Array, mask: Array) -> Array:
    """Vectors of tokens x with zeros at masked ones, and the others scaled up.

    The factor is 0.88 / the share of tokens that are left; ESM was trained with a share of 0.88
    (Rives et al., 2021).
    """
    share = masked.sum(1).astype(jnp.float32) / jnp.maximum(mask.sum(1), 1).astype(jnp.float32)
    scale = jnp.where(masked, 0.0, 0.88 / (1 - share)[:, None])
    return (x.astype(jnp.float32) * scale[..., None]).astype(x.dtype)
