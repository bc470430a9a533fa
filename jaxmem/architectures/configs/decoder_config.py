"""Config: the sizes and mechanisms of a decoder, a field for each choice."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from ...kv_cache.dense import empty
from ..families.decoder_family_table import from_hf
from .config_sizes import check_positive, check_types, check_windows, set_after_family
from .latent import Latent, check_latent
from .mixture import Mixture
from .recurrence import Recurrence, any_attention, check_recurrence

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh")
_CHOICES = {
    "norm": ("rms", "layer"),
    "qk_norm_over": ("head", "heads", "all", "rotated"),
    "positions": ("rotary", "alibi", "learned", "none"),
}
_PER_LAYER = ("local", "no_rope")
_TUPLES = ("rope_scaling", "rope_factors", "rope_long_factors", "eos", "mlp_scales", *_PER_LAYER)


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and mechanisms of one decoder; without the fields after `family` it is a Llama.

    `rope_scaling` is empty, `(factor,)` for linear scaling, or Llama 3.1's `(factor, low, high,
    original length)`. `rope_factors` is empty, or has a divisor for each rotary frequency. `local`
    has a bool for each layer: where it is true, a token attends only to the last `window`
    positions, and the rotary base is `local_theta`. If `local` is empty, no layer is local.

    `family` is "llama", or "decoder" where a field after it is set. Transformations that know only
    a Llama refuse a "decoder" by this name.

    Example:
        >>> from jaxmem.architectures.llama import Config
        >>> config = Config(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> Config(**config.to_dict()) == config
        True
        >>> config.family, dataclasses.replace(config, norm="layer").family
        ('llama', 'decoder')

    Raises:
        ValueError: a size is not positive, or sizes or options do not fit each other.
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
    post_norms: bool = False  # a norm after attention and one after the MLP
    norm_offset: float = 0.0  # added to every norm's gain
    embed_scale: float = 1.0
    query_scale: float | None = None  # factor of the scores; None for head_dim ** -0.5
    gelu: bool = False  # the activation is GELU by tanh
    bos: int | None = None
    eos: tuple[int, ...] = ()
    family: str = "llama"

    # Norms, and where they are.
    norm: str = "rms"  # or "layer", which subtracts the mean first
    norm_gain: bool = True
    norm_bias: bool = False
    pre_norms: bool = True  # a norm before attention and one before the MLP
    sum_norms: bool = False  # the norm before each is after its sum with x: it changes x
    embed_norm: bool = False  # a norm of the embedding
    final_norm: bool = True  # a norm after all layers
    parallel: bool = False  # attention and MLP read the same x, and both are added to it
    shared_norm: bool = False  # with `parallel`: the norm before attention is the MLP's, too
    # "head"; "heads": a head, with its own gain; "all" heads together; "rotated": a head without a
    # gain, after its rotation, in layers with rotary positions
    qk_norm_over: str = "head"
    qk_norm_bias: bool = False

    # Positions.
    positions: str = "rotary"  # or "alibi", "learned" or "none"
    rotary_dim: int = 0  # channels of a head that are rotated; 0 for all of them
    local_scaled: bool = False  # local layers have the frequencies of the others
    interleaved: bool = False  # channels 2i and 2i + 1 are a rotary pair, not i and i + h / 2
    no_rope: tuple[bool, ...] = ()  # the layers without rotary positions
    rope_magnitude: float = 1.0  # factor of the rotated queries and keys, except in local layers
    original_context: int = 0  # the length of text that a model was trained on at first
    rope_dynamic: float = 0.0  # factor of dynamic NTK scaling, beyond `original_context`
    rope_long_factors: tuple[float, ...] = ()  # divisors for texts beyond `original_context`
    query_growth: float = 0.0  # queries times 1 + this * log(1 + position // original_context)
    growth_unrotated: bool = False  # only in layers without rotary positions, counted from 1
    chunked: bool = False  # local layers see the chunk of `window` tokens that a token is in
    alibi_max: float = 8.0  # the largest exponent of ALiBi's slopes
    alibi_scaled: bool = False  # ALiBi's terms are multiplied by the factor of the scores, too
    position_offset: int = 0  # rows before the first position in the table of learned positions

    # Attention.
    out_bias: bool = False
    attention_softcap: float = 0.0  # scores become cap * tanh(score / cap)
    sinks: bool = False  # each head has a score of one more key without a value
    latent: Latent | None = None  # multi-latent attention; a dict of its fields will do
    output_gate: bool = False  # its outputs times a sigmoid of the layer's input
    attention_scale: float = 1.0  # factor of what it gives
    clip_qkv: float = 0.0  # queries, keys and values are cut to [-clip, clip]

    # MLP.
    activation: str | None = None  # None for SiLU, or GELU by tanh with `gelu`
    gated: bool = True  # down(act(gate(x)) * up(x)), not down(act(up(x)))
    mlp_bias: bool = False
    mlp_scales: tuple[float, ...] = ()  # factors of the gate's input, and of the output
    mixture: Mixture | None = None  # experts in place of an MLP; a dict of its fields will do

    # Residual stream and head.
    residual_scale: float = 1.0  # factor of what attention and MLP add
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float = 0.0  # logits become cap * tanh(logit / cap)
    # The width of embedding and head, where matrices lead from it to `width` and back; else 0.
    embed_width: int = 0

    # Layers with a state in place of attention, or beside it; a dict of its fields will do.
    recurrence: Recurrence | None = None

    tensor_names: str = "llama"  # whose names the tensors of a checkpoint have

    def __post_init__(self):
        parts = {"mixture": Mixture, "latent": Latent, "recurrence": Recurrence}
        for name, kind in parts.items():
            if isinstance(getattr(self, name), dict):  # from JSON
                object.__setattr__(self, name, kind(**getattr(self, name)))
        check_types(self)
        for name in _TUPLES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_positive(self, "vocab", "width", "layers", "context")
        check_positive(self, *_sizes_in_use(self))
        _check_choices(self)
        _check_attention(self)
        _check_rope(self)
        _check_mixture(self)
        check_latent(self)
        check_recurrence(self)
        if self.family not in ("llama", "decoder"):
            raise ValueError(f"family is {self.family!r}, expected 'llama' or 'decoder'")
        object.__setattr__(self, "family", "decoder" if beyond_llama(self) else "llama")

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
        """An empty KV cache: {"k", "v"} of (layers, batch, kv_heads, length, head_dim).

        With `latent`, "k" holds rotary keys and "v" latents, both of one head for all heads. With
        `recurrence`, `layers` are those that have attention, and the states of the others are
        entries of their own.
        """
        if self.recurrence:
            states = self.recurrence.cache(self.layers, self.width, batch, dtype)
            if not any_attention(self):
                return states
            layers = self.layers
            layers -= 0 if self.recurrence.beside else self.recurrence.count(layers)
            return states | empty(layers, batch, self.kv_heads, length, self.head_dim, dtype)
        if self.latent:
            sizes = {"k": self.latent.rope_dim, "v": self.latent.kv_rank}
            shape = (self.layers, batch, 1, length)
            return {name: jnp.zeros((*shape, size), dtype) for name, size in sizes.items()}
        return empty(self.layers, batch, self.kv_heads, length, self.head_dim, dtype)


def _sizes_in_use(c: Config) -> list[str]:
    """The sizes of attention and of the feed-forward part, if there is such a part."""
    sizes = ["heads", "kv_heads", "head_dim"] if any_attention(c) else []
    return sizes if c.recurrence and c.recurrence.alone else ["ffn", *sizes]


def beyond_llama(config: Config) -> list[str]:
    """The fields after `family` that are set: the mechanisms that a Llama does not have.

    Example:
        >>> from jaxmem.architectures.configs.decoder_config import Config, beyond_llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> beyond_llama(Config(**sizes, norm="layer", parallel=True))
        ['norm', 'parallel']
    """
    return set_after_family(config)


def _check_choices(c: Config) -> None:
    """Refuses a word that is none of a field's, and options without what they change."""
    for name, words in _CHOICES.items():
        if getattr(c, name) not in words:
            raise ValueError(f"{name} is {getattr(c, name)!r}, expected {' or '.join(words)}")
    if c.activation is not None and (c.activation not in ACTIVATIONS or c.gelu):
        raise ValueError(
            f"activation is {c.activation!r} with gelu={c.gelu}, expected one of "
            f"{', '.join(ACTIVATIONS)} without gelu"
        )
    needs = {
        "shared_norm": (c.parallel and c.pre_norms, "parallel and pre_norms"),
        "sum_norms": (not (c.pre_norms or c.post_norms or c.parallel), "other norms"),
        "norm_bias": (c.norm_gain, "norm_gain"),
        "qk_norm_bias": (c.qk_norm and c.norm_gain, "qk_norm and norm_gain"),
        "head_bias": (not c.tied, "an untied head"),
        "chunked": (c.local, "local layers"),
        "alibi_max": (c.alibi_max == 8 or (c.alibi_max > 0 and c.positions == "alibi"), "ALiBi"),
        "alibi_scaled": (c.positions == "alibi", "positions 'alibi'"),
        "growth_unrotated": (c.query_growth, "query_growth"),
        "mlp_scales": (c.gated and len(c.mlp_scales) == 2 and not c.mixture, "2 factors and gates"),
    }
    positive = (c.original_context > 0, "an original_context above 0")
    needs |= dict.fromkeys(("rope_long_factors", "rope_dynamic", "query_growth"), positive)
    for name, (present, what) in needs.items():
        if getattr(c, name) and not present:
            raise ValueError(f"{name} is {getattr(c, name)!r} without {what}")


def _check_attention(c: Config) -> None:
    """Refuses heads that do not divide, and lists that have no entry for each layer."""
    if any_attention(c) and c.heads % c.kv_heads:
        raise ValueError(f"{c.heads} heads do not divide into {c.kv_heads} kv_heads")
    check_windows(c)
    if len(c.no_rope) not in (0, c.layers):
        raise ValueError(f"no_rope names {len(c.no_rope)} layers, expected {c.layers}")


def _check_mixture(c: Config) -> None:
    """Refuses a mixture that does not say which layers have experts, or whose MLPs have no gate."""
    if c.mixture and len(c.mixture.dense) not in (0, c.layers):
        raise ValueError(f"mixture.dense names {len(c.mixture.dense)} layers, expected {c.layers}")
    if c.mixture and not c.gated:
        raise ValueError("gated is False with a mixture, whose experts have gates")


def _check_rope(c: Config) -> None:
    """Refuses rotary options that do not fit the heads or each other."""
    rotated = c.rotary_dim or c.head_dim
    if c.positions == "rotary" and (rotated % 2 or not 0 < rotated <= c.head_dim):
        name = "rotary_dim" if c.rotary_dim else "head_dim"
        raise ValueError(f"{name} is {rotated}, expected an even number up to {c.head_dim}")
    if len(c.rope_scaling) not in (0, 1, 4):
        raise ValueError(f"rope_scaling has {len(c.rope_scaling)} values, not 0, 1 or 4")
    if len(c.rope_scaling) == 4 and c.rope_scaling[1] == c.rope_scaling[2]:
        raise ValueError(f"rope_scaling is {c.rope_scaling}, expected low below high")
    if min(c.theta, c.local_theta, *c.rope_scaling[:1]) <= 0:
        raise ValueError(
            f"theta is {c.theta}, local_theta {c.local_theta} and rope_scaling "
            f"{c.rope_scaling}, expected values above 0"
        )
    if c.rope_factors and (c.rope_scaling or min(c.rope_factors) <= 0):
        raise ValueError(
            f"rope_factors is {c.rope_factors} with rope_scaling {c.rope_scaling}, "
            "expected numbers above 0 and no scaling"
        )
    for name in ("rope_factors", "rope_long_factors"):
        if len(getattr(c, name)) not in (0, rotated // 2):
            raise ValueError(f"{name} has {len(getattr(c, name))} values, expected {rotated // 2}")
    if c.rope_long_factors and (not c.rope_factors or min(c.rope_long_factors) <= 0):
        raise ValueError(
            f"rope_long_factors is {c.rope_long_factors} with rope_factors {c.rope_factors}, "
            "expected numbers above 0 in both"
        )
    if c.rope_dynamic and (c.rope_dynamic < 1 or c.rope_scaling or c.rope_factors):
        raise ValueError(
            f"rope_dynamic is {c.rope_dynamic}, expected at least 1 and no other scaling"
        )
