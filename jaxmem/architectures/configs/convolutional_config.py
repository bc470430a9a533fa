"""Config: the sizes and mechanisms of a convolutional network, a field for each choice."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..families.convolutional_families import from_hf
from ..families.ignored_hf_options import MOST_LAYERS
from .config_sizes import check_family, check_sizes, check_types
from .decoder_config import ACTIVATIONS

BLOCKS = ("basic", "bottleneck", "depthwise")
REDUCTION = 4  # channels into a bottleneck for each one inside
WINDOW = 7  # pixels on each side: the stem of a ResNet, and depthwise convolutions
_IMAGE = 224  # pixels on each side of an example


class Stage(NamedTuple):
    """Blocks of one width; the first one reads `inputs` channels, with `stride`."""

    inputs: int
    width: int
    depth: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes and mechanisms of one network of convolutions, in stages of ever more channels.

    The blocks are "basic" or "bottleneck" of a ResNet (He et al., 2015), or "depthwise" of a
    ConvNeXt (Liu et al., 2022). With `labels` the output are logits of classes.

    Example:
        >>> config = Config(widths=(8, 16), depths=(1, 2), stem=8, block="basic")
        >>> config.stages[1], Config(**config.to_dict()) == config
        (Stage(inputs=8, width=16, depth=2, stride=2), True)

    Raises:
        ValueError: a size is below 1, the lists have different lengths, or a choice is unknown.
    """

    widths: tuple[int, ...]  # channels of each stage
    depths: tuple[int, ...]  # blocks of each stage
    stem: int  # channels of the first convolution
    block: str
    channels: int = 3  # of an image
    activation: str = "relu"
    labels: int = 0  # 0 for no head: the output are the features of the last stage
    eps: float = 1e-12  # of the norm before the head of depthwise blocks
    patch: int = (
        4  # pixels on each side of a window of the first convolution, with depthwise blocks
    )
    layer_scale: bool = False  # learned factors of what a depthwise block adds, one a channel
    first_stride: int = 1  # of the first stage; later ones have 2
    early_stride: bool = (
        False  # the first convolution of a bottleneck has the stride, not the second
    )
    family: str = "convolutional"

    def __post_init__(self):
        check_types(self)
        check_family(self, "convolutional")
        for name in ("widths", "depths"):
            sizes = tuple(getattr(self, name))
            object.__setattr__(self, name, sizes)
            if not sizes or min(sizes) < 1 or len(sizes) != len(self.widths):
                raise ValueError(f"{name} is {sizes}, expected a size of at least 1 for each stage")
        if sum(self.depths) > MOST_LAYERS:
            raise ValueError(f"depths is {self.depths}, expected at most {MOST_LAYERS} blocks")
        check_sizes(self, "stem", "channels", "patch")
        choices = {"block": BLOCKS, "activation": ACTIVATIONS, "first_stride": (1, 2)}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {values}")
        if self.labels < 0 or not 0 <= self.eps < 1:
            raise ValueError(f"labels is {self.labels} and eps {self.eps}, expected 0 or more, < 1")
        if self.block == "depthwise" and self.stem != self.widths[0]:
            raise ValueError(f"stem is {self.stem}, expected {self.widths[0]} as widths begins")
        if self.block == "bottleneck" and any(width % REDUCTION for width in self.widths):
            raise ValueError(f"widths is {self.widths}, expected multiples of {REDUCTION}")

    vocab = property(lambda self: 0, doc="No tokens.")
    layers = property(lambda self: sum(self.depths), doc="Blocks of all stages.")
    reads = property(lambda self: "images", doc='What the input is: "images".')

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order."""
        inputs = (self.stem, *self.widths)
        strides = (self.first_stride, *(2,) * (len(self.widths) - 1))
        return tuple(map(Stage, inputs, self.widths, self.depths, strides))

    def convolutions(self, width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
        """(features, side of the window, stride) of each convolution of a residual block."""
        if self.block == "basic":
            return (width, 3, stride), (width, 3, 1)
        inner = width // REDUCTION
        first, second = (stride, 1) if self.early_stride else (1, stride)
        return (inner, 1, first), (inner, 3, second), (width, 1, 1)

    def example_inputs(self, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shape of one image."""
        return (jax.ShapeDtypeStruct((1, self.channels, _IMAGE, _IMAGE), jnp.float32),)

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
