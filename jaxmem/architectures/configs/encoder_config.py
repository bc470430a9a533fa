"""Config: the sizes and mechanisms of an encoder, a field for each choice."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..families.encoder_families import from_hf
from .config_sizes import check_positive, check_types, check_windows, set_after_family, set_head_dim
from .decoder_config import ACTIVATIONS
from .patches import Patches
from .waves import Waves

POOLS = ("first", "last", "end", "highest", "attention", "mean", "max", "mean_sqrt_len")
VECTOR_ACTIVATIONS = ("", "tanh", "relu", "sigmoid")
HEADS = ("", "masked_lm", "sequence", "tokens", "span", "vector")
_CHOICES = {
    "positions": ("learned", "rotary", "none"),
    "activation": ACTIVATIONS,
    "head": HEADS,
    "head_activation": ("", *ACTIVATIONS),
    "pool": POOLS,
    "vector_activation": VECTOR_ACTIVATIONS,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and mechanisms of one encoder; without the fields after `family` it is a BERT.

    `head` is what maps the hidden states to the output: "" for none, "masked_lm" to logits of
    every token's id, "tokens" to `labels` for every token, "span" to the start and the end of an
    answer, "sequence" to `labels` for the text, "vector" to one vector by `pool`, with a linear of
    `vector_width` outputs after it, if that is not 0.

    The input are tokens, with `patches` images, or with `waves` sounds; then `vocab` is 0.

    `family` is "bert", or "encoder" where a field after it is set. Transformations that know only
    a BERT refuse an "encoder" by this name.

    Example:
        >>> from jaxmem.architectures.encoder import Config
        >>> config = Config(vocab=64, width=32, ffn=48, layers=2, heads=4)
        >>> Config(**config.to_dict()) == config
        True
        >>> config.family, dataclasses.replace(config, head="tokens").family
        ('bert', 'encoder')

    Raises:
        ValueError: a size is not positive, the width does not divide into heads, or options do not
            fit each other.
    """

    vocab: int
    width: int
    ffn: int
    layers: int
    heads: int
    head_dim: int = 0  # 0 means width / heads; given where heads were removed
    context: int = 512
    types: int = 2  # kinds of segments; 0 for no table of them
    eps: float = 1e-12
    family: str = "bert"

    # Embedding and positions.
    positions: str = "learned"  # or "rotary" or "none"
    embed_width: int = 0  # of the embedding, which a linear maps to `width`; 0 for `width` itself
    pad: int | None = (
        None  # this id has row `pad` of the positions, other tokens count from pad + 1
    )

    theta: float = 10_000.0  # rotary base, in local layers `local_theta`
    local_theta: float = 10_000.0
    local: tuple[bool, ...] = ()  # the layers where a token attends only to `window` on each side
    window: int = 0
    buckets: int = 0  # rows of a table of biases of scores, by the distance of two tokens
    span: int = 0  # half the rows of a table of distances in disentangled attention; 0 without it
    farthest: int = 0  # distances above span / 2 share rows up to it; 0 if each has a row
    mask_scale: int | None = None  # the id of masked tokens, which are zero and scale the others up

    # Input, where it is not tokens.
    patches: Patches | None = None  # images, cut in these; a dict of its fields will do
    waves: Waves | None = None  # sounds, by these convolutions; likewise

    # Layers.
    shared: bool = False  # all layers are one, applied again and again
    pre_norms: bool = False  # norms before attention and MLP, not after, and one after all layers
    bare_start: bool = False  # the first layer has no norm before attention
    embed_norm: bool = True
    norm_bias: bool = True
    activation: str = "gelu"
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    causal: bool = False  # a token attends only to itself and to earlier ones
    layer_scale: bool = False  # learned factors of what attention and MLP add, one a channel

    # Head: with `head_activation` a linear and this activation come before the last linear.
    head: str = ""
    labels: int = 2
    head_activation: str = ""
    head_norm: bool = False  # a norm after this activation
    head_bias: bool = True  # of the linear before it
    head_mean: bool = False  # the head of a text reads the mean of its tokens, not the first
    head_both: bool = False  # it reads the first token and the mean of the others
    pool: str = "first"  # the vector is that of this token: "first", "last", "end", "highest" (id);
    # "attention": what a learned query attends to; "mean", "max" or "mean_sqrt_len" of the tokens
    end: int | None = None  # the id of the token "end"
    vector_width: int = 0  # outputs of a linear after the pooling; 0 without it
    vector_bias: bool = True
    vector_activation: str = ""  # or "tanh", "relu" or "sigmoid": after this linear
    unit_vector: bool = False  # the vector is divided by its length

    tensor_names: str = "bert"  # whose names the tensors of a checkpoint have

    def __post_init__(self):
        for name, kind in (("patches", Patches), ("waves", Waves)):
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, kind(**value))
        check_types(self)
        object.__setattr__(self, "local", tuple(self.local))
        tokens = ("vocab",) if self.reads == "text" else ()
        check_positive(self, *tokens, "width", "ffn", "layers", "heads", "context", "labels")
        set_head_dim(self)
        for name in ("types", "embed_width", "vector_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        for name, words in _CHOICES.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {words}")
        _check_head(self)
        _check_positions(self)
        _check_inputs(self)
        if self.pad is not None and self.pad < 0:
            raise ValueError(f"pad is {self.pad}, expected at least 0")
        if self.family not in ("bert", "encoder"):
            raise ValueError(f"family is {self.family!r}, expected 'bert' or 'encoder'")
        object.__setattr__(self, "family", "encoder" if set_after_family(self) else "bert")

    def without_head(self) -> "Config":
        """The configuration of the same encoder, whose output are the hidden states."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        names = ("head", "labels", "head_activation", "head_norm", "head_bias")
        names += ("head_mean", "head_both", "pool", "end")
        names += ("vector_width", "vector_bias", "vector_activation", "unit_vector")
        return dataclasses.replace(self, **{name: defaults[name] for name in names})

    @property
    def reads(self) -> str:
        """What the input is: "text", "images" or "sounds"."""
        return "images" if self.patches else "sounds" if self.waves else "text"

    def example_inputs(self, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of the inputs: ids (1, `length`) and a mask, one image, or a short sound."""
        if self.waves:
            return (jax.ShapeDtypeStruct((1, 4 * self.waves.fewest_samples), jnp.float32),)
        if self.patches:
            sizes = (1, self.patches.channels, self.patches.height, self.patches.width)
            return (jax.ShapeDtypeStruct(sizes, jnp.float32),)
        shape = (1, length)
        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)

    @property
    def position_rows(self) -> int:
        """Rows of the table of positions."""
        return self.context + (0 if self.pad is None else self.pad + 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; `Config(**config.to_dict())` is an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_hf(cls, hf: dict) -> "Config":
        """The config of a Hugging Face checkpoint's `config.json`.

        Raises:
            ValueError: `hf` is no encoder's, lacks a size, or sets an option not computed here.
        """
        return cls(**from_hf(hf))


def _check_head(c: Config) -> None:
    """Refuses options of a head that the configuration does not have."""
    if (c.pool == "end") != (c.end is not None):
        raise ValueError(f"end is {c.end} with pool {c.pool!r}, expected an id for 'end'")
    if c.head_activation and not c.head:
        raise ValueError(f"head_activation is {c.head_activation!r} without a head")
    for name in ("vector_width", "unit_vector"):
        if getattr(c, name) and c.head != "vector":
            raise ValueError(
                f"{name} is {getattr(c, name)} with head {c.head!r}, expected 'vector'"
            )
    if c.vector_activation and not c.vector_width:
        raise ValueError(f"vector_activation is {c.vector_activation!r} and vector_width 0")


def _check_positions(c: Config) -> None:
    """Refuses positions that do not fit the layers or each other."""
    check_windows(c)
    if c.positions == "rotary" and c.head_dim % 2:
        raise ValueError(f"head_dim is {c.head_dim}, expected an even number")
    if min(c.theta, c.local_theta) <= 0:
        raise ValueError(
            f"theta is {c.theta} and local_theta {c.local_theta}, expected numbers above 0"
        )
    if c.buckets < 0 or c.buckets % 4:
        raise ValueError(f"buckets is {c.buckets}, expected 0 or a multiple of 4")
    if c.span < 0 or c.farthest < 0 or (c.farthest and not 4 <= c.span < c.farthest):
        raise ValueError(f"span is {c.span}, expected at least 0, or 4 up to farthest {c.farthest}")
    if c.bare_start and (not c.pre_norms or c.shared or c.layers < 2):
        raise ValueError("bare_start is True, expected pre_norms, 2 layers or more, and not shared")


def _check_inputs(c: Config) -> None:
    """Refuses options of tokens where the input are images or sounds."""
    if c.reads == "text":
        return
    if c.patches and c.waves:
        raise ValueError("patches and waves are given, expected one of them")
    inputs, positions = ("patches", "learned") if c.patches else ("waves", "none")
    plain = {"vocab": 0, "types": 0, "embed_width": 0, "pad": None, "mask_scale": None}
    plain |= {"buckets": 0, "span": 0, "positions": positions}
    for name, value in plain.items():
        if getattr(c, name) != value:
            raise ValueError(f"{name} is {getattr(c, name)!r} with {inputs}, expected {value!r}")
    if c.head == "masked_lm" or c.pool in ("end", "highest"):
        name = "head" if c.head == "masked_lm" else "pool"
        raise ValueError(f"{name} is {getattr(c, name)!r} with {inputs}, which have no vocabulary")
    if c.waves and c.width % c.waves.position_groups:
        raise ValueError(
            f"waves.position_groups is {c.waves.position_groups}, expected a divisor of {c.width}"
        )
