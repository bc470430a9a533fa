"""BERT: an encoder. Every token attends to every token; a layer norm follows each sum."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from ..io.json_fields import JsonFields
from ..kv_cache.attention import attend
from ..parallel.constraints import constrain
from .config_sizes import (
    MOST_LAYERS,
    check_family,
    check_positive,
    check_types,
    refuse_unread_options,
    set_head_dim,
)
from .layers import (
    Embed,
    GeluMLP,
    LayerNorm,
    Linear,
    check_positions,
    merge_heads,
    split_heads,
)
from .weight_map import WeightMap, stacked_layer_norms, stacked_linears


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a BERT.

    Example:
        >>> from jaxmem.architectures.bert import Config
        >>> config = Config(vocab=64, width=32, ffn=48, layers=2, heads=4)
        >>> Config(**config.to_dict()) == config
        True

    Raises:
        ValueError: a size is not positive, or the width does not divide into heads.
    """

    vocab: int
    width: int
    ffn: int
    layers: int
    heads: int
    head_dim: int = 0  # 0 means width / heads; given where heads were removed
    context: int = 512
    types: int = 2
    eps: float = 1e-12
    family: str = "bert"

    def __post_init__(self):
        check_types(self)
        check_positive(self, "vocab", "width", "ffn", "layers", "heads", "context", "types")
        set_head_dim(self)
        check_family(self, "bert")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; `Config(**config.to_dict())` is an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_hf(cls, hf: dict) -> "Config":
        """The config of a Hugging Face checkpoint's `config.json`.

        Raises:
            ValueError: `hf` is not a BERT's, lacks a size, or sets an option not computed here.
        """
        fields = JsonFields(hf)
        fields.text("model_type", among=("bert",))
        fields.expect("hidden_act", "gelu")
        fields.expect("position_embedding_type", "absolute")
        fields.expect("directionality", "bidi")
        fields.expect("is_decoder", False)
        fields.expect("add_cross_attention", False)
        fields.ignore("tie_word_embeddings")  # the head is not computed here
        config = cls(
            vocab=fields.integer("vocab_size"),
            width=fields.integer("hidden_size"),
            ffn=fields.integer("intermediate_size"),
            layers=fields.integer("num_hidden_layers", most=MOST_LAYERS),
            heads=fields.integer("num_attention_heads"),
            context=fields.integer("max_position_embeddings", 512),
            types=fields.integer("type_vocab_size", 2),
            eps=fields.number("layer_norm_eps", 1e-12, above=0, below=1),
        )
        refuse_unread_options(fields)
        return config


def embed(hidden: Array, mask: Array) -> Array:
    """One unit vector for each sentence: its tokens' mean hidden vector (Reimers, 2019).

    `hidden` is (B, T, d), `mask` (B, T) is true at real tokens, and the result is (B, d) in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmem.architectures import bert
        >>> hidden = jnp.asarray([[[3.0, 4.0], [9.0, 9.0]]])
        >>> bert.embed(hidden, jnp.asarray([[True, False]]))
        Array([[0.6, 0.8]], dtype=float32)
    """
    real = mask.astype(jnp.float32)[..., None]  # (B, T, 1), 1.0 at real tokens
    mean = (hidden.astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1.0)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def module(config: Config) -> "Bert":
    """The Flax module of `config`; run it as `module(config).apply({"params": params}, ids, mask)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures import bert
        >>> net = bert.module(bert.Config(vocab=64, width=32, ffn=48, layers=2, heads=4))
        >>> ids, mask = jnp.zeros((1, 5), jnp.int32), jnp.ones((1, 5), bool)
        >>> jax.eval_shape(net.init_with_output, jax.random.key(0), ids, mask)[0].shape
        (1, 5, 32)
    """
    return Bert(config)


class Bert(nn.Module):
    """Maps ids (B, T) and a mask of the real tokens to hidden (B, T, d) (Devlin et al., 2018).

    All tokens are of the first segment type.
    """

    config: Config

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None) -> Array:
        c = self.config
        check_positions(ids, 0, c.context)
        x = Embed(c.vocab, c.width, name="embed")(ids)
        steps = jnp.arange(ids.shape[1], dtype=jnp.int32)
        x = x + Embed(c.context, c.width, name="positions")(steps)[None]
        x = x + Embed(c.types, c.width, name="types")(jnp.zeros((1, 1), jnp.int32))
        x = constrain(LayerNorm(c.eps, name="embed_norm")(x))
        allowed = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.layers,
        )
        x, _ = layers(c, name="layers")(x, allowed[:, None, None, None])
        return x


class Block(nn.Module):
    """One layer: attention, then two linears, with a layer norm after each sum."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, allowed: Array):
        c = self.config
        y = Attention(c, name="attn")(x, allowed)
        x = LayerNorm(c.eps, name="attn_norm")(x + checkpoint_name(y, "attn_out"))
        y = GeluMLP(c.ffn, c.width, exact=True, name="mlp")(x)
        y = LayerNorm(c.eps, name="mlp_norm")(x + checkpoint_name(y, "mlp_out"))
        return constrain(y), None


class Attention(nn.Module):
    """Multi-head attention over the real tokens, in both directions."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, allowed: Array) -> Array:
        c = self.config
        projection = lambda name: Linear(c.heads * c.head_dim, bias=True, name=name)(x)
        q, k, v = (split_heads(projection(name), c.heads) for name in "qkv")
        y = attend(q, k, v, allowed, c.head_dim**-0.5)
        return Linear(c.width, bias=True, name="out")(merge_heads(y))


def weights(config: Config) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Example:
        >>> from jaxmem.architectures import bert
        >>> config = bert.Config(vocab=64, width=32, ffn=48, layers=1, heads=4)
        >>> bert.weights(config)["layers/mlp/up/kernel"].names
        ('encoder.layer.0.intermediate.dense.weight',)
    """
    d, f, heads = config.width, config.ffn, config.heads * config.head_dim
    out = {
        "embed/embedding": WeightMap(("embeddings.word_embeddings.weight",), (config.vocab, d)),
        "positions/embedding": WeightMap(
            ("embeddings.position_embeddings.weight",), (config.context, d)
        ),
        "types/embedding": WeightMap(
            ("embeddings.token_type_embeddings.weight",), (config.types, d)
        ),
        "embed_norm/scale": WeightMap(("embeddings.LayerNorm.weight",), (d,)),
        "embed_norm/bias": WeightMap(("embeddings.LayerNorm.bias",), (d,)),
    }

    prefixes = [f"encoder.layer.{i}." for i in range(config.layers)]
    linears = {
        "attn/q": ("attention.self.query", d, heads),
        "attn/k": ("attention.self.key", d, heads),
        "attn/v": ("attention.self.value", d, heads),
        "attn/out": ("attention.output.dense", heads, d),
        "mlp/up": ("intermediate.dense", d, f),
        "mlp/down": ("output.dense", f, d),
    }
    norms = {"attn_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
    out |= stacked_linears(linears, prefixes, np.transpose)
    return out | stacked_layer_norms(norms, prefixes, d)
