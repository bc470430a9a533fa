"""Two towers, one for texts and one for images: their vectors, and how similar these are."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import encoder
from .configs import encoder_config
from .configs.config_sizes import check_family, check_types
from .families.tower_families import from_hf
from .layers.linear import Linear, product
from .weights.tensor_layouts import Reshaped
from .weights.weight_map import WeightMap

_NAMES = {  # {Config.tensor_names: the checkpoint's names of the projections of texts and images}
    "clip": ("text_projection", "visual_projection"),
    "siglip": ("text_model.head", ""),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and mechanisms of two encoders whose vectors lie in one space.

    Each tower is an encoder's Config whose `head` is "vector"; a dict of its fields will do. With
    `text_width` or `image_width` a linear maps the tower's vector to so many numbers.

    Example:
        >>> tower = dict(width=32, ffn=48, layers=2, heads=4, types=0, head="vector")
        >>> image = tower | dict(vocab=0, patches=dict(height=8, width=8, size=4))
        >>> config = Config(text=tower | dict(vocab=64, pool="last"), image=image)
        >>> Config(**config.to_dict()) == config, config.space
        (True, 32)

    Raises:
        ValueError: a tower gives no vector, or the towers' vectors have different lengths.
    """

    text: encoder_config.Config
    image: encoder_config.Config
    text_width: int = 0
    image_width: int = 0
    projection_bias: bool = False
    logit_bias: bool = False  # a learned number is added to the logits of all pairs
    family: str = "two_towers"
    tensor_names: str = "clip"

    def __post_init__(self):
        for name in ("text", "image"):
            if isinstance(tower := getattr(self, name), dict):
                object.__setattr__(self, name, encoder_config.Config(**tower))
        check_types(self)
        check_family(self, "two_towers")
        if self.text.patches or not self.image.patches:
            raise ValueError("expected a text tower that reads tokens, and an image tower, patches")
        for name in ("text", "image"):
            if (head := getattr(self, name).head) != "vector":
                raise ValueError(f"{name}.head is {head!r}, expected 'vector'")
        if self.text_width < 0 or self.image_width < 0:
            raise ValueError(
                f"text_width is {self.text_width} and image_width {self.image_width}, "
                "expected at least 0"
            )
        if self.space != (image := self.image_width or self.image.width):
            raise ValueError(f"the vectors of texts have {self.space} numbers, of images {image}")

    vocab = property(lambda self: self.text.vocab, doc="Tokens of the text tower.")
    context = property(lambda self: self.text.context, doc="The most tokens of a text.")
    heads = property(lambda self: self.text.heads, doc="Heads of the text tower.")
    layers = property(lambda self: self.text.layers, doc="Layers of the text tower.")
    reads = property(lambda self: "images", doc='What a processor is wanted for: "images".')

    @property
    def space(self) -> int:
        """The length of the vectors."""
        return self.text_width or self.text.width

    def example_inputs(self, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of one text of at most `length` tokens and of one image."""
        ids = jax.ShapeDtypeStruct((1, min(length, self.context)), jnp.int32)
        return ids, *self.image.example_inputs(length)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON; `Config(**config.to_dict())` is an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_hf(cls, hf: dict) -> "Config":
        """The config of a Hugging Face checkpoint's `config.json`.

        Raises:
            ValueError: `hf` has a wrong value, or sets an option not computed here.
        """
        return cls(**from_hf(hf))


class Similarity(NamedTuple):
    """What two towers give, in f32; None for the tower whose input is None."""

    logits: Array | None  # (images, texts)
    texts: Array | None  # (texts, space), of length 1
    images: Array | None  # (images, space), of length 1


class TwoTowers(nn.Module):
    """Maps ids (B, T) and pixels (N, channels, height, width) to a `Similarity`.

    The logits are exp(scale) * cosine of the vectors (Radford et al., 2021), and with `logit_bias`
    a bias (Zhai et al., 2023). `mask` (B, T) tells real tokens from padding.
    """

    config: Config

    @nn.compact
    def __call__(
        self, ids: Array | None, pixels: Array | None = None, mask: Array | None = None
    ) -> Similarity:
        c = self.config
        texts = images = None
        if ids is None and pixels is None:
            raise ValueError("ids and pixels are None, expected one of them or both")
        if ids is not None:
            texts = self._vectors("text", c.text_width, ids, mask)
        if pixels is not None:
            images = self._vectors("image", c.image_width, pixels)
        if texts is None or images is None:
            return Similarity(None, texts, images)
        scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())
        logits = product(images, texts, axis=1) * jnp.exp(scale.astype(jnp.float32))
        if c.logit_bias:
            logits += self.param("logit_bias", nn.initializers.zeros, ()).astype(jnp.float32)
        return Similarity(logits, texts, images)

    def _vectors(self, name: str, width: int, *inputs: Any) -> Array:
        """The vectors (B, space) of one tower, of length 1."""
        x = encoder.Encoder(getattr(self.config, name), name=name)(*inputs)
        if width:
            x = Linear(width, self.config.projection_bias, name=f"{name}_projection")(x)
        x = x.astype(jnp.float32)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def module(config: Config) -> TwoTowers:
    """The Flax module of `config`; run it as `module(config).apply({"params": p}, ids, pixels)`."""
    return TwoTowers(config)


def weights(config: Config) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Raises:
        ValueError: `config.tensor_names` is unknown.
    """
    c = config
    if c.tensor_names not in _NAMES:
        raise ValueError(f"tensor_names is {c.tensor_names!r}, expected one of {', '.join(_NAMES)}")
    maps: dict[str, WeightMap] = {}
    widths = (c.text_width, c.image_width)
    for tower, width, stem in zip(("text", "image"), widths, _NAMES[c.tensor_names]):
        of_tower = getattr(c, tower)
        maps |= {f"{tower}/{path}": m for path, m in encoder.weights(of_tower).items()}
        if width:
            path, shape = f"{tower}_projection", (of_tower.width, width)
            maps[f"{path}/kernel"] = WeightMap((f"{stem}.weight",), shape, np.transpose)
            if c.projection_bias:
                maps[f"{path}/bias"] = WeightMap((f"{stem}.bias",), (width,))
    shape = (1,) * c.logit_bias  # a SigLIP has numbers in arrays of one
    for name in ("logit_scale", "logit_bias")[: 1 + c.logit_bias]:
        maps[name] = WeightMap((name,), (), Reshaped(shape, ()))
    return maps
