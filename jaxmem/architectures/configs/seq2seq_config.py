"""Config: the sizes and mechanisms of an encoder-decoder, a field for each choice."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...kv_cache.dense import empty
from ..families.seq2seq_families import CHOSEN, from_hf
from .config_sizes import check_family, check_positive, check_types, set_head_dim
from .decoder_config import ACTIVATIONS

STRIDE = 2  # frames of a spectrogram to a token
_CHOICES = {
    "norm": ("layer", "rms"),
    "positions": ("learned", "sinusoidal", "relative"),
    "activation": ACTIVATIONS,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and mechanisms of one encoder-decoder; by default those of a BART.

    `layers`, `heads`, `ffn` and `context` are the decoder's; the encoder has the same unless a
    field `encoder_...` is above 0. The decoder reads `start` and `prefix`, then a text of its own,
    which begins with `forced` and ends with one of `eos`. In the place of a token of `prefix` that
    is `CHOSEN` it reads the most probable one. It never generates `suppressed`, nor
    `suppressed_first` as the first token that it chooses.

    Example:
        >>> from jaxmem.architectures.seq2seq import Config
        >>> config = Config(vocab=64, width=32, ffn=48, layers=2, heads=4, encoder_layers=3)
        >>> Config(**config.to_dict()) == config
        True
        >>> config.of_encoder().layers
        3

    Raises:
        ValueError: a size is not positive, the width does not divide into heads, or options do not
            fit each other.
    """

    vocab: int
    width: int
    ffn: int
    layers: int
    heads: int
    head_dim: int = 0  # 0 means width / heads
    context: int = 1024
    encoder_layers: int = 0
    encoder_heads: int = 0
    encoder_ffn: int = 0
    encoder_context: int = 0
    eps: float = 1e-5
    family: str = "seq2seq"

    # The tokens of an output.
    start: int = 0
    prefix: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()

    # Embedding and positions.
    embed_scale: float = 1.0
    embed_norm: bool = False  # a norm of the sum of tokens and positions
    positions: str = "learned"  # or "sinusoidal", or "relative": a bias of scores by distance
    position_offset: int = 0  # rows before the first position in the table of learned positions
    pad: int | None = None  # positions count the tokens that are not this id, from pad + 1
    ends_at_slowest: bool = False  # the last sinusoid has wavelength 2 pi 10,000; else the next one
    buckets: int = 0  # rows of the table of relative positions
    farthest: int = 0  # tokens; further distances share the last row

    mels: int = 0  # of the spectrograms that the encoder reads in place of tokens

    # Layers.
    norm: str = "layer"  # or "rms", which subtracts no mean
    norm_bias: bool = True
    pre_norms: bool = False  # norms before each part, not after each sum
    final_norm: bool = False  # a norm after all layers
    qkv_bias: bool = True
    key_bias: bool = True  # of the keys, with `qkv_bias`
    out_bias: bool = True
    query_scale: float | None = None  # factor of the scores; None for head_dim ** -0.5
    activation: str = "gelu"
    gated: bool = False
    mlp_bias: bool = True

    # Head.
    tied: bool = True
    head_scale: float = 1.0  # of what the head reads
    logit_bias: bool = False

    tensor_names: str = "bart"  # whose names the tensors of a checkpoint have

    norm_gain = True  # read by norms.py
    norm_offset = 0.0

    def __post_init__(self):
        check_types(self)
        for name in ("prefix", "forced", "eos", "suppressed", "suppressed_first"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_positive(self, "vocab", "width", "ffn", "layers", "heads", "context")
        check_family(self, "seq2seq")
        set_head_dim(self)
        for name, words in _CHOICES.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {words}")
        for name in ("encoder_layers", "encoder_heads", "encoder_ffn", "encoder_context", "mels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.encoder_heads and (self.heads * self.head_dim) % self.encoder_heads:
            raise ValueError(
                f"encoder_heads is {self.encoder_heads}, expected a divisor of "
                f"{self.heads * self.head_dim}"
            )
        _check_tokens(self)
        _check_positions(self)

    def of_encoder(self) -> "Config":
        """The configuration whose `layers`, `heads`, `ffn` and `context` are the encoder's."""
        heads = self.encoder_heads or self.heads
        return dataclasses.replace(
            self,
            layers=self.encoder_layers or self.layers,
            heads=heads,
            head_dim=self.heads * self.head_dim // heads,
            ffn=self.encoder_ffn or self.ffn,
            context=self.encoder_context or self.context,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; `Config(**config.to_dict())` is an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_hf(cls, hf: dict) -> "Config":
        """The config of a Hugging Face checkpoint's `config.json`.

        Raises:
            ValueError: `hf` is no encoder-decoder's, lacks a size, or sets an option not computed
                here.
        """
        return cls(**from_hf(hf))

    @property
    def reads(self) -> str:
        """What the encoder reads: "text" or "spectrograms"."""
        return "spectrograms" if self.mels else "text"

    def example_inputs(self, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of the inputs: a source, ids (1, `length`) of the decoder, and a mask.

        The source is ids (1, `length`), or a spectrogram, which has no mask.
        """
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
        if self.mels:
            sizes = (1, self.mels, STRIDE * self.of_encoder().context)
            return jax.ShapeDtypeStruct(sizes, jnp.float32), ids
        return ids, ids, jax.ShapeDtypeStruct(ids.shape, jnp.bool_)

    def cache(self, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> dict:
        """An empty cache of the decoder: {"k", "v"} of (layers, batch, heads, length, head_dim)."""
        return empty(self.layers, batch, self.heads, length, self.head_dim, dtype)


def _check_tokens(c: Config) -> None:
    """Refuses ids of tokens outside the vocabulary."""
    first = (c.start, *(i for i in c.prefix if i != CHOSEN), *c.forced)
    if min(*first, *c.eos, *c.suppressed, *c.suppressed_first, 0) < 0 or max(first) >= c.vocab:
        raise ValueError(
            f"start is {c.start}, prefix {c.prefix} and forced {c.forced}, expected ids of at "
            f"least 0 and below {c.vocab}"
        )


def _check_positions(c: Config) -> None:
    """Refuses positions that do not fit the width or each other."""
    if c.positions == "sinusoidal" and (c.width % 2 or (c.ends_at_slowest and c.width < 4)):
        raise ValueError(f"width is {c.width}, expected an even number of at least 4")
    is_relative = c.positions == "relative"
    if is_relative and (c.buckets < 4 or c.buckets % 4 or c.farthest <= c.buckets // 2):
        raise ValueError(
            f"buckets is {c.buckets} with farthest {c.farthest}, expected a multiple of 4, "
            "and farthest above half of it"
        )
    if (c.buckets or c.farthest) and not is_relative:
        raise ValueError(f"buckets is {c.buckets} and farthest {c.farthest} with {c.positions!r}")
    if c.mels and c.positions == "relative":
        raise ValueError(f"mels is {c.mels} with {c.positions!r}, expected positions of frames")
    if c.position_offset < 0 or (c.position_offset and c.positions != "learned"):
        raise ValueError(f"position_offset is {c.position_offset} with {c.positions!r}")
    if c.pad is not None and (c.pad < 0 or c.positions != "sinusoidal"):
        raise ValueError(f"pad is {c.pad} with {c.positions!r}, expected sinusoidal positions")
