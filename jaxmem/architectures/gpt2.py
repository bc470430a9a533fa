"""GPT-2: learned positions, a layer norm before each part, one product for q, k and v."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from ..io.json_fields import JsonFields
from ..kv_cache.attention_masks import NO_LIMIT
from ..kv_cache.cached_attention import attend_through
from ..kv_cache.dense import empty, keep_layout
from ..kv_cache.packed_texts import Packed, packed, token_positions
from ..kv_cache.page_pool import PagePool
from ..kv_cache.paged_rows import advanced, position_in
from ..kv_cache.quantized import BLOCK_TOKENS, QuantizedCache
from ..parallel.sharding_constraints import constrain
from .attention.positions import check_positions
from .configs.config_sizes import check_family, check_positive, check_types, set_head_dim
from .families.ignored_hf_options import MOST_LAYERS, refuse_unread_options
from .layers.linear import Embed, Linear, merge_heads, split_heads
from .layers.norms import LayerNorm
from .weights.weight_map import WeightMap, stacked_layer_norms, stacked_linears


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a GPT-2.

    Example:
        >>> from jaxmem.architectures.gpt2 import Config
        >>> config = Config(vocab=64, width=32, layers=2, heads=4)
        >>> Config(**config.to_dict()) == config
        True

    Raises:
        ValueError: a size is not positive, or the width does not divide into heads.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    ffn: int = 0  # 0 means 4 * width
    head_dim: int = 0  # 0 means width / heads; given where heads were removed
    context: int = 1024
    eps: float = 1e-5
    scale_attention: bool = True  # whether scores are divided by the root of head_dim
    scale_by_layer: bool = False  # whether scores of layer i are divided by i + 1
    tied: bool = True  # whether the embedding is the head, too
    bos: int | None = None
    eos: tuple[int, ...] = ()
    family: str = "gpt2"

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "eos", tuple(self.eos))
        object.__setattr__(self, "ffn", self.ffn or 4 * self.width)
        check_positive(self, "vocab", "width", "layers", "heads", "ffn", "context")
        set_head_dim(self)
        check_family(self, "gpt2")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; `Config(**config.to_dict())` is an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_hf(cls, hf: dict) -> "Config":
        """The config of a Hugging Face checkpoint's `config.json`.

        Raises:
            ValueError: `hf` is not a GPT-2's, lacks a size, or sets an option not computed here.
        """
        fields = JsonFields(hf)
        fields.text("model_type", among=("gpt2",))
        fields.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
        fields.expect("add_cross_attention", False)
        fields.expect("is_causal", True)
        fields.ignore("reorder_and_upcast_attn")  # the scores are in float32 here in any case
        config = cls(
            vocab=fields.integer("vocab_size"),
            width=fields.integer("n_embd"),
            layers=fields.integer("n_layer", most=MOST_LAYERS),
            heads=fields.integer("n_head"),
            ffn=fields.integer("n_inner", 0),
            context=fields.integer("n_positions", 1024),
            eps=fields.number("layer_norm_epsilon", 1e-5, above=0, below=1),
            scale_attention=fields.boolean("scale_attn_weights", True),
            scale_by_layer=fields.boolean("scale_attn_by_inverse_layer_idx", False),
            tied=fields.boolean("tie_word_embeddings", True),
            bos=fields.integer("bos_token_id", None, least=0),
            eos=fields.integers("eos_token_id"),
        )
        refuse_unread_options(fields)
        return config

    def cache(self, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> dict:
        """An empty KV cache: {"k", "v"} of (layers, batch, heads, length, head_dim)."""
        return empty(self.layers, batch, self.heads, length, self.head_dim, dtype)


def module(config: Config) -> "GPT2":
    """The Flax module of `config`; run it as `module(config).apply({"params": params}, ids)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures import gpt2
        >>> net = gpt2.module(gpt2.Config(vocab=64, width=32, layers=2, heads=4))
        >>> ids = jnp.zeros((1, 5), jnp.int32)
        >>> jax.eval_shape(net.init_with_output, jax.random.key(0), ids)[0].shape
        (1, 5, 64)
    """
    return GPT2(config)


class GPT2(nn.Module):
    """Maps ids (B, T) to logits (B, T, vocab) in f32 (Radford et al., 2019).

    With a `cache` from `config.cache`, the first id is at `position` and the result is
    (logits, cache). `segments`, `positions`, pools, their `rows` and `last` are those of a
    `Decoder`.
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        ids: Array,
        cache: dict | None = None,
        position: Array | int | Packed = 0,
        *,
        segments: Array | None = None,
        positions: Array | None = None,
        rows: Array | None = None,
        last: Array | int | None = None,
    ):
        c = self.config
        if segments is not None:
            if cache is not None:
                raise ValueError("segments are given with a cache, which holds one text a row")
            position = packed(ids, segments, positions)
        elif positions is not None:
            raise ValueError(
                "positions are given without segments, which say what texts they are of"
            )
        position = position_in(cache, ids, position, rows)
        in_blocks = isinstance(cache, QuantizedCache)  # prompts fill whole blocks
        block = BLOCK_TOKENS if in_blocks else 1
        check_positions(ids, position, -(-c.context // block) * block)
        embed = Embed(c.vocab, c.width, name="embed")
        steps = token_positions(position, ids.shape[1])
        x = constrain(embed(ids) + Embed(c.context, c.width, name="positions")(steps))
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.layers,
            check_constancy_invariants=False,  # else a layer is traced twice
        )
        index = jnp.arange(c.layers, dtype=jnp.int32)
        (x, cache), _ = layers(c, name="layers")((x, cache), index, position)
        x = x if last is None else lax.dynamic_slice_in_dim(x, last, 1, axis=1)
        x = LayerNorm(c.eps, name="final_norm")(x)
        logits = embed.logits(x) if c.tied else Linear(c.vocab, name="head")(x, jnp.float32)
        cache = advanced(cache, position) if isinstance(cache, PagePool) else cache
        return logits if cache is None else (logits, cache)


class Block(nn.Module):
    """One layer; `layer` is its index in the stacked cache."""

    config: Config

    @nn.compact
    def __call__(self, carry: tuple, layer: Array, position: Array | int):
        c = self.config
        x, cache = carry
        y, cache = Attention(c, name="attn")(
            LayerNorm(c.eps, name="attn_norm")(x), cache, layer, position
        )
        x = x + checkpoint_name(y, "attn_out")
        y = GeluMLP(c.ffn, c.width, name="mlp")(LayerNorm(c.eps, name="mlp_norm")(x))
        return (constrain(x + checkpoint_name(y, "mlp_out")), cache), None


class Attention(nn.Module):
    """Multi-head causal attention; one product computes q, k and v."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: Array, position: Array | int):
        c = self.config
        q, k, v = jnp.split(Linear(3 * c.heads * c.head_dim, bias=True, name="qkv")(x), 3, axis=-1)
        if cache is not None:
            k, v = keep_layout(k, v)
        q, k, v = (split_heads(y, c.heads) for y in (q, k, v))
        scale: Array | float = c.head_dim**-0.5 if c.scale_attention else 1.0
        if c.scale_by_layer:
            scale = scale / (layer + 1).astype(jnp.float32)
        cache, y = attend_through(cache, layer, position, q, k, v, NO_LIMIT, scale)
        return Linear(c.width, bias=True, name="out")(merge_heads(y)), cache


class GeluMLP(nn.Module):
    """down(gelu(up(x))) with `ffn` neurons; GELU is approximated by tanh."""

    ffn: int
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Linear(self.ffn, bias=True, name="up")(x)
        y = jax.nn.gelu(y, approximate=True)
        return Linear(self.width, bias=True, name="down")(y)


def weights(config: Config) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Kernels in GPT-2 checkpoints are (in, out), like Flax kernels.

    Example:
        >>> from jaxmem.architectures import gpt2
        >>> config = gpt2.Config(vocab=64, width=32, layers=2, heads=4)
        >>> gpt2.weights(config)["layers/attn/qkv/kernel"].names
        ('h.0.attn.c_attn.weight', 'h.1.attn.c_attn.weight')
    """
    d, f, heads = config.width, config.ffn, config.heads * config.head_dim
    out = {
        "embed/embedding": WeightMap(("wte.weight",), (config.vocab, d)),
        "positions/embedding": WeightMap(("wpe.weight",), (config.context, d)),
        "final_norm/scale": WeightMap(("ln_f.weight",), (d,)),
        "final_norm/bias": WeightMap(("ln_f.bias",), (d,)),
    }
    if not config.tied:
        out["head/kernel"] = WeightMap(("lm_head.weight",), (d, config.vocab), np.transpose)
    prefixes = [f"h.{i}." for i in range(config.layers)]
    linears = {
        "attn/qkv": ("attn.c_attn", d, 3 * heads),
        "attn/out": ("attn.c_proj", heads, d),
        "mlp/up": ("mlp.c_fc", d, f),
        "mlp/down": ("mlp.c_proj", f, d),
    }
    out |= stacked_layer_norms({"attn_norm": "ln_1", "mlp_norm": "ln_2"}, prefixes, d)
    return out | stacked_linears(linears, prefixes)
