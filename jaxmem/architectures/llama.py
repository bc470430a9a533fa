"""The Llama family as one Flax module: Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3, Gemma 3.

The models differ only in the values of `Config`. Their layers are stacked under `nn.scan`; a value
that differs between layers (such as the sliding window) is a scanned input.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from ..kv_cache.cached_attention import attend_through
from ..kv_cache.dense import empty, keep_layout
from ..parallel.constraints import constrain
from .config_sizes import check_family, check_positive, check_types
from .layers import Embed, Linear, merge_heads, rms_norm, rope, split_heads
from .llama_checkpoints import from_hf
from .llama_checkpoints import weights as weights


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and options of one model of the family.

    `rope_scaling` is empty, `(factor,)` for linear scaling, or Llama 3.1's `(factor, low, high,
    original length)`. `rope_factors` is empty, or has a divisor for each rotary frequency. `local`
    has a bool for each layer: where it is true, a token attends only to the last `window`
    positions, and the rotary base is `local_theta`. If `local` is empty, no layer is local.

    Example:
        >>> from jaxmem.architectures.llama import Config
        >>> config = Config(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> Config(**config.to_dict()) == config
        True

    Raises:
        ValueError: a size is not positive, or sizes do not fit each other.
    """

    vocab: int
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    context: int = 2048
    eps: float = 1e-5
    theta: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()
    rope_factors: tuple[float, ...] = ()
    local: tuple[bool, ...] = ()
    local_theta: float = 10_000.0
    window: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    query_scale: float | None = None
    gelu: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()
    family: str = "llama"

    def __post_init__(self):
        check_types(self)
        for name in ("rope_scaling", "rope_factors", "local", "eos"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_positive(self, "vocab", "width", "ffn", "layers", "heads", "kv_heads")
        check_positive(self, "head_dim", "context")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not divide into {self.kv_heads} kv_heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number")
        if len(self.rope_scaling) not in (0, 1, 4):
            raise ValueError(f"rope_scaling has {len(self.rope_scaling)} values, not 0, 1 or 4")
        if len(self.rope_scaling) == 4 and self.rope_scaling[1] == self.rope_scaling[2]:
            raise ValueError(f"rope_scaling is {self.rope_scaling}, expected low below high")
        if min(self.theta, self.local_theta, *self.rope_scaling[:1]) <= 0:
            raise ValueError(
                f"theta is {self.theta}, local_theta {self.local_theta} and rope_scaling "
                f"{self.rope_scaling}, expected values above 0"
            )
        if self.rope_factors and (self.rope_scaling or min(self.rope_factors) <= 0):
            raise ValueError(
                f"rope_factors is {self.rope_factors} with rope_scaling {self.rope_scaling}, "
                "expected numbers above 0 and no scaling"
            )
        if len(self.rope_factors) not in (0, self.head_dim // 2):
            raise ValueError(
                f"rope_factors has {len(self.rope_factors)} values, expected {self.head_dim // 2}"
            )
        if self.local and (len(self.local) != self.layers or self.window < 1):
            raise ValueError(
                f"local names {len(self.local)} layers with window {self.window}, "
                f"expected {self.layers} and a window of at least 1"
            )
        check_family(self, "llama")

    def to_dict(self) -> dict:
        """The fields as plain data for JSON; `Config(**config.to_dict())` is an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_hf(cls, hf: dict) -> "Config":
        """The config of a Hugging Face checkpoint's `config.json`.

        Raises:
            ValueError: `hf` has a model type or an option that this module does not compute.
        """
        return cls(**from_hf(hf))

    def cache(self, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> dict:
        """An empty KV cache: {"k", "v"} of (layers, batch, kv_heads, length, head_dim)."""
        return empty(self.layers, batch, self.kv_heads, length, self.head_dim, dtype)


def module(config: Config) -> "Llama":
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
    return Llama(config)


class Llama(nn.Module):
    """Maps ids (B, T) to logits (B, T, vocab) in f32 (Touvron et al., 2023).

    With a `cache` from `config.cache`, the first id is at `position` and the result is
    (logits, cache).
    """

    config: Config

    @nn.compact
    def __call__(self, ids: Array, cache: dict | None = None, position: Array | int = 0):
        c = self.config
        embed = Embed(c.vocab, c.width, name="embed")
        x = embed(ids)
        x = constrain(x * jnp.asarray(c.embed_scale, x.dtype))
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.layers,
        )
        (x, cache), _ = layers(c, name="layers")((x, cache), per_layer(c), position)
        x = Norm(c, name="final_norm")(x)
        logits = embed.logits(x) if c.tied else Linear(c.vocab, name="head")(x, jnp.float32)
        return logits if cache is None else (logits, cache)


class Block(nn.Module):
    """One layer; `layer` is its slice of `per_layer`: index, rope frequencies and window."""

    config: Config

    @nn.compact
    def __call__(self, carry: tuple, layer: dict, position: Array | int):
        c = self.config
        x, cache = carry
        y, cache = Attention(c, name="attn")(Norm(c, name="attn_norm")(x), cache, layer, position)
        if c.post_norms:
            y = Norm(c, name="attn_post_norm")(y)
        x = x + checkpoint_name(y, "attn_out")
        y = MLP(c, name="mlp")(Norm(c, name="mlp_norm")(x))
        if c.post_norms:
            y = Norm(c, name="mlp_post_norm")(y)
        return (constrain(x + checkpoint_name(y, "mlp_out")), cache), None


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (Ainslie et al., 2023; Su et al., 2021)."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, cache: dict | None, layer: dict, position: Array | int):
        c = self.config
        heads = {"q": c.heads, "k": c.kv_heads, "v": c.kv_heads}
        q, k, v = (Linear(n * c.head_dim, c.qkv_bias, name=name)(x) for name, n in heads.items())
        if cache is not None:
            k, v = keep_layout(k, v)
        q, k, v = (split_heads(y, n) for y, n in zip((q, k, v), heads.values()))
        if c.qk_norm:
            q, k = Norm(c, name="q_norm")(q), Norm(c, name="k_norm")(k)
        q, k = (rope(y, layer["frequencies"], position) for y in (q, k))
        scale = c.query_scale or c.head_dim**-0.5
        index, window = layer["index"], layer["window"]
        cache, y = attend_through(cache, index, position, q, k, v, window, scale)
        return Linear(c.width, name="out")(merge_heads(y)), cache


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer, 2020)."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gate = Linear(self.config.ffn, name="gate")(x)
        up = Linear(self.config.ffn, name="up")(x)
        return Linear(self.config.width, name="down")(activate(gate, self.config) * up)


class Norm(nn.Module):
    """RMS norm; its gain is `norm_offset + scale`, where Gemma's `norm_offset` is 1."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        one = nn.initializers.constant(1.0 - c.norm_offset)
        return rms_norm(x, self.param("scale", one, x.shape[-1:]), c.eps, c.norm_offset)


def activate(x: Array, config: Config) -> Array:
    """The gate's non-linearity: SiLU, or GELU by tanh."""
    return jax.nn.gelu(x, approximate=True) if config.gelu else jax.nn.silu(x)


def per_layer(config: Config) -> dict:
    """The values that differ between layers, stacked for the scan.

    "index" and "window" are (layers,) int32. "frequencies" are (layers, head_dim / 2) f32, in
    radians for each position.
    """
    local = np.asarray(config.local or (False,) * config.layers)
    local_frequencies = _frequencies(config.head_dim, config.local_theta)
    frequencies = _frequencies(config.head_dim, config.theta, config.rope_scaling)
    if config.rope_factors:
        frequencies = frequencies / np.asarray(config.rope_factors, np.float32)
    return {
        "index": np.arange(config.layers, dtype=np.int32),
        "window": np.where(local, config.window, np.iinfo(np.int32).max).astype(np.int32),
        "frequencies": np.where(local[:, None], local_frequencies[None], frequencies[None]).astype(
            np.float32
        ),
    }


def _frequencies(width: int, theta: float, scaling: tuple[float, ...] = ()) -> np.ndarray:
    """Rotary frequencies (width / 2,) in radians for each position.

    With `scaling`, a wavelength above original / low is divided in frequency by `factor`, one below
    original / high is unchanged, and those between are interpolated.
    """
    factor, low, high, original = (*scaling, *(1.0, 1.0, 2.0, 0.0)[len(scaling) :])
    f = (1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
    keep = np.clip((original * f / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return f * (keep + (1.0 - keep) / factor)
