"""A decoder as one Flax module: embedding, layers under `nn.scan`, final norm and head.

Models differ in the values of `Config`. The rooms `layers`, `attention` and `recurrent` have a file
for each mechanism. Values that differ between layers, such as the sliding window, are scanned
inputs; layers with other parameters are another segment.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from ..kv_cache.packed_texts import Packed, packed, token_positions
from ..kv_cache.page_pool import PagePool
from ..kv_cache.paged_rows import advanced, position_in
from ..kv_cache.quantized import BLOCK_TOKENS, QuantizedCache
from ..parallel.sharding_constraints import constrain
from .attention.latent_attention import LatentAttention
from .attention.positions import check_positions
from .attention.positions import per_layer as per_layer
from .attention.self_attention import Attention
from .configs.decoder_config import Config as Config
from .configs.segments import feed_forward_kind, has_attention, has_recurrence
from .configs.segments import layer_kinds as layer_kinds
from .configs.segments import segments as layer_segments
from .configs.segments import segments as segments
from .layers.experts import Experts
from .layers.feed_forward import MLP
from .layers.linear import Embed, Linear, scaled
from .layers.norms import Norm
from .recurrent.gated_delta_rule import GatedDelta
from .recurrent.gated_linear_recurrence import GatedRecurrence
from .recurrent.rwkv_mixing import ChannelMixing, TimeMixing
from .recurrent.selective_scan import Mamba, Mamba2
from .recurrent.short_convolution import ShortConvolution
from .weights.decoder_weights import weights as weights

_RECURRENCES = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "gated": GatedRecurrence,
    "convolution": ShortConvolution,
    "rwkv": TimeMixing,
    "delta": GatedDelta,
}


def module(config: Config) -> "Decoder":
    """The Flax module of `config`; run it as `module(config).apply({"params": params}, ids)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> net, ids = llama.module(config), jnp.zeros((1, 5), jnp.int32)
        >>> jax.eval_shape(net.init_with_output, jax.random.key(0), ids)[0].shape
        (1, 5, 64)
    """
    return Decoder(config)


class Decoder(nn.Module):
    """Maps ids (B, T) to logits (B, T, vocab) in f32 (Vaswani et al., 2017; Touvron et al., 2023).

    With a `cache` from `config.cache`, the first id is at `position` and the result is
    (logits, cache). With a pool of `jm.Pages` it is (logits, pool): each row goes on where it
    ended, with as many ids as it has room for. `rows` (B,) are the rows of the pool that the ids
    belong to; None for all of them, in order.

    With `segments` (B, T) a row is several texts, and no token sees another text: its logits are
    those of its text alone. `positions` (B, T) count a text's tokens from 0; if they are None, a
    text begins where the number in `segments` changes.

    With `last` the logits (B, 1, vocab) are those after `ids[:, last]` alone.
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        ids: Array,
        cache: Any = None,
        position: Array | int | Packed = 0,
        *,
        segments: Array | None = None,
        positions: Array | None = None,
        rows: Array | None = None,
        last: Array | int | None = None,
    ):
        c = self.config
        if segments is not None:
            _check_texts(c, ids, cache)
            position = packed(ids, segments, positions)
        elif positions is not None:
            raise ValueError(
                "positions are given without segments, which say what texts they are of"
            )
        position = position_in(cache, ids, position, rows)
        embed = Embed(c.vocab, c.embed_width or c.width, name="embed")
        x = embed(ids)
        if c.embed_width:
            x = Linear(c.width, name="embed_in")(x)
        x = x * jnp.asarray(c.embed_scale, x.dtype)
        if c.positions == "learned":
            x = x + self._learned_positions(ids, cache, position)
        if c.embed_norm:
            x = Norm(c, c.norm_bias, name="embed_norm")(x)
        x = constrain(x)
        values = per_layer(c, ids.shape[1] if cache is None else _cache_length(cache))
        for segment in layer_segments(c):
            layers = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
                length=segment.length,
                check_constancy_invariants=False,  # else a layer is traced twice
            )
            part = slice(segment.start, segment.start + segment.length)
            inputs = jax.tree.map(lambda a: a[part], values)  # noqa: B023
            block = layers(c, segment.kind, name=segment.name)
            (x, cache), _ = block((x, cache), inputs, position)
        x = x if last is None else lax.dynamic_slice_in_dim(x, last, 1, axis=1)
        x = Norm(c, c.norm_bias, name="final_norm")(x) if c.final_norm else x
        if c.embed_width:
            x = Linear(c.embed_width, name="embed_out")(x)
        head = Linear(c.vocab, c.head_bias, name="head") if not c.tied else None
        logits = scaled_logits(embed.logits(x) if head is None else head(x, jnp.float32), c)
        cache = advanced(cache, position) if isinstance(cache, PagePool) else cache
        return logits if cache is None else (logits, cache)

    def _learned_positions(self, ids: Array, cache: Any, position: Array | int) -> Array:
        """The vectors (1 or B, T, width) of the positions of `ids` in a learned table."""
        c = self.config
        in_blocks = isinstance(cache, QuantizedCache)  # prompts fill whole blocks
        block = BLOCK_TOKENS if in_blocks else 1
        check_positions(ids, position, -(-c.context // block) * block)
        steps = c.position_offset + token_positions(position, ids.shape[1])
        return Embed(c.context + c.position_offset, c.width, name="positions")(steps)


class Block(nn.Module):
    """One layer; `layer` is its slice of `per_layer`: index, rope frequencies and window.

    `kind` is its kind in `layer_kinds`.
    """

    config: Config
    kind: str = "dense"

    @nn.compact
    def __call__(self, carry: tuple, layer: dict, position: Array | int):
        c = self.config
        norm = lambda name, x: Norm(c, c.norm_bias, name=name)(x)
        x, cache = carry
        read = norm("attn_norm", x) if c.pre_norms else x
        mixed = []
        for mixer in mixers(c, self.kind):
            y, cache = mixer(read, cache, layer, position)
            mixed.append(y)
        y = sum(mixed[1:], mixed[0])
        y = norm("attn_post_norm", y) if c.post_norms else y
        y = checkpoint_name(scaled(y, c.residual_scale), "attn_out")
        stream = x if c.parallel else x + y
        stream = norm("attn_norm", stream) if c.sum_norms else stream
        if feed_forward_kind(self.kind) == "alone":
            return (constrain(stream), cache), None
        if not c.shared_norm:
            read = norm("mlp_norm", stream) if c.pre_norms else stream
        part = feed_forward(c, self.kind)
        if feed_forward_kind(self.kind) == "mixing":
            z, cache = part(read, cache, layer, position)
        else:
            z = part(read)
        z = norm("mlp_post_norm", z) if c.post_norms else z
        z = checkpoint_name(scaled(z, c.residual_scale), "mlp_out")
        stream = stream + y if c.parallel else stream
        x = stream + z
        x = norm("mlp_norm", x) if c.sum_norms else x
        return (constrain(x), cache), None


def mixers(config: Config, kind: str) -> list[nn.Module]:
    """What mixes tokens in a layer of this kind; what they compute is added.

    Each maps (x, cache, layer, position) to (y, cache).
    """
    parts: list[nn.Module] = []
    if has_attention(kind):
        parts += [(LatentAttention if config.latent else Attention)(config, name="attn")]
    if has_recurrence(kind):
        parts += [_RECURRENCES[config.recurrence.kind](config, name="mixer")]
    return parts


def feed_forward(config: Config, kind: str) -> nn.Module:
    """The feed-forward part of a layer of this kind: maps x (B, T, width) to the same shape.

    A "mixing" part has a state: it maps (x, cache, layer, position) to (y, cache).
    """
    parts = {"dense": MLP, "experts": Experts, "mixing": ChannelMixing}
    return parts[feed_forward_kind(kind)](config, name="mlp")


def scaled_logits(logits: Array, config: Config) -> Array:
    """The logits (..., vocab) in f32 times `logit_scale`, with `logit_softcap`.

    Example:
        >>> from jaxmem.architectures.decoder import Config, scaled_logits
        >>> sizes = dict(vocab=2, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
        >>> config = Config(**sizes, logit_scale=2.0, logit_softcap=5.0)
        >>> scaled_logits(jnp.array([0.0, 1e3]), config).tolist()
        [0.0, 5.0]
    """
    if config.logit_scale != 1:
        logits = logits * config.logit_scale
    if config.logit_softcap:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


def _check_texts(config: Config, ids: Array, cache: Any) -> None:
    """Refuses rows of several texts where a model would mix them.

    Raises:
        ValueError: there is a cache.
        NotImplementedError: a layer has a state, or frequencies depend on the length of a text.
    """
    if cache is not None:
        raise ValueError("segments are given with a cache, which holds one text a row")
    if config.recurrence is not None:
        raise NotImplementedError(
            f"segments are not kept apart by layers with a state ({config.recurrence.kind}): "
            "give one text a row"
        )
    by_length = config.rope_dynamic or config.rope_long_factors
    if by_length and ids.shape[1] > config.original_context:
        raise NotImplementedError(
            f"rows of {ids.shape[1]} tokens have the rotary frequencies of a text so long; with "
            f"segments this model takes at most {config.original_context}"
        )


def _cache_length(cache: Any) -> int:
    """The tokens that a cache has room for; 0 if it holds states only, which have no length."""
    if isinstance(cache, QuantizedCache):
        return cache.keys.length
    if isinstance(cache, PagePool):
        return cache.limit
    return cache["k"].shape[3] if "k" in cache else 0
